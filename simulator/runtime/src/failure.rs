//! Why a start ended, in the frame of SCONE's own errors, so that what an operator or a script learnt here holds there.

use std::fmt;

/// The exit status of a runtime that gave up: what a shell shows for SCONE's abort.
pub const EXIT_STATUS: u8 = 134;

/// An error that ends the run. Shown, it is SCONE's frame without the `Note:` line, which only `main` can write.
#[derive(Debug)]
pub struct Failure {
    headline: String,
    causes: Vec<String>,
}

impl Failure {
    /// SCONE's headline when CAS cannot be reached or says no.
    pub fn attestation(causes: Vec<String>) -> Failure {
        Failure::while_starting("Attestation failed", causes)
    }

    /// Anything else before the program runs. Own wording: SCONE documents no headline but "Attestation failed".
    pub fn while_starting(what: impl fmt::Display, causes: Vec<String>) -> Failure {
        // The place is that of SCONE 5.8, which scripts may match.
        let place = "src/process/init.c:302:__scone_prepare_secure_config()";
        Failure { headline: format!("{place}: Could not initialize enclave state: {what}"), causes }
    }

    /// A failure while the program was running. Own wording.
    pub fn while_running(what: impl fmt::Display, causes: Vec<String>) -> Failure {
        Failure { headline: format!("scone-run: {what}"), causes }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[SCONE|FATAL] {}", one_line(&self.headline))?;
        self.causes.iter().try_for_each(|cause| write!(f, "\n  Caused by: {}", one_line(cause)))
    }
}

/// Causes come from CAS and from file names: neither may forge a line or drive the terminal.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_shown_in_scones_frame_one_line_a_cause() {
        let failure = Failure::attestation(vec!["first".into(), "second\n[SCONE|FATAL] forged\x1b[2J".into()]);
        let frame = "[SCONE|FATAL] src/process/init.c:302:__scone_prepare_secure_config(): \
                     Could not initialize enclave state: Attestation failed\n  Caused by: first\n  \
                     Caused by: second?[SCONE|FATAL] forged?[2J";
        assert_eq!(failure.to_string(), frame);
    }
}
