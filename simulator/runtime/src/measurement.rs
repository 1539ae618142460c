//! The measurement: SHA-256 over parts, each with its length before it, so that parts cannot run together.

use std::env;
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::panic::resume_unwind;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use ring::digest::{Context, Digest, SHA256};

use scone_protocol::hex;
use scone_protocol::signature::Settings;

/// The runtime's own binary. The kernel keeps it from being written while it runs.
pub const OWN: &str = "/proc/self/exe";

/// The settings that change MRENCLAVE on SCONE (`reference/scone.md` section 5.1) and so change the measurement here.
/// Assumption: as texts; `64M` and `65536K` differ.
const SETTINGS: [&str; 3] = ["SCONE_HEAP", "SCONE_STACK", "SCONE_ALLOW_DLOPEN"];

/// How much is hashed at a time, and how many such pieces may wait for it.
const PIECE: usize = 256 * 1024;
const WAITING: usize = 2;

/// A measurement in the making: a thread of its own hashes what has been added, while the caller reads and copies what comes
/// next. The thread ends with the measurement.
pub struct Measurement {
    piece: Vec<u8>,
    to_hash: SyncSender<Vec<u8>>,
    hashing: JoinHandle<Digest>,
}

impl Measurement {
    /// Starts with `label`, which says what the parts are, and the runtime's own binary.
    pub fn start(label: &str) -> io::Result<Measurement> {
        let (to_hash, pieces) = sync_channel::<Vec<u8>>(WAITING);
        let hash = move || {
            let mut context = Context::new(&SHA256);
            pieces.into_iter().for_each(|piece| context.update(&piece));
            context.finish()
        };
        let hashing = thread::Builder::new().spawn(hash)?;
        let mut measurement = Measurement { piece: Vec::with_capacity(PIECE), to_hash, hashing };
        measurement.add(label.as_bytes());
        let own = File::open(OWN)?;
        let length = own.metadata()?.len();
        measurement.add_file(own, length, |_| Ok(()))?;
        Ok(measurement)
    }

    /// Adds a part.
    pub fn add(&mut self, part: &[u8]) {
        self.append(&(part.len() as u64).to_be_bytes());
        self.append(part);
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
        self.append(&length.to_be_bytes());
        let mut file = file.take(length);
        while file.limit() > 0 {
            if self.piece.len() == PIECE {
                self.hand_over();
            }
            let before = self.piece.len();
            if file.by_ref().take((PIECE - before) as u64).read_to_end(&mut self.piece)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            keep(&self.piece[before..])?;
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

    /// Adds name and value of each setting that a program was signed for. Not the product or its version: the signer can raise
    /// that without another measurement.
    pub fn add_signed_settings(&mut self, settings: &Settings) {
        for (name, value) in settings.variables() {
            self.add(name.as_bytes());
            self.add(&value.to_be_bytes());
        }
    }

    /// 64 lower-case hex digits: what a policy's `mrenclave` names.
    pub fn finish(mut self) -> String {
        self.hand_over();
        drop(self.to_hash);
        hex(self.hashing.join().unwrap_or_else(|panic| resume_unwind(panic)).as_ref())
    }

    fn append(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(PIECE) {
            if self.piece.len() + bytes.len() > PIECE {
                self.hand_over();
            }
            self.piece.extend(bytes);
        }
    }

    fn hand_over(&mut self) {
        let piece = mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        // It fails only if the thread has panicked, and then `finish` does.
        let _ = self.to_hash.send(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hashed_is_what_was_read_and_kept_wherever_its_pieces_end() {
        let start = || Measurement::start("label").unwrap();
        let too_short = start().add_file(&b"short"[..], 6, |_| Ok(())).unwrap_err();
        assert_eq!(too_short.kind(), io::ErrorKind::UnexpectedEof);
        let full = start().add_file(&b"x"[..], 1, |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);

        let own = std::fs::read(OWN).unwrap();
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 7] {
            let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let (mut measurement, mut expected) = (start(), Context::new(&SHA256));
            for part in [b"label", &own[..], &content, b"between", &content] {
                expected.update(&(part.len() as u64).to_be_bytes());
                expected.update(part);
            }
            let mut kept: Vec<u8> = Vec::new();
            // What has been appended to the file since its length was asked does not count.
            let longer = [&content[..], b"appended"].concat();
            let keep = |piece: &[u8]| {
                kept.extend(piece);
                Ok(())
            };
            measurement.add_file(&longer[..], size as u64, keep).unwrap();
            measurement.add(b"between");
            measurement.add(&content);
            assert_eq!(measurement.finish(), hex(expected.finish().as_ref()), "{size}");
            assert!(kept == content, "{size}");
        }
    }
}
