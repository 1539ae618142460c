//! Secrets for everybody: what `GET /v1/values` tells (`reference/scone.md` sections 2.9 and 4.6).

use std::collections::BTreeMap;

use super::secrets::{Room, Secrets};
use super::{Cas, CasError, settle};
use crate::session::Kind;
use crate::store;

impl Cas {
    /// The public secrets of the active session of that name, or the one that is asked for: ascii as it is, a certificate as PEM.
    /// Assumption: binary as hex. One that cannot be had now is left out; so are all if they are larger than a configuration may be.
    pub fn public_values(&self, session: &str, secret: Option<&str>) -> Result<BTreeMap<String, String>, CasError> {
        let now = self.clock.now()?;
        self.store.write(|tx| {
            let mut values = BTreeMap::new();
            let (secrets, mut room) = (Secrets::new(tx, now), Room::of_a_configuration());
            let Some(session) = store::active(tx, session)?.map(|active| active.session) else { return Ok(values) };
            let is_asked_for = |name: &str| secret.is_none_or(|secret| secret == name);
            for secret in session.secrets.iter().filter(|secret| secret.export_public && is_asked_for(&secret.name)) {
                let format = if secret.kind == Some(Kind::Binary) { ":hex" } else { "" };
                let placeholder = format!("$$SCONE::{}{format}$$", secret.name);
                if let Ok(value) = settle(secrets.text(&session, &placeholder))? {
                    if settle(room.take(value.len()))?.is_err() {
                        return Ok(BTreeMap::new());
                    }
                    values.insert(secret.name.clone(), value);
                }
            }
            Ok(values)
        })
    }
}
