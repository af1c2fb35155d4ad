//! Customers and their layers.

use jiff::Timestamp;
use model::api::NewCustomer;
use model::release::CustomerLayer;
use model::{CustomerName, Signed};

use super::{Session, StoreError, int, json, micros, number, parse, unjson};
use crate::blobs::Stored;

/// A signed layer and the image that it names.
#[derive(Debug, Clone)]
pub struct LayerRecord {
    /// [`CustomerLayer::version`].
    pub version: u64,
    /// The document as it was received.
    pub document: Signed<CustomerLayer>,
    /// Digest and size that the document names.
    pub image: Stored,
}

impl Session {
    /// Returns a customer.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn customer(
        &mut self,
        name: &CustomerName,
    ) -> Result<Option<NewCustomer>, StoreError> {
        let title: Option<String> = sqlx::query_scalar("SELECT title FROM customer WHERE name = ?")
            .bind(name.as_str())
            .fetch_optional(self.db())
            .await?;
        Ok(title.map(|title| NewCustomer {
            name: name.clone(),
            title,
        }))
    }

    /// Returns all customers by name.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn customers(&mut self) -> Result<Vec<NewCustomer>, StoreError> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT name, title FROM customer ORDER BY name")
                .fetch_all(self.db())
                .await?;
        rows.into_iter()
            .map(|(name, title)| {
                let name = parse("customer", &name)?;
                Ok(NewCustomer { name, title })
            })
            .collect()
    }

    /// Adds a customer.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn insert_customer(
        &mut self,
        customer: &NewCustomer,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO customer (name, title, created) VALUES (?, ?, ?)")
            .bind(customer.name.as_str())
            .bind(&customer.title)
            .bind(micros(now))
            .execute(self.db())
            .await?;
        Ok(())
    }

    /// Returns a customer's newest layer, whether its image has come or not.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn newest_layer(
        &mut self,
        customer: &CustomerName,
    ) -> Result<Option<LayerRecord>, StoreError> {
        let row: Option<(i64, String, String, i64)> = sqlx::query_as(
            "SELECT version, document, sha256, size FROM layer
             WHERE customer = ? ORDER BY version DESC LIMIT 1",
        )
        .bind(customer.as_str())
        .fetch_optional(self.db())
        .await?;
        row.map(layer).transpose()
    }

    /// Returns a customer's newest layer whose image has come.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn whole_layer(
        &mut self,
        customer: &CustomerName,
    ) -> Result<Option<LayerRecord>, StoreError> {
        let row: Option<(i64, String, String, i64)> = sqlx::query_as(
            "SELECT layer.version, layer.document, layer.sha256, layer.size
             FROM layer JOIN layer_image AS image
               ON image.customer = layer.customer
              AND image.sha256 = layer.sha256 AND image.size = layer.size
             WHERE layer.customer = ? ORDER BY layer.version DESC LIMIT 1",
        )
        .bind(customer.as_str())
        .fetch_optional(self.db())
        .await?;
        row.map(layer).transpose()
    }

    /// Adds a layer.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn insert_layer(
        &mut self,
        customer: &CustomerName,
        layer: &LayerRecord,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO layer (customer, version, document, sha256, size, created)
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(customer.as_str())
        .bind(int(layer.version)?)
        .bind(json(&layer.document))
        .bind(layer.image.sha256.to_string())
        .bind(int(layer.image.size)?)
        .bind(micros(now))
        .execute(self.db())
        .await?;
        Ok(())
    }

    /// Notes that an image has come.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn insert_layer_image(
        &mut self,
        customer: &CustomerName,
        image: &Stored,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO layer_image (customer, sha256, size, created) VALUES (?, ?, ?, ?)
             ON CONFLICT DO NOTHING",
        )
        .bind(customer.as_str())
        .bind(image.sha256.to_string())
        .bind(int(image.size)?)
        .bind(micros(now))
        .execute(self.db())
        .await?;
        Ok(())
    }
}

fn layer(row: (i64, String, String, i64)) -> Result<LayerRecord, StoreError> {
    let (version, document, sha256, size) = row;
    Ok(LayerRecord {
        version: number("layer version", version)?,
        document: unjson("layer", &document)?,
        image: Stored {
            sha256: parse("layer digest", &sha256)?,
            size: number("layer size", size)?,
        },
    })
}
