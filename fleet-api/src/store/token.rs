//! Bearer tokens, as hashes only.

use jiff::Timestamp;
use model::Digest;

use super::{Session, StoreError, corrupt, micros};

/// Who holds a bearer token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// Operations and support.
    Operator,
    /// A provisioner.
    Factory,
    /// An offsite destination.
    Vault,
}

impl Holder {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Operator, Self::Factory, Self::Vault];

    /// The word for it, which is also the token's file name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Factory => "factory",
            Self::Vault => "vault",
        }
    }
}

/// A token as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// SHA-256 of the token's text.
    pub hash: Digest,
    /// Who holds it.
    pub holder: Holder,
}

impl Session {
    /// Returns all tokens.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn tokens(&mut self) -> Result<Vec<TokenRecord>, StoreError> {
        let rows: Vec<(Vec<u8>, String)> = sqlx::query_as("SELECT hash, holder FROM token")
            .fetch_all(self.db())
            .await?;
        rows.into_iter()
            .map(|(hash, holder)| {
                let hash = <[u8; 32]>::try_from(hash)
                    .map_err(|_| corrupt("token", "expected 32 bytes"))?;
                let holder = Holder::ALL
                    .into_iter()
                    .find(|known| known.word() == holder)
                    .ok_or_else(|| corrupt("token holder", &holder))?;
                Ok(TokenRecord {
                    hash: hash.into(),
                    holder,
                })
            })
            .collect()
    }

    /// Adds a token.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn insert_token(
        &mut self,
        token: &TokenRecord,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO token (hash, holder, created) VALUES (?, ?, ?)")
            .bind(token.hash.as_bytes().as_slice())
            .bind(token.holder.word())
            .bind(micros(now))
            .execute(self.db())
            .await?;
        Ok(())
    }
}
