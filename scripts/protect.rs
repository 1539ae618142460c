#!/usr/bin/env -S sh -uc 'o=--;[ -d "${0%/*}/bundle" ]||o=-b$(realpath "$OTPQR_ROOT")/scripts;exec rust-script "$o" "$0" "$@"'
//! Puts a program behind the account's codes: measures it, writes its policies, uploads them to CAS.
//!
//! Why: from then on nobody starts it with its secrets who has no code, not even root; and a program that was changed gets nothing.
//! How: an image that exists gets the entry, and on the simulator the runtime, in one layer of their own; on SCONE its program is
//! converted first. Its ENTRYPOINT, CMD, ENV and WORKDIR become the policy's. What is intended is recorded first: cut off
//! anywhere, the same command goes on.
//! Limits: a secret from a file is read on this host, once. Run again it compares, uploads only what differs, and says so.
//!
//! ```cargo
//! [package]
//! version = "0.1.0"
//! edition = "2024"
//!
//! [dependencies]
//! # Not found? The script was copied: say where the bundle is: export OTPQR_ROOT=/path/to/the/checkout
//! bundle = { path = "bundle" }
//! clap = { version = "=4.6.7", features = ["derive"] }
//! thiserror = "=2.0.21"
//! ```

use std::process::ExitCode;

use bundle::account::{self, Account};
use bundle::failure::{Concern, Exit, Failure};
use bundle::protection::{self, describe};
use bundle::state::{self, Program};
use bundle::{hint, program, prompt, service};
use clap::Parser;

/// Put a program behind the account's codes
#[derive(Debug, Parser)]
#[command(
    name = "protect",
    bin_name = "./scripts/protect.rs",
    version,
    after_help = "\
With --image the program is described anew; without, what is given changes and the rest stays. Secrets, volumes, mount points, the
number of starts and who grants them stay in any case.

Exit codes:
  0 protected, or already so   2 usage   3 something is missing, nothing changed   4 stopped part-way, run it again
  5 refused by CAS   130 interrupted   1 anything else

Examples:
  ./scripts/protect.rs calculator --image calculator:1 --command 'python3 /app/my_service.py -x @@1'
  ./scripts/protect.rs signer --image signer:1 --command '/bin/signer sign @@1' --secret SIGNER_KEY=p256 \\
      --mount-point /in --open '/bin/signer public'
  ./scripts/protect.rs signer --starts 10 --counts-itself
                                                         it signs ten times in all, whoever has codes
  ./scripts/protect.rs signer --needs-approval bob --counts-itself
                                                         it signs what bob grants, with approve.rs and a code of his
  ./scripts/protect.rs web --needs-approval default --without-code
                                                         one code grants several starts
  ./scripts/protect.rs web --image web:1 --command 'python3 /app/service.py' --env PORT=8443 --secret API_KEY=api-key.txt --volume /data
  ./scripts/protect.rs web --image web:1 --fs-dir /app --signing-key ../key.pem
                                                         on SCONE: converts it, with /app in its measurement
  ./scripts/protect.rs web --void-grants                 an approver's phone was stolen
  ./scripts/protect.rs web                               the image was rebuilt: measures it again
  ./scripts/protect.rs web --new-volumes                 a volume is damaged: begins with empty ones
  ./scripts/protect.rs web --remove                      gives it up, with its secrets"
)]
struct Args {
    /// What it is called from now on
    #[arg(value_parser = state::program_name)]
    name: String,
    #[command(flatten)]
    program: protection::Options,
    #[command(flatten)]
    account: account::Named,
    /// Give the program up: nobody can start it, and CAS forgets its secrets
    #[arg(long, conflicts_with_all = ["image", "command", "args", "env", "secret", "volume", "mount_point", "open", "new_volumes", "starts", "needs_approval", "void_grants", "counts_itself", "fs_dir", "sconify_with", "signing_key"])]
    remove: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, thiserror::Error)]
enum ProtectError {
    #[error("a roll-forward of account '{account}' was begun but not finished")]
    RollForwardBegun { account: String },
    #[error("this cannot be undone once it is done, and there is no terminal to ask on: give '--yes'")]
    NobodyToAsk,
    #[error("not confirmed; nothing was changed")]
    NotConfirmed,
}

impl Concern for ProtectError {
    fn exit(&self) -> Exit {
        match self {
            ProtectError::NobodyToAsk => Exit::Usage,
            _ => Exit::Precondition,
        }
    }
}

fn main() -> ExitCode {
    bundle::fresh!("protect.rs");
    bundle::run(protect)
}

fn protect(args: &Args) -> Result<String, Failure> {
    let name = &args.name;
    let loses = args.remove || args.program.new_volumes;
    if loses && !args.yes && !prompt::is_interactive() {
        return Err(ProtectError::NobodyToAsk.into());
    }
    let mut account = Account::open_with_templates(&args.account)?;
    if let Some(command) = account.state.finishing(&account.name) {
        let account = account.name;
        return Err(Failure::from(ProtectError::RollForwardBegun { account }).hint(command));
    }
    account.check_cas()?;
    let before = account.state.programs.get(name).cloned();
    let after = if args.remove {
        match &before {
            // Cut off, it goes on.
            Some(before) if before.removed && before.pending => before.clone(),
            _ => {
                let program = program::known(&account, name)?;
                // Whatever comes back under that name begins with empty volumes.
                let volume_version = program.volume_version + 1;
                Program { removed: true, volume_version, ..program.clone() }
            }
        }
    } else {
        describe(&mut account, name, &args.program)?
    };
    if loses && before.is_some() {
        confirm(args)?;
    }
    let is_new = before.as_ref().is_none_or(|before| before.removed);
    let has_changed = protection::carry_out(&mut account, name, before.as_ref(), after)?;
    let image = |program: &Program| program.image_id.clone();
    if let Some(before) = before.as_ref().map(image).filter(|id| *id != image(&account.state.programs[name])) {
        account.tools.untag(&before)?;
    }
    let runs = match service::running(&account, name)? {
        Some(_) => {
            let stop = hint::pasteable(&account.script("start", &format!(" {name} --stop")));
            format!("\nit still runs as it was started: {stop}")
        }
        None => String::new(),
    };
    if args.remove {
        account.tools.untag(&protection::tag(&account, name))?;
        return Ok(format!("removed: nobody can start '{name}' any more; its secrets are gone{runs}"));
    }
    let done = match (has_changed, is_new) {
        (true, true) => "protected",
        (true, false) => "updated",
        (false, _) => "already protected",
    };
    Ok(report(&account, name, done)? + &runs)
}

fn confirm(args: &Args) -> Result<(), Failure> {
    let name = &args.name;
    let question = if args.remove {
        format!("Nobody can start '{name}' any more, and its secrets are lost. Go on?")
    } else {
        format!("What is in the volumes of '{name}' is lost, and which of its starts were granted and taken. Go on?")
    };
    if args.yes || prompt::confirm(&question, false, "nothing was changed")? {
        return Ok(());
    }
    Err(ProtectError::NotConfirmed.into())
}

fn report(account: &Account, name: &str, done: &str) -> Result<String, Failure> {
    let program = program::known(account, name)?;
    let Program { image, mrenclave, command, mount_points, .. } = program;
    let mounts: String = mount_points.iter().map(|path| format!(" --mount type=bind,src=DIR,dst={path}")).collect();
    let places: Vec<String> = (1..=program.arguments()).map(|n| format!("ARG{n}")).collect();
    let rest = if places.is_empty() { String::new() } else { format!(" -- {}", places.join(" ")) };
    let start = hint::pasteable(&account.script("start", &format!(" {name}{mounts}{rest}")));
    let command = command.join(" ");
    let starts = program.starts().map_or(String::new(), |starts| format!("\n  starts     {starts} in all"));
    let approval = program.permit.as_ref().filter(|_| program.needs_approval()).map_or(String::new(), |permit| {
        let approvers = program.approvers().join("' or '");
        let alone = if permit.without_code { ", and no code" } else { "" };
        format!("\n  approval   a grant of '{approvers}'{alone}")
    });
    Ok(format!(
        "{done}: '{name}'\n  image      {image}\n  command    {command}{starts}{approval}\n  mrenclave  {mrenclave}\nstart it: {start}"
    ))
}
