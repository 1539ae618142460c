//! What doctor finds: one line each, with the command that mends it.

use serde::Serialize;

use crate::failure::Failure;
use crate::hint::pasteable;

/// In the order in which they are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Wrong,
    Unknown,
    Ok,
}

#[derive(Debug, Serialize)]
pub struct Finding {
    pub result: Verdict,
    pub check: &'static str,
    pub finding: String,
    /// The command that mends it, run by a shell where this script was called; none if that is not a command's to do.
    pub mend: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, finding: impl Into<String>) -> Finding {
        Finding { result: Verdict::Ok, check, finding: finding.into(), mend: None }
    }

    pub fn wrong(check: &'static str, finding: impl Into<String>, mend: impl Into<Option<String>>) -> Finding {
        let mend: Option<String> = mend.into();
        let mend = mend.map(|commands| commands.split(" && ").map(pasteable).collect::<Vec<_>>().join(" && "));
        Finding { result: Verdict::Wrong, check, finding: finding.into(), mend }
    }

    pub fn unknown(check: &'static str, finding: impl Into<String>) -> Finding {
        Finding { result: Verdict::Unknown, check, finding: finding.into(), mend: None }
    }

    /// What a check of another script refuses with is a finding here.
    pub fn refused(check: &'static str, failure: Failure) -> Finding {
        let (finding, mend) = failure.into_finding();
        Finding::wrong(check, finding, mend)
    }

    pub fn is_ok(&self) -> bool {
        self.result == Verdict::Ok
    }

    pub fn line(&self) -> String {
        let result = match self.result {
            Verdict::Ok => "ok",
            Verdict::Wrong => "wrong",
            Verdict::Unknown => "?",
        };
        let mend = self.mend.as_ref().map_or_else(String::new, |command| format!(" -> {command}"));
        format!("{result:<6}{:<10}{}{mend}", self.check, self.finding)
    }
}
