//! What a start that went wrong says: the answers of SCONE's runtime and CAS, of otpqr, and of the host, in one table. Only CAS,
//! the volume and the once-marker refuse; everything else is something that the host lacks.

use crate::tool::{Finished, NO_LAS};

/// What a start ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    CodeUsed,
    CodeInvalid,
    /// The simulator slows guessing down.
    TooManyCodes,
    /// The volume is not the one CAS knows, or not in its latest state.
    Volume,
    VolumeInUse,
    NoChannelToCas,
    /// CAS cannot work: its disk is full, say.
    CasFailed,
    Measurement,
    /// It is not signed for production, and is to run so.
    Unsigned,
    /// Anything else that CAS refuses.
    Refused,
    /// Anything else that SCONE's runtime reports: it lacks something on this host.
    Host,
    /// otpqr: the once-marker is there already.
    MarkerPresent,
    /// otpqr: its environment, which the policy sets.
    Environment,
    /// otpqr: its output exists or cannot be written.
    Output,
    /// docker: the container was not started.
    NotStarted,
    /// It ended in no way that is known.
    Ended,
}

/// What SCONE's runtime says of a program that is not signed, and is to run in production mode.
pub(crate) const UNSIGNED: &str = "Cannot sign production enclave";

/// SCONE's words behind `[SCONE|FATAL]`, the simulator's where SCONE documents none. The first that is found counts.
const WORDS: &[(&str, Answer)] = &[
    ("One-time Password was already used", Answer::CodeUsed),
    ("One-time Password is invalid", Answer::CodeInvalid),
    ("Too many wrong One-time Passwords", Answer::TooManyCodes),
    ("suspected replay attack", Answer::Volume),
    ("file system protection file", Answer::Volume),
    ("Verification of file chunk", Answer::Volume),
    ("is not part of this volume", Answer::Volume),
    ("was sealed by another version", Answer::Volume),
    ("the volume is in use", Answer::VolumeInUse),
    ("Unexpected enclave measurement", Answer::Measurement),
    ("CAS failed, see its log", Answer::CasFailed),
    (UNSIGNED, Answer::Unsigned),
];

/// What SCONE's runtime reports where CAS said no.
const REFUSALS: &[&str] = &["Attestation failed", "CAS did not take the volume's new tag"];

/// What SCONE's runtime reports where the program never ran.
const NOT_STARTED: &[&str] = &["Could not initialize enclave state", "Could not create enclave", UNSIGNED];

/// otpqr's exit codes, and docker's own.
const CODES: &[(i32, Answer)] = &[
    (10, Answer::MarkerPresent),
    (11, Answer::Environment),
    (12, Answer::Output),
    (125, Answer::NotStarted),
    (126, Answer::NotStarted),
    (127, Answer::NotStarted),
];

impl Answer {
    /// Judges a start that did not do what it was started for.
    pub fn of(finished: &Finished) -> Answer {
        // Where there is no enclave, it is the starter that says so.
        let is_starter = ["[SCONE|ERROR]", "[Error]"].iter().any(|mark| finished.stderr.contains(mark))
            && Answer::is_of_start(finished);
        if is_starter || finished.stderr.contains("[SCONE|FATAL]") {
            let reason = finished.reason();
            let known = WORDS.iter().find(|(words, _)| reason.contains(words)).map(|(_, answer)| *answer);
            // The reason behind it may be the network's own.
            let unreachable = finished.stderr.contains("Failed to establish an encrypted channel to CAS");
            let refused = REFUSALS.iter().any(|words| finished.stderr.contains(words));
            return match known {
                Some(known) => known,
                None if unreachable => Answer::NoChannelToCas,
                None if refused && !lacks_evidence(&finished.stderr) => Answer::Refused,
                None => Answer::Host,
            };
        }
        let known = CODES.iter().find(|(code, _)| finished.code == Some(*code));
        known.map_or(Answer::Ended, |(_, answer)| *answer)
    }

    /// Whether SCONE's runtime says that it did not start the program, rather than what became of it.
    pub fn is_of_start(finished: &Finished) -> bool {
        NOT_STARTED.iter().any(|words| finished.stderr.contains(words))
    }

    /// Whether CAS or the volume refused.
    pub fn is_refusal(self) -> bool {
        matches!(self, Answer::Volume | Answer::Measurement | Answer::Refused) || self.is_about_code()
    }

    /// Whether the code was refused.
    pub fn is_about_code(self) -> bool {
        matches!(self, Answer::CodeUsed | Answer::CodeInvalid | Answer::TooManyCodes)
    }
}

/// Whether an enclave reached no LAS, and so had no evidence that CAS could have refused: nothing else is said of why.
pub fn lacks_evidence(stderr: &str) -> bool {
    let is_explained = |words: &&str| stderr.contains(*words);
    let looked_at = ["quote verification failed", "One-time Password"];
    stderr.contains(NO_LAS) && !WORDS.iter().map(|(words, _)| words).chain(&looked_at).any(is_explained)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: i32, stderr: &str) -> Answer {
        Answer::of(&Finished { code: Some(code), stdout: String::new(), stderr: stderr.to_owned() })
    }

    #[test]
    fn the_runtime_s_words_count_before_the_program_s_code() {
        let fatal = |cause: &str| format!("[SCONE|FATAL] init.c:1: failed\n  Caused by: {cause}\n");
        assert_eq!(answer(10, &fatal("One-time Password is invalid")), Answer::CodeInvalid);
        let attested = |cause: &str| fatal(cause).replacen(" failed", " Attestation failed", 1);
        assert_eq!(answer(134, &attested("something new")), Answer::Refused);
        assert_eq!(answer(134, &attested("CAS failed, see its log")), Answer::CasFailed);
        assert_eq!(answer(134, &fatal("No space left on device")), Answer::Host);
        assert_eq!(answer(134, "[SCONE|FATAL] Could not create enclave: Error opening SGX device\n"), Answer::Host);
        let channel = fatal("Failed to establish an encrypted channel to CAS\n  Caused by: Connection refused");
        assert_eq!(answer(134, &channel), Answer::NoChannelToCas);
    }

    #[test]
    fn without_the_runtime_s_frame_its_words_are_the_program_s_own() {
        assert_eq!(answer(10, "One-time Password is invalid"), Answer::MarkerPresent);
        assert_eq!(answer(125, "docker: no such image"), Answer::NotStarted);
        assert_eq!(answer(1, ""), Answer::Ended);
    }
}
