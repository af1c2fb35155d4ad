//! Customers and their layers.

use bytes::Bytes;
use futures::Stream;
use model::api::NewCustomer;
use model::release::CustomerLayer;
use model::{CustomerName, Signed};

use super::release::take;
use crate::error::Problem;
use crate::sky::Sky;
use crate::store::{LayerRecord, NewEvent};

/// Largest image of a customer's layer in bytes. It is kilobytes by design.
pub const LARGEST_LAYER: u64 = 16 << 20;

/// The one name that a layer's image has.
const IMAGE: &str = "layer.raw";

/// Adds a customer. Repeated with the same title, it changes nothing.
///
/// # Errors
/// Invalid title; conflict with a customer of another title.
pub async fn create(sky: &Sky, new: NewCustomer) -> Result<NewCustomer, Problem> {
    let characters = new.title.chars().count();
    if !(1..=200).contains(&characters) || new.title.chars().any(char::is_control) {
        return Err(Problem::invalid(
            "title: expected 1 to 200 characters without control characters",
        ));
    }
    let now = sky.now();
    let mut session = sky.store.change().await?;
    match session.customer(&new.name).await? {
        Some(known) if known == new => return Ok(known),
        Some(known) => {
            return Err(Problem::conflict(format!(
                "customer {}: exists with the title {:?}",
                known.name, known.title
            )));
        }
        None => session.insert_customer(&new, now).await?,
    }
    let message = format!("customer {} ({}) created", new.name, new.title);
    session
        .append_event(NewEvent::new("customer", message), now)
        .await?;
    session.commit().await?;
    Ok(new)
}

/// Returns all customers.
///
/// # Errors
/// Internal only.
pub async fn list(sky: &Sky) -> Result<Vec<NewCustomer>, Problem> {
    Ok(sky.store.read().await?.customers().await?)
}

/// Takes a signed layer. It is served once its image has come too.
///
/// # Errors
/// A signature that does not count, a foreign customer, a version that is not new.
pub async fn put_layer(
    sky: &Sky,
    customer: &CustomerName,
    document: Signed<CustomerLayer>,
) -> Result<(), Problem> {
    let now = sky.now();
    let layer = sky.trust.verify(&document, now)?;
    let mut session = sky.store.change().await?;
    session
        .customer(customer)
        .await?
        .ok_or_else(|| unknown(customer))?;
    let newest = session.newest_layer(customer).await?;
    if newest
        .as_ref()
        .is_some_and(|newest| newest.document == document)
    {
        return Ok(());
    }
    decide_layer(customer, &layer, newest.map(|newest| newest.version))?;
    let record = LayerRecord {
        version: layer.version,
        document,
        image: crate::blobs::Stored {
            sha256: layer.image.sha256,
            size: layer.image.size,
        },
    };
    session.insert_layer(customer, &record, now).await?;
    let message = format!("layer {} of customer {customer}", layer.version);
    session
        .append_event(NewEvent::new("layer", message), now)
        .await?;
    session.commit().await?;
    Ok(())
}

fn decide_layer(
    customer: &CustomerName,
    layer: &CustomerLayer,
    newest: Option<u64>,
) -> Result<(), Problem> {
    if layer.customer != *customer {
        return Err(Problem::conflict(format!(
            "layer of customer {}: sent for customer {customer}",
            layer.customer
        )));
    }
    if layer.image.path != IMAGE {
        return Err(Problem::invalid(format!(
            "layer: image {:?}, expected {IMAGE:?}",
            layer.image.path
        )));
    }
    if layer.image.size > LARGEST_LAYER {
        return Err(Problem::invalid(format!(
            "layer: image of {} bytes, expected at most {LARGEST_LAYER}",
            layer.image.size
        )));
    }
    if let Some(newest) = newest.filter(|newest| layer.version <= *newest) {
        return Err(Problem::conflict(format!(
            "layer of customer {customer}: version {} is not newer than {newest}",
            layer.version
        ))
        .hint("sign the layer with a higher version"));
    }
    Ok(())
}

/// Takes a layer's image, before or after the document that names it.
///
/// # Errors
/// Unknown customer, a torn or too large body.
pub async fn put_image<E>(
    sky: &Sky,
    customer: &CustomerName,
    body: impl Stream<Item = Result<Bytes, E>>,
) -> Result<(), Problem> {
    let known = sky.store.read().await?.customer(customer).await?;
    known.ok_or_else(|| unknown(customer))?;
    let image = take(sky, body, LARGEST_LAYER).await?;
    let mut session = sky.store.change().await?;
    session
        .insert_layer_image(customer, &image, sky.now())
        .await?;
    session.commit().await?;
    Ok(())
}

/// Returns the newest layer that is whole.
///
/// # Errors
/// Not found.
pub async fn layer(sky: &Sky, customer: &CustomerName) -> Result<LayerRecord, Problem> {
    let layer = sky.store.read().await?.whole_layer(customer).await?;
    layer.ok_or_else(|| {
        Problem::not_found(format!("customer {customer}: has no layer yet")).hint(format!(
            "publish one: PUT /v1/customers/{customer}/layer and …/layer.raw"
        ))
    })
}

pub(super) fn unknown(customer: &CustomerName) -> Problem {
    Problem::not_found(format!("customer {customer}: does not exist"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use model::Digest;
    use model::release::Artifact;

    #[test]
    fn a_layer_is_for_its_customer_and_newer() {
        let customer = "motivatit".parse().unwrap();
        let layer = CustomerLayer {
            customer: "motivatit".parse().unwrap(),
            version: 2,
            components: None,
            image: Artifact {
                path: IMAGE.into(),
                size: 1,
                sha256: Digest::of(b""),
            },
        };
        let decide = |layer: &CustomerLayer, newest| {
            decide_layer(&customer, layer, newest).map_err(|problem| problem.kind())
        };
        assert_eq!(decide(&layer, None), Ok(()));
        assert_eq!(decide(&layer, Some(1)), Ok(()));
        assert_eq!(decide(&layer, Some(2)), Err(Kind::Conflict));
        let mut foreign = layer.clone();
        foreign.customer = "other".parse().unwrap();
        assert_eq!(decide(&foreign, None), Err(Kind::Conflict));
        let mut outside = layer;
        outside.image.path = "../layer.raw".into();
        assert_eq!(decide(&outside, None), Err(Kind::Invalid));
    }
}
