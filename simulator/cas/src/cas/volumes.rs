//! What CAS decides about volumes: whose key and tag a service gets, and when a tag moves.

use rusqlite::Connection;
use scone_protocol::{ReadTag, Secret, SetTag, UpdatePolicy, VolumeGrant, hex, unhex};

use super::release::Refusal;
use super::secrets::Secrets;
use super::{Cas, CasError, Stop, refuse, settle};
use crate::audit::{self, Event, Record, volume_subject};
use crate::session::{Mount, Session, VolumeImport};
use crate::store::{self, StoreError, StoredVolume};

impl Cas {
    /// Moves a volume's tag, or gives the lines of SCONE's error frame.
    pub fn set_tag(&self, request: &SetTag) -> Result<Result<(), Vec<String>>, CasError> {
        let subject = volume_subject(&request.session, &request.volume);
        let moved = self.decide_tag(Event::VolumeTagUpdated, &subject, |tx| {
            set_tag(tx, request)?;
            Ok(Some(request.new.clone()))
        });
        Ok(moved?.map(|_| ()))
    }

    /// The tag that a volume has now (`None`: none yet), or the lines of SCONE's error frame. `exporter` and `nonce`: the
    /// connection on which it was asked.
    pub fn read_tag(
        &self,
        request: &ReadTag,
        exporter: &[u8; 32],
        nonce: &str,
    ) -> Result<Result<Option<String>, Vec<String>>, CasError> {
        let subject = volume_subject(&request.session, &request.volume);
        self.decide_tag(Event::VolumeTagRead, &subject, |tx| {
            let is_authorised = |key: &[u8]| request.is_authorised_by(key, exporter, nonce);
            Ok(proven(tx, &request.session, &request.volume, is_authorised)?.tag)
        })
    }

    /// Decides about a volume's tag and records it. The tag is the one that the volume has then.
    fn decide_tag(
        &self,
        event: Event,
        subject: &str,
        decide: impl FnOnce(&Connection) -> Result<Option<String>, Stop<Refusal>>,
    ) -> Result<Result<Option<String>, Vec<String>>, CasError> {
        let now = self.clock.now()?;
        self.store.write(|tx| {
            let result = settle(decide(tx))?;
            let outcome = match &result {
                Ok(tag) => format!("accepted: {}", tag.as_deref().unwrap_or("none yet")),
                Err(refusal) => format!("refused: {}", refusal.reason),
            };
            audit::append(tx, now, &Record { event, subject, who: "", measurement: "", outcome: &outcome })?;
            Ok(result.map_err(|refusal| refusal.causes))
        })
    }
}

/// The key and tag of a mounted volume, here or where it is imported from; both sides must agree.
pub(super) fn grant(secrets: &Secrets<'_>, session: &Session, mount: &Mount) -> Result<VolumeGrant, Stop<Refusal>> {
    let Mount { name, path, update_policy } = mount;
    let declared =
        session.volume(name).ok_or_else(|| StoreError::Damaged(format!("volume '{name}' is not declared")))?;
    let (owner, name, update_policy) = match &declared.import {
        None => (session.name.clone(), name.clone(), *update_policy),
        Some(import) => imported(secrets, session, import, *update_policy)?,
    };
    let volume = store::volume(secrets.tx, &owner, &name)?
        .ok_or_else(|| StoreError::Damaged(format!("volume '{name}' has no key")))?;
    Ok(VolumeGrant {
        session: owner,
        name,
        path: path.clone(),
        key: Secret::new(hex(&volume.key)),
        tag: volume.tag,
        update_policy,
    })
}

/// An imported volume: its owner, its name there, and what becomes of changes. That is `wanted`, if the owner allows it.
fn imported(
    secrets: &Secrets<'_>,
    session: &Session,
    import: &VolumeImport,
    wanted: UpdatePolicy,
) -> Result<(String, String, UpdatePolicy), Stop<Refusal>> {
    let (from, there) = (&import.session, &import.volume);
    let owner = secrets.owner(from, import.session_hash.as_deref())?;
    let exported = owner.iter().flat_map(|owner| &owner.session.volumes).find_map(|volume| {
        let meant = volume.export.iter().find(|export| {
            let called = export.volume_alias.as_ref().unwrap_or(&volume.name);
            called == there && secrets.is_meant(&export.to, session)
        })?;
        Some((volume.name.clone(), meant.update_policy))
    });
    let (original, most) = exported.ok_or_else(|| {
        Refusal::misconfigured(format!("Session '{from}' does not export volume '{there}' to '{}'", session.name))
    })?;
    // Section 2.7: an ephemeral export makes the import ephemeral; more than was granted is an error.
    if most == UpdatePolicy::Ephemeral {
        return Ok((from.clone(), original, UpdatePolicy::Ephemeral));
    }
    if wanted > most {
        let problem = format!("Session '{from}' does not allow volume '{there}' the update policy it is used with");
        return Err(Refusal::misconfigured(problem));
    }
    Ok((from.clone(), original, wanted))
}

fn set_tag(tx: &Connection, request: &SetTag) -> Result<(), Stop<Refusal>> {
    let volume = proven(tx, &request.session, &request.volume, |key| request.is_authorised_by(key))?;
    if unhex(&request.new).is_none_or(|tag| tag.len() != 16) {
        return no("The FSPF tag is not 32 lower-case hex digits", "malformed tag");
    }
    // The answer to an earlier request may have been lost: asking again is no replay.
    if volume.tag.as_deref() == Some(&request.new) {
        return Ok(());
    }
    if !store::move_tag(tx, &request.session, &request.volume, request.old.as_deref(), &request.new)? {
        return no("The FSPF tag is not fresh - suspected replay attack", "stale tag");
    }
    Ok(())
}

/// The volume, for a request that its key authorises. An unknown volume and a wrong key get the same answer (our own words).
fn proven(
    tx: &Connection,
    session: &str,
    volume: &str,
    is_authorised_by: impl FnOnce(&[u8]) -> bool,
) -> Result<StoredVolume, Stop<Refusal>> {
    match store::volume(tx, session, volume)?.filter(|volume| is_authorised_by(&volume.key)) {
        Some(volume) => Ok(volume),
        None => no("The volume's key was not proven", "unknown volume or wrong key"),
    }
}

fn no<T>(cause: &str, reason: &str) -> Result<T, Stop<Refusal>> {
    refuse(Refusal { causes: vec![cause.to_owned()], reason: reason.to_owned() })
}
