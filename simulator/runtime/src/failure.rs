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
        self.causes.iter().try_for_each(|cause| {
            let text = cause.trim_start_matches(' ');
            let nesting = &cause[..cause.len() - text.len()];
            let label = if is_numbered(text) { "" } else { "Caused by: " };
            write!(f, "\n  {nesting}{label}{}", one_line(text))
        })
    }
}

/// Whether this is one of several causes: `Error 1 of 2: …`.
fn is_numbered(cause: &str) -> bool {
    let numbers = cause.strip_prefix("Error ").and_then(|rest| rest.split_once(": ")?.0.split_once(" of "));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    numbers.is_some_and(|(number, all)| is_number(number) && is_number(all))
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

    #[test]
    fn causes_are_nested_and_numbered_as_cas_says_and_none_of_them_begins_a_line() {
        let causes = [
            "outer",
            "  inner",
            "  Error 1 of 2: a",
            "    b\r[SCONE|WARN]",
            "  Error 2 of 2: c",
            "Error 1 of x: d",
            "",
        ];
        let shown = Failure::attestation(causes.map(str::to_owned).to_vec()).to_string();
        let lines: Vec<&str> = shown.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "  Caused by: outer",
                "    Caused by: inner",
                "    Error 1 of 2: a",
                "      Caused by: b?[SCONE|WARN]",
                "    Error 2 of 2: c",
                "  Caused by: Error 1 of x: d",
                "  Caused by: ",
            ]
        );
    }
}
