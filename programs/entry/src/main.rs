//! `entry FIFO PROGRAM [ARG…]`: the first program in a container. It reads from the FIFO what nobody else is to know, as lines
//! `NAME=VALUE`, and becomes PROGRAM with that in its environment: `SCONE_CONFIG_ID=session/service@code`.
//!
//! Why: what `docker run` is given, the engine keeps in the container's configuration, for everybody to read who may use the
//! engine. What goes through a FIFO is on no disk, and a container that waits at one is up before its code is known.
//! Limits: not confidential, on SCONE it runs outside the enclave. Root sees the process's environment.
//!
//! The lines end with an empty one: without that, whoever was to hand them over has gone, and nothing is started. Exits with 125,
//! as docker does, where PROGRAM is not started.

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How long it waits for somebody to open the FIFO: whoever started the container does so at once, or was killed.
const PATIENCE: Duration = Duration::from_secs(5);

static OPENED: AtomicBool = AtomicBool::new(false);

fn main() {
    let mut args = env::args_os().skip(1);
    let (Some(fifo), Some(program)) = (args.next(), args.next()) else { give_up("usage: entry FIFO PROGRAM [ARG…]") };
    thread::spawn(|| {
        thread::sleep(PATIENCE);
        if !OPENED.load(Ordering::SeqCst) {
            give_up("nobody handed over what to run");
        }
    });
    // Waits until the other end is opened, too.
    let file = File::open(&fifo);
    OPENED.store(true, Ordering::SeqCst);
    let mut lines = String::new();
    if let Err(cause) = file.and_then(|mut file| file.read_to_string(&mut lines)) {
        give_up(&format!("cannot read '{}': {cause}", fifo.display()));
    }
    let Some(lines) = lines.strip_suffix("\n\n") else { give_up("whoever was to hand over what to run has gone") };
    let variables = lines.lines().filter_map(|line| line.split_once('='));
    let cause = Command::new(&program).args(args).envs(variables).exec();
    give_up(&format!("cannot start '{}': {cause}", program.display()))
}

/// Whether or not that can be said, nothing is started.
fn give_up(why: &str) -> ! {
    let _ = writeln!(io::stderr(), "entry: error: {why}");
    exit(125)
}
