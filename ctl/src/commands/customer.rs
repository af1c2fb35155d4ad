//! `leapctl customer`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use edge::exit::{Classify as _, Failure, Kind, hint};
use jiff::Timestamp;
use model::api::NewCustomer;
use model::release::CustomerLayer;
use model::{CustomerName, Digest, Signed, TrustRoot};

use crate::operator::Operator;
use crate::view;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Customer {
    /// Create a customer
    Create(Create),
    /// List the customers
    List,
    /// Upload the layer that leap-image has made for a customer
    Layer(Layer),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Name of a-z, 0-9 and '-'
    name: CustomerName,
    /// Name for people
    #[arg(long)]
    title: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Layer {
    /// The customer
    name: CustomerName,
    /// Folder with layer.json and layer.raw
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

impl Customer {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        match self {
            Self::Create(args) => args.run(operator).await,
            Self::List => {
                let customers = operator.sky()?.customers().await?;
                operator.show(&customers, |customers| view::customers(customers));
                Ok(())
            }
            Self::Layer(args) => args.run(operator).await,
        }
    }
}

impl Create {
    async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let customer = NewCustomer {
            name: self.name,
            title: self.title,
        };
        let created = operator.sky()?.create_customer(&customer).await?;
        operator.show(&created, |created| {
            format!("customer {} ({}) created", created.name, created.title)
        });
        Ok(())
    }
}

impl Layer {
    async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let root = operator.keys()?.trust_root()?;
        let files = read(&self.dir, &self.name, &root, edge::clock::now())?;
        let sky = operator.sky()?;
        sky.store_layer(&self.name, files.document, files.image)
            .await?;
        operator.show(&files.layer, |layer| {
            format!(
                "layer {} of customer {} stored, {} bytes",
                layer.version, layer.customer, layer.image.size
            )
        });
        Ok(())
    }
}

/// A customer's layer that was found good.
#[derive(Debug)]
struct LayerFiles {
    layer: CustomerLayer,
    document: Vec<u8>,
    image: Vec<u8>,
}

/// Reads and verifies the two files of a layer.
fn read(
    dir: &Path,
    customer: &CustomerName,
    root: &TrustRoot,
    now: Timestamp,
) -> Result<LayerFiles, Failure> {
    let load = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path)
            .with_context(|| format!("read {}", path.display()))
            .map_err(|error| hint(error, "give the folder that leap-image layer has made"))
            .invalid_input()
    };
    let document = load("layer.json")?;
    let image = load("layer.raw")?;
    let signed: Signed<CustomerLayer> = serde_json::from_slice(&document)
        .context("layer.json: expected a signed customer layer")
        .invalid_input()?;
    let layer = root
        .verify(&signed, now)
        .context("layer.json")
        .refused()?
        .into_inner();
    let wrong = |message: String| Err(Failure::new(Kind::InvalidInput, anyhow!(message)));
    if layer.customer != *customer {
        return wrong(format!(
            "layer.json: is for customer {}, expected {customer}",
            layer.customer
        ));
    }
    if image.len() as u64 != layer.image.size || Digest::of(&image) != layer.image.sha256 {
        return wrong("layer.raw: is not the image that layer.json names".into());
    }
    Ok(LayerFiles {
        layer,
        document,
        image,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::release::Artifact;
    use model::trust::RoleKeys;
    use model::{Role, Signer};

    use super::*;

    #[test]
    fn a_layer_of_another_customer_or_with_another_image_is_not_sent() {
        let signer = Signer::from_seed(&[1; 32]);
        let root = TrustRoot {
            version: 1,
            roles: BTreeMap::from([(
                Role::Configuration,
                RoleKeys {
                    keys: vec![signer.public()],
                    threshold: 1,
                },
            )]),
            recovery: vec![],
        };
        let dir = tempfile::tempdir().unwrap();
        let image = b"confext";
        let layer = CustomerLayer {
            customer: "motivatit".parse().unwrap(),
            version: 1,
            components: None,
            image: Artifact {
                path: "layer.raw".into(),
                size: image.len() as u64,
                sha256: Digest::of(image),
            },
        };
        let document = serde_json::to_vec(&signer.sign(&layer)).unwrap();
        std::fs::write(dir.path().join("layer.json"), document).unwrap();
        std::fs::write(dir.path().join("layer.raw"), image).unwrap();
        let read = |customer: &str| {
            let customer = customer.parse().unwrap();
            super::read(dir.path(), &customer, &root, Timestamp::UNIX_EPOCH)
        };
        assert_eq!(read("motivatit").unwrap().layer, layer);
        let other = read("acme").unwrap_err();
        assert_eq!(other.kind(), Kind::InvalidInput);
        std::fs::write(dir.path().join("layer.raw"), b"other").unwrap();
        assert!(
            read("motivatit")
                .unwrap_err()
                .to_string()
                .contains("layer.raw")
        );
    }
}
