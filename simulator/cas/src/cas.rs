//! What CAS decides: who may upload and read which session, which program gets which configuration, which tag is fresh.
//! Each decision is one transaction with its entry in the audit log; refusals are answers, not errors.

mod access;
mod certificates;
mod evidence;
mod jwt;
mod release;
mod secrets;
mod sessions;
mod values;
mod volumes;

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use scone_protocol::hex;

use crate::audit::{self, Event, Record};
use crate::clock::{Clock, ClockError};
use crate::session::Kind;
use crate::store::{self, Store, StoreError};
use crate::tls::{self, Identity};
pub use release::{Access, Claim};
pub use sessions::{ClientRefusal, SessionAnswer};

/// The database's name in the data directory.
pub const DATABASE: &str = "cas.db";

/// CAS itself cannot work. Its peers are told no more than that.
#[derive(Debug, thiserror::Error)]
pub enum CasError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The clock.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// CAS's own key could not be made or read.
    #[error(transparent)]
    Identity(#[from] tls::TlsError),
    /// A session could not be written as YAML.
    #[error("cannot write a session down: {0}")]
    Yaml(#[from] yaml_serde::Error),
    /// A key or certificate of a session.
    #[error("cannot make a session's key or certificate: {0}")]
    Certificate(String),
}

impl From<rusqlite::Error> for CasError {
    fn from(error: rusqlite::Error) -> CasError {
        StoreError::from(error).into()
    }
}

/// Why a decision ended early: a refusal, which is an answer, or a failure of CAS itself.
enum Stop<R> {
    Refused(R),
    Failed(CasError),
}

impl<R, E: Into<CasError>> From<E> for Stop<R> {
    fn from(error: E) -> Stop<R> {
        Stop::Failed(error.into())
    }
}

/// Separates the two, so that a refusal's traces (a consumed code, a line in the log) are kept and a failure's undone.
fn settle<T, R>(result: Result<T, Stop<R>>) -> Result<Result<T, R>, CasError> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Stop::Refused(refusal)) => Ok(Err(refusal)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Shorthand for a refusal.
fn refuse<T, R>(refusal: R) -> Result<T, Stop<R>> {
    Err(Stop::Refused(refusal))
}

/// CAS: its memory and its clock.
pub struct Cas {
    data: PathBuf,
    store: Store,
    clock: Clock,
}

impl Cas {
    /// Opens CAS's memory in the data directory, making it if it is not there.
    pub fn open(data: &Path, clock: Clock) -> Result<Cas, CasError> {
        clock.now()?;
        Ok(Cas { data: data.to_owned(), store: Store::open(&data.join(DATABASE))?, clock })
    }

    /// CAS's own key and certificate, made at the first start.
    pub fn identity(&self) -> Result<Identity, CasError> {
        let pem = self
            .store
            .write(|tx| store::identity(tx, || Ok::<_, CasError>(Identity::generate("scone-sim CAS")?.to_pem())))?;
        Ok(Identity::from_pem(&pem)?)
    }

    /// Records that CAS starts or stops. The entry holds a random number: if CAS is put back to an older state, its log differs
    /// from then on, even if it does the same things at the same times.
    pub fn record(&self, event: Event) -> Result<(), CasError> {
        let now = self.clock.now()?;
        let outcome = format!("accepted: {}", hex(&store::draw(Kind::Binary, 8)?));
        self.store.write(|tx| {
            let record = Record { event, subject: "", who: "", measurement: "", outcome: &outcome };
            Ok(audit::append(tx, now, &record)?)
        })
    }

    /// What an export of the audit log is compared with. SCONE tells only CAS's owner. The simulated CAS has no owner, and
    /// hashes give nothing away.
    pub fn checkpoint(&self, sequence: i64) -> Result<audit::Checkpoint, CasError> {
        Ok(audit::checkpoint(&self.look()?, &self.data, sequence)?)
    }

    /// Moves the older entries of the audit log out of the database, if there are many.
    pub fn rotate_log(&self) -> Result<(), CasError> {
        let identity = self.identity()?;
        while let Some(end) = audit::write_part(&self.look()?, &self.data, &identity)? {
            self.store.write::<_, CasError>(|tx| Ok(audit::forget(tx, end)?))?;
        }
        Ok(())
    }

    /// A view of the database that keeps nobody waiting.
    fn look(&self) -> Result<Connection, CasError> {
        Ok(Store::open_read_only(&self.data.join(DATABASE))?)
    }
}
