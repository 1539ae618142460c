//! The measurement: SHA-256 over parts, each with its length before it, so that parts cannot run together.

use std::env;
use std::fs::File;
use std::io::{self, Read};

use ring::digest::{Context, SHA256};

use scone_protocol::hex;

/// The runtime's own binary. The kernel keeps it from being written while it runs.
pub const OWN: &str = "/proc/self/exe";

/// The settings that change MRENCLAVE on SCONE (`reference/scone.md` section 5.1) and so change the measurement here.
/// Assumption: as texts; `64M` and `65536K` differ.
const SETTINGS: [&str; 3] = ["SCONE_HEAP", "SCONE_STACK", "SCONE_ALLOW_DLOPEN"];

/// A measurement in the making.
pub struct Measurement(Context);

impl Measurement {
    /// Starts with `label`, which says what the parts are, and the runtime's own binary.
    pub fn start(label: &str) -> io::Result<Measurement> {
        let mut measurement = Measurement(Context::new(&SHA256));
        measurement.add(label.as_bytes());
        let own = File::open(OWN)?;
        let length = own.metadata()?.len();
        measurement.add_file(own, length, |_| Ok(()))?;
        Ok(measurement)
    }

    /// Adds a part.
    pub fn add(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    /// Adds the `length` bytes of `file` as a part, piece by piece (reading a large file whole costs page faults), and hands each
    /// piece to `keep`.
    ///
    /// # Errors
    /// Those of reading and of `keep`; `UnexpectedEof` if the file is shorter.
    pub fn add_file(
        &mut self,
        file: impl Read,
        length: u64,
        mut keep: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.0.update(&length.to_be_bytes());
        let (mut piece, mut file, mut left) = (vec![0; length.min(64 * 1024) as usize], file.take(length), length);
        while left > 0 {
            match file.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    self.0.update(&piece[..count]);
                    keep(&piece[..count])?;
                    left = left.saturating_sub(count as u64);
                }
            }
        }
        Ok(())
    }

    /// Adds name and value of each measured setting that the caller's environment has.
    pub fn add_settings(&mut self) {
        for name in SETTINGS {
            if let Some(value) = env::var_os(name) {
                self.add(name.as_bytes());
                self.add(value.as_encoded_bytes());
            }
        }
    }

    /// 64 lower-case hex digits: what a policy's `mrenclave` names.
    pub fn finish(self) -> String {
        hex(self.0.finish().as_ref())
    }
}
