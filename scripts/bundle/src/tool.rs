//! The programs of the host: found with `which`, run with `duct`, never through a shell. duct's own errors would print the whole
//! argument vector and drop captured standard error, so every run is `unchecked` and judged here.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use duct::unix::HandleExt;
use duct::{Expression, Handle};
use rustix::process::Signal;

use crate::failure::{Concern, Exit, Failure};
use crate::interrupt;
use crate::policy::deceives;

#[derive(Debug, thiserror::Error)]
enum ToolError {
    #[error("'{name}' ({path}) could not be started: {cause}")]
    NotStarted { name: &'static str, path: String, cause: io::Error },
}

impl Concern for ToolError {
    fn exit(&self) -> Exit {
        Exit::Precondition
    }
}

/// A program of the host.
#[derive(Debug)]
pub struct Tool {
    pub name: &'static str,
    pub path: PathBuf,
}

/// What a program printed and how it ended. A code in it is masked.
#[derive(Debug)]
pub struct Finished {
    /// `None`: ended by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Tool {
    /// Looks in `first`, then on `PATH`.
    pub fn find(name: &'static str, first: Option<&Path>) -> Option<Tool> {
        let beside = first.and_then(|dir| which::which_in(dir.join(name), None::<&str>, dir).ok());
        let path = beside.or_else(|| which::which(name).ok())?;
        Some(Tool { name, path })
    }

    /// Runs it until it ends, or until an interruption ends it.
    pub fn run(&self, args: &[OsString], environment: &[(&str, &str)]) -> Result<Finished, Failure> {
        self.start(args, environment)?.finish()
    }

    /// Starts it, to be waited for.
    pub fn start(&self, args: &[OsString], environment: &[(&str, &str)]) -> Result<Running<'_>, Failure> {
        self.running(self.expression(args, environment, None))
    }

    /// The same with streams of its own: what it prints is whosoever's these are.
    pub fn start_with(
        &self,
        args: &[OsString],
        environment: &[(&str, &str)],
        streams: Streams,
    ) -> Result<Running<'_>, Failure> {
        let is_apart = streams.is_apart;
        let expression = self.expression(args, environment, Some(streams));
        self.running(if is_apart { apart(expression) } else { expression })
    }

    /// Starts it, to be waited for. Ctrl-C does not reach it from the terminal.
    pub fn start_apart(
        &self,
        args: &[OsString],
        environment: &[(&str, &str)],
        streams: Option<Streams>,
    ) -> Result<Running<'_>, Failure> {
        match streams {
            None => self.running(apart(self.expression(args, environment, None))),
            Some(streams) => self.start_with(args, environment, Streams { is_apart: true, ..streams }),
        }
    }

    fn running(&self, expression: Expression) -> Result<Running<'_>, Failure> {
        let handle = expression.start().map_err(|cause| self.not_started(cause))?;
        Ok(Running { tool: self, handle })
    }

    /// Runs it to its end even after Ctrl-C, which does not reach it from the terminal.
    pub fn run_through(&self, args: &[OsString]) -> Result<Finished, Failure> {
        self.finished(apart(self.expression(args, &[], None)).run())
    }

    /// `environment` is added to the script's own, from which `SCONE_CONFIG_ID` is taken: the `scone` command line is itself a
    /// SCONE program, and nobody but the one service started here may see a code. With `SCONE_HASH` it would not run at all, with `SCONE_VERSION` print more than it is asked for.
    fn expression(&self, args: &[OsString], environment: &[(&str, &str)], streams: Option<Streams>) -> Expression {
        let mut command = duct::cmd(&self.path, args);
        for (name, value) in environment {
            command = command.env(name, value);
        }
        // duct: what is called first is applied last, so this takes away the caller's and not `environment`'s.
        command = command.env_remove("SCONE_CONFIG_ID").env_remove("SCONE_HASH").env_remove("SCONE_VERSION");
        let command = match streams {
            None => command.stdin_null().stdout_capture().stderr_capture(),
            Some(streams) => command.stdin_file(streams.stdin).stdout_file(streams.stdout).stderr_file(streams.stderr),
        };
        command.unchecked()
    }

    fn finished(&self, output: io::Result<Output>) -> Result<Finished, Failure> {
        let output = output.map_err(|cause| self.not_started(cause))?;
        Ok(Finished {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: visible(&mask(&without_colours(&String::from_utf8_lossy(&output.stderr)))),
        })
    }

    fn not_started(&self, cause: io::Error) -> ToolError {
        ToolError::NotStarted { name: self.name, path: self.path.display().to_string(), cause }
    }
}

/// What a program reads and prints, where that is not for its caller to judge.
pub struct Streams {
    pub stdin: File,
    pub stdout: File,
    pub stderr: File,
    /// It is no part of what the terminal's keys reach.
    pub is_apart: bool,
}

/// In a process group of its own.
fn apart(expression: Expression) -> Expression {
    expression.before_spawn(|command| {
        command.process_group(0);
        Ok(())
    })
}

/// A program that was started.
pub struct Running<'a> {
    tool: &'a Tool,
    handle: Handle,
}

impl Running<'_> {
    /// Whether it has ended. (What went wrong with that, [`Running::finish`] tells.)
    pub fn has_ended(&self) -> bool {
        !matches!(self.handle.try_wait(), Ok(None))
    }

    /// Its process, or the first of them.
    pub fn id(&self) -> Option<u32> {
        self.handle.pids().first().copied()
    }

    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.handle.send_signal(signal.as_raw())
    }

    /// Waits until it ends, whatever else happens.
    pub fn finish_through(self) -> Result<Finished, Failure> {
        self.tool.finished(self.handle.into_output())
    }

    /// Waits until it ends, or until an interruption ends it.
    pub fn finish(self) -> Result<Finished, Failure> {
        let Running { tool, handle } = self;
        let wait = || {
            // Ctrl-C reaches the child from the terminal; what was sent to this process alone does not.
            while handle.wait_timeout(Duration::from_millis(100))?.is_none() {
                if interrupt::is_interrupted() {
                    handle.send_signal(Signal::TERM.as_raw())?;
                    break;
                }
            }
            handle.into_output()
        };
        let output = wait();
        interrupt::check()?;
        tool.finished(output)
    }
}

/// The name of whoever runs this: as the environment has it or, where no shell has set that, the account database.
pub fn login_name() -> Option<String> {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let known = || {
        let named = Tool::find("id", None)?.run(&["-un".into()], &[]).ok()?;
        named.success().then(|| named.stdout.trim_end_matches('\n').to_owned())
    };
    set("LOGNAME").or_else(|| set("USER")).or_else(known)
}

/// SCONE's runtime says so in a warning, and goes on without (reference/scone.md 5.3).
pub(crate) const NO_LAS: &str = "Unable to connect to LAS";

/// Whether SCONE names one of several causes in this line.
fn is_numbered(line: &str) -> bool {
    let numbers = line.strip_prefix("Error ").and_then(|rest| rest.split_once(": ")?.0.split_once(" of "));
    numbers.is_some_and(|(number, all)| number.parse::<u32>().is_ok() && all.parse::<u32>().is_ok())
}

impl Finished {
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// The one line that says why: the innermost `Caused by:`, or the last of several causes (`Error 2 of 2: …`), else the line
    /// in which SCONE's runtime or docker begins to complain (both go on after it), else the last line of standard error.
    pub fn reason(&self) -> String {
        let lines = || {
            let lines = self.stderr.lines().map(str::trim);
            lines.filter(|line| !line.is_empty() && !line.starts_with("hint: "))
        };
        let last = |prefix: &str| lines().filter_map(|line| line.strip_prefix(prefix)).next_back();
        let cause = |line| str::strip_prefix(line, "Caused by: ").or(is_numbered(line).then_some(line));
        let begins = ["[SCONE|FATAL] ", "[SCONE|ERROR] ", "docker: ", "ERROR: ", "scone-sim: error: "];
        let complaint = || begins.into_iter().find_map(last);
        let innermost = lines().filter_map(cause).next_back();
        // What a colon announces stands in a line of its own (`Enclave hash does not match expectation:`).
        let announced = innermost.filter(|cause| cause.ends_with(':')).and_then(|cause| {
            lines().skip_while(|line| !line.ends_with(cause)).nth(1).map(|announced| format!("{cause} {announced}"))
        });
        let cause = announced.or_else(|| {
            let cause = innermost.or_else(complaint).or_else(|| lines().next_back());
            cause.map(str::to_owned)
        });
        // What SCONE advises, but for where the enclave looked for CAS.
        let notes =
            lines().filter_map(|line| line.strip_prefix("Note: ")).filter(|note| !note.starts_with("Connecting"));
        match (cause, self.code) {
            (Some(cause), _) => notes.fold(cause, |cause, note| format!("{cause} ({note})")),
            (None, Some(code)) => format!("it ended with status {code} and said nothing"),
            (None, None) => "it was ended by a signal".to_owned(),
        }
    }

    /// The reason, behind what SCONE's runtime gave up at.
    pub fn whole_reason(&self) -> String {
        let reason = self.reason();
        let headline = self.stderr.lines().find_map(|line| line.strip_prefix("[SCONE|FATAL] "));
        let what = headline.map(|line| line.rsplit_once("enclave state: ").map_or(line, |(_, what)| what));
        let warned = self.stderr.lines().find_map(|line| line.find(NO_LAS).map(|at| &line[at..]));
        let warned = warned.map_or(String::new(), |warned| format!(" ({warned})"));
        match what {
            Some(what) if !reason.contains(what) => format!("{what}: {reason}{warned}"),
            _ => reason + &warned,
        }
    }
}

/// Before SCONE 6.0.3 what its command line prints may be coloured, hashes too (reference/scone.md 10).
pub(crate) fn without_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| {
        // Parameters, and one letter.
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        let mut rest = rest.chars();
        plain + if rest.next() == Some('m') { rest.as_str() } else { part }
    })
}

/// SCONE's runtime prints `… using service ID session/service@code`.
fn mask(stderr: &str) -> String {
    let masked = stderr.split_inclusive('\n').map(|line| match (line.contains("service ID"), line.find('@')) {
        (true, Some(at)) => format!("{}@******\n", &line[..at]),
        _ => line.to_owned(),
    });
    masked.collect()
}

/// What it says may be a stranger's words, CAS's say, and goes to a terminal: it moves no cursor there and hides nothing.
pub(crate) fn visible(stderr: &str) -> String {
    let kept = |c: char| matches!(c, '\n' | '\t') || !(c.is_control() || deceives(c));
    stderr.chars().map(|c| if kept(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(stderr: &str) -> Finished {
        Finished { code: Some(134), stdout: String::new(), stderr: stderr.to_owned() }
    }

    #[test]
    fn a_code_in_what_a_program_says_is_masked() {
        let said = "Note: Connecting to CAS a:1 using service ID n/otpqr@123456\nmail a@b.example\n";
        assert_eq!(mask(said), "Note: Connecting to CAS a:1 using service ID n/otpqr@******\nmail a@b.example\n");
    }

    #[test]
    fn what_a_program_says_moves_no_cursor_and_hides_nothing() {
        assert_eq!(visible("a\tb\u{1b}[2Jc\rd\u{202e}e\nf"), "a\tb\u{fffd}[2Jc\u{fffd}d\u{fffd}e\nf");
    }

    #[test]
    fn colours_are_taken_away_and_nothing_else() {
        assert_eq!(without_colours("\u{1b}[1;32mab\u{1b}[0m\n"), "ab\n");
        assert_eq!(without_colours("a[0mb"), "a[0mb");
        assert_eq!(without_colours("\u{1b}[2Ja\u{1b}["), "2Ja");
    }

    #[test]
    fn the_reason_is_the_innermost_cause_else_the_first_complaint_else_the_last_line() {
        assert_eq!(finished("[SCONE|FATAL] failed\n  Caused by: a\n  Caused by: b\nmore\n").reason(), "b");
        let several = "[SCONE|FATAL] failed\n    Caused by: none\n    Error 1 of 2: a\n    Error 2 of 2: b\nNote: Connecting to CAS\n";
        assert_eq!(finished(several).reason(), "Error 2 of 2: b");
        let announced = "Error: failed\nCaused by: Hash does not match expectation:\n1234\n";
        assert_eq!(finished(announced).reason(), "Hash does not match expectation: 1234");
        let advised = "[SCONE|FATAL] failed\n  Caused by: weak\nNote: Do that\nNote: Connecting to CAS at a\n";
        assert_eq!(finished(advised).reason(), "weak (Do that)");
        assert_eq!(finished("docker: no such image\nSee 'docker run --help'.\n").reason(), "no such image");
        assert_eq!(finished("one\ntwo\n\n").reason(), "two");
        let frame = "[SCONE|FATAL] a.c:1: Could not initialize enclave state: Opening failed\n  Caused by: full\n";
        assert_eq!(finished(frame).whole_reason(), "Opening failed: full");
        assert_eq!(finished("[SCONE|FATAL] No device\n").whole_reason(), "No device");
        assert_eq!(finished("").reason(), "it ended with status 134 and said nothing");
        assert_eq!(Finished { code: None, ..finished("") }.reason(), "it was ended by a signal");
    }
}
