//! Makes a program's streams its caller's while it runs - but for the code, which SCONE's runtime prints, and for the runtime's last
//! words, which are explained instead.
//!
//! At a terminal, a container has one of its own, and its engine's client talks to a pseudoterminal of ours: that client would
//! otherwise take the code for the program's input, and nobody would mask it.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{self, OptionalActions, Termios};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::code::Code;
use crate::failure::{Concern, Exit, Failure};
use crate::tool::{Finished, Running, Streams, visible};

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("the program's streams cannot be made: {0}")]
    NotMade(io::Error),
    #[error("the program's streams broke: {0}")]
    Broken(io::Error),
}

impl Concern for RelayError {
    fn exit(&self) -> Exit {
        Exit::Other
    }
}

/// A program's streams, seen from here.
pub struct Relay {
    /// What it says and we pass on: a pseudoterminal's other end, or a pipe's.
    said: File,
    /// Where that goes.
    out: Out,
    /// What its input is passed on to; `None`: it has its caller's own.
    input: Option<File>,
    /// Its terminal is a pseudoterminal of ours.
    is_terminal: bool,
}

#[derive(Clone, Copy)]
enum Out {
    Stdout,
    Stderr,
}

/// What a program's standard input is.
#[derive(Clone, Copy, PartialEq)]
pub enum Input {
    Callers,
    /// The code came from it.
    Nothing,
}

/// Whether a program that is started here has a terminal: all three streams are one.
pub fn at_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal() && io::stderr().is_terminal()
}

impl Relay {
    /// Of a container that has a terminal, or has none.
    pub fn of_container(input: Input) -> Result<(Relay, Streams), Failure> {
        let made = || -> io::Result<(Relay, Streams)> {
            if at_terminal() && input == Input::Callers {
                let (ours, theirs) = pseudoterminal()?;
                let streams =
                    Streams { stdin: theirs.try_clone()?, stdout: theirs.try_clone()?, stderr: theirs, is_apart: true };
                let input = Some(ours.try_clone()?);
                return Ok((Relay { said: ours, out: Out::Stdout, input, is_terminal: true }, streams));
            }
            let (said, stderr) = io::pipe()?;
            let stdout = dup(io::stdout())?;
            // What is typed before the code is asked for is no input.
            let (input, stdin) = match input {
                Input::Callers if io::stdin().is_terminal() => {
                    let (read, write) = io::pipe()?;
                    (Some(file(write)), file(read))
                }
                Input::Callers => (None, dup(io::stdin())?),
                Input::Nothing => (None, File::open("/dev/null")?),
            };
            let streams = Streams { stdin, stdout, stderr: file(stderr), is_apart: true };
            Ok((Relay { said: file(said), out: Out::Stderr, input, is_terminal: false }, streams))
        };
        Ok(made().map_err(RelayError::NotMade)?)
    }

    /// Of a program on this host: its terminal is its caller's, but what it complains of comes by here.
    pub fn natively(input: Input) -> Result<(Relay, Streams), Failure> {
        let made = || -> io::Result<(Relay, Streams)> {
            let (said, stderr) = if io::stderr().is_terminal() {
                pseudoterminal()?
            } else {
                let (said, stderr) = io::pipe()?;
                (file(said), file(stderr))
            };
            let stdin = match input {
                Input::Callers => dup(io::stdin())?,
                Input::Nothing => File::open("/dev/null")?,
            };
            let streams = Streams { stdin, stdout: dup(io::stdout())?, stderr, is_apart: false };
            Ok((Relay { said, out: Out::Stderr, input: None, is_terminal: false }, streams))
        };
        Ok(made().map_err(RelayError::NotMade)?)
    }

    /// What was said by a program that was not started, and is not shown.
    pub fn unshown(mut self) -> String {
        let mut said = Vec::new();
        // A pseudoterminal ends with an error.
        let _ = self.said.read_to_end(&mut said);
        readable(&said)
    }

    /// Passes everything on until the program has ended. `forward` sends it a signal. If that was the runtime's doing, why is in the
    /// result's standard error, and was not shown.
    pub fn run(
        mut self,
        program: Running,
        code: Option<&Code>,
        forward: &mut dyn FnMut(&Running, Signal),
    ) -> Result<Finished, Failure> {
        let signals = Signals::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH]);
        let mut signals = signals.map_err(RelayError::NotMade)?;
        let raw = if self.is_terminal { Some(Raw::set().map_err(RelayError::NotMade)?) } else { None };
        let mut filter = Filter::new(code);
        let passed_on = self.pass_on(&program, &mut signals, &mut filter, forward);
        drop(raw);
        passed_on.map_err(RelayError::Broken)?;
        let finished = program.finish_through()?;
        let last = filter.last.take().map_or_else(Vec::new, |last| last.said);
        // A program may say what it likes.
        if finished.code != Some(GAVE_UP) {
            self.show(&last);
            return Ok(finished);
        }
        Ok(Finished { stderr: readable(&last), ..finished })
    }

    fn pass_on(
        &mut self,
        program: &Running,
        signals: &mut Signals,
        filter: &mut Filter,
        forward: &mut dyn FnMut(&Running, Signal),
    ) -> io::Result<()> {
        let stdin = io::stdin();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            for signal in signals.pending() {
                match Signal::from_named_raw(signal) {
                    Some(Signal::WINCH) if self.is_terminal => {
                        resize(&self.said)?;
                        program.signal(Signal::WINCH)?;
                    }
                    Some(Signal::WINCH) | None => {}
                    Some(signal) => forward(program, signal),
                }
            }
            let (has_said, has_input) = {
                let mut ready = vec![PollFd::new(&self.said, PollFlags::IN)];
                if self.input.is_some() {
                    ready.push(PollFd::new(&stdin, PollFlags::IN));
                }
                let soon = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                match poll(&mut ready, Some(&soon)) {
                    Err(rustix::io::Errno::INTR) => continue,
                    other => other?,
                };
                (!ready[0].revents().is_empty(), ready.get(1).is_some_and(|input| !input.revents().is_empty()))
            };
            if has_said {
                match self.said.read(&mut buffer) {
                    // A pseudoterminal whose other end is closed answers EIO.
                    Ok(0) => break,
                    Err(cause) if cause.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => break,
                    Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                    said => {
                        let shown = filter.take(&buffer[..said?]);
                        self.show(&shown);
                    }
                }
            } else {
                // What may be the beginning of a code, or the runtime's last words, and was not.
                let shown = filter.release();
                self.show(&shown);
            }
            if has_input {
                // Not through a buffer, which would keep what is for the next question.
                // A terminal that was closed answers EIO.
                let read = rustix::io::read(&stdin, &mut buffer[..]).unwrap_or(0);
                let ended = read == 0;
                if let Some(input) = &mut self.input
                    && (ended || input.write_all(&buffer[..read]).is_err())
                {
                    self.input = None;
                }
            }
        }
        let held = std::mem::take(&mut filter.held);
        self.show(&held);
        Ok(())
    }

    fn show(&self, text: &[u8]) {
        // If nobody can be told any more, the program goes on.
        let _ = match self.out {
            Out::Stdout => io::stdout().write_all(text).and_then(|()| io::stdout().flush()),
            Out::Stderr => io::stderr().write_all(text),
        };
    }
}

fn file(end: impl Into<OwnedFd>) -> File {
    File::from(end.into())
}

fn dup(stream: impl AsFd) -> io::Result<File> {
    Ok(file(stream.as_fd().try_clone_to_owned()?))
}

/// Both ends of a new one: ours, and a terminal as large as the one we are at.
fn pseudoterminal() -> io::Result<(File, File)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name, flags, Mode::empty())?;
    let (ours, theirs) = (file(ours), file(theirs));
    resize(&ours)?;
    Ok((ours, theirs))
}

fn resize(pseudoterminal: &File) -> io::Result<()> {
    Ok(termios::tcsetwinsize(pseudoterminal, termios::tcgetwinsize(io::stderr())?)?)
}

/// The terminal passes every key on, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn set() -> io::Result<Raw> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // If the terminal has gone, there is nothing to put back.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// With this SCONE's runtime begins to say why it gives up.
const FATAL: &[u8] = b"[SCONE|FATAL]";
/// And with this it ends then.
const GAVE_UP: i32 = 134;
/// It ends so soon after it.
const SOON: Duration = Duration::from_secs(1);

/// Masks a code, and keeps the runtime's last words back.
struct Filter {
    /// `@` and the code, if there is one.
    code: Option<Vec<u8>>,
    /// What may be the beginning of a code or of last words.
    held: Vec<u8>,
    last: Option<Last>,
}

/// What may be the runtime's last words.
struct Last {
    said: Vec<u8>,
    since: Instant,
}

impl Filter {
    fn new(code: Option<&Code>) -> Filter {
        Filter { code: code.map(|code| code.config_id("").into_bytes()), held: Vec::new(), last: None }
    }

    /// What can be shown, now that this was said.
    fn take(&mut self, said: &[u8]) -> Vec<u8> {
        if let Some(last) = &mut self.last {
            last.said.extend_from_slice(said);
            mask(&mut last.said, self.code.as_deref());
            return self.give_up_waiting();
        }
        self.held.extend_from_slice(said);
        mask(&mut self.held, self.code.as_deref());
        if let Some(at) = at_line_start(&self.held, FATAL) {
            self.last = Some(Last { said: self.held.split_off(at), since: Instant::now() });
            return std::mem::take(&mut self.held);
        }
        let may_begin = |word: &[u8]| (1..word.len()).rev().find(|&length| self.held.ends_with(&word[..length]));
        let kept = self.code.as_deref().and_then(may_begin).max(may_begin(FATAL)).unwrap_or(0);
        let shown = self.held.len() - kept;
        let kept = self.held.split_off(shown);
        std::mem::replace(&mut self.held, kept)
    }

    /// What was held and turned out to be nothing.
    fn release(&mut self) -> Vec<u8> {
        let mut released = self.give_up_waiting();
        released.append(&mut self.held);
        released
    }

    /// Whoever goes on after the last words was no runtime.
    fn give_up_waiting(&mut self) -> Vec<u8> {
        let last = self.last.take_if(|last| last.since.elapsed() > SOON);
        last.map_or_else(Vec::new, |last| last.said)
    }
}

/// It goes to a terminal.
fn readable(said: &[u8]) -> String {
    visible(&String::from_utf8_lossy(said).replace('\r', ""))
}

fn mask(text: &mut [u8], code: Option<&[u8]>) {
    let Some(code) = code else { return };
    while let Some(at) = find(text, code) {
        text[at + 1..at + code.len()].fill(b'*');
    }
}

fn at_line_start(text: &[u8], word: &[u8]) -> Option<usize> {
    let is_there = |at: &usize| text[*at..].starts_with(word) && (*at == 0 || text[at - 1] == b'\n');
    (0..text.len()).find(is_there)
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter() -> Filter {
        Filter { code: Some(b"@123456".to_vec()), held: Vec::new(), last: None }
    }

    #[test]
    fn a_code_is_masked_however_it_arrives() {
        for cut in 0..18 {
            let mut filter = filter();
            let (first, second) = b"mail a@123456b, x@".split_at(cut);
            let shown = [filter.take(first), filter.take(second), filter.release()].concat();
            assert_eq!(String::from_utf8(shown).unwrap(), "mail a@******b, x@", "{cut}");
        }
    }

    #[test]
    fn the_runtime_s_last_words_are_not_shown_and_nothing_else_is_kept() {
        let mut filter = filter();
        let shown = [
            filter.take(b"result\n[SCO"),
            filter.take(b"NE|FATAL] it failed\r\nservice ID n@1234"),
            filter.take(b"56\r\n"),
        ];
        assert_eq!(shown.concat(), b"result\n");
        let last = readable(&filter.last.take().unwrap().said);
        assert_eq!(last, "[SCONE|FATAL] it failed\nservice ID n@******\n");

        let mut filter = self::filter();
        assert_eq!([filter.take(b"[SCONE|WARN]"), filter.release()].concat(), b"[SCONE|WARN]");
    }
}
