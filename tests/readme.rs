//! The documentation runs: each ```console block of README.md, command for command, in one shell after the other, compared
//! with what the page shows. Random names, hashes and ports are compared by their shape.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{Bundle, Platform, User, copy, repository, run};

/// A command as shown, and what the page says it prints.
struct Shown {
    line: usize,
    command: String,
    output: String,
}

fn shown(page: &str) -> Vec<Shown> {
    let mut found: Vec<Shown> = Vec::new();
    let mut inside = false;
    for (number, line) in page.lines().enumerate() {
        match (inside, line) {
            (false, "```console") => inside = true,
            (true, "```") => inside = false,
            (true, line) => match (line.strip_prefix("$ "), found.last_mut()) {
                (Some(command), _) => {
                    found.push(Shown { line: number + 1, command: command.to_owned(), output: String::new() });
                }
                (None, Some(last)) => last.output.push_str(&format!("{line}\n")),
                (None, None) => panic!("line {}: output before the first command", number + 1),
            },
            _ => {}
        }
    }
    found
}

/// Hashes and random names become `HEX`, ports `PORT`.
fn shape(text: &str) -> String {
    let mut shaped = String::new();
    let mut run = String::new();
    for c in text.chars().chain(['\n']) {
        if c.is_ascii_hexdigit() && !c.is_ascii_uppercase() {
            run.push(c);
            continue;
        }
        let port = shaped.ends_with("127.0.0.1:") && run.bytes().all(|digit| digit.is_ascii_digit());
        shaped.push_str(if run.len() >= 20 {
            "HEX"
        } else if port && !run.is_empty() {
            "PORT"
        } else {
            &run
        });
        run.clear();
        shaped.push(c);
    }
    shaped.trim().to_owned()
}

#[test]
fn every_console_block_of_the_readme_prints_what_it_shows() {
    let page = fs::read_to_string(repository().join("README.md")).expect("README.md");
    let commands = shown(&page);
    assert!(commands.len() >= 5, "the README shows {} commands", commands.len());

    let bundle = Bundle::new("bundle", Platform::SimNative, User::Caller, false);
    // rust-script caches by path: a path that stays spares the next run the compilation.
    let checkout = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme");
    let _ = fs::remove_dir_all(&checkout);
    fs::create_dir_all(&checkout).expect("a checkout");
    for part in ["scripts", "templates", "simulator"] {
        copy(&if part == "simulator" { bundle.root.join(part) } else { repository().join(part) }, &checkout.join(part));
    }
    for Shown { line, command, output } in commands {
        // What builds is run by the tests' own recipe; here it is enough that the target is there.
        let makes = command.starts_with("make ");
        let mut bash = bundle.command("bash");
        match makes {
            true => bash
                .current_dir(repository())
                .args(["-c", &format!("make --dry-run --silent {} >/dev/null", &command[5..])]),
            false => {
                bash.current_dir(&checkout).env_remove("OTPQR_ROOT").args(["-c", &format!("{{ {command}; }} 2>&1")])
            }
        };
        let answered = run(bash);
        if makes {
            answered.expect(0);
        } else {
            assert_eq!(shape(&answered.stdout), shape(&output), "README.md, line {line}: $ {command}");
        }
    }
}

#[test]
fn every_make_target_the_readme_names_is_there() {
    let page = fs::read_to_string(repository().join("README.md")).expect("README.md");
    let mut help = Command::new("make");
    help.current_dir(repository()).arg("help");
    let targets = run(help).expect(0).stdout;
    let named =
        page.split('`').filter_map(|word| word.strip_prefix("make ")).filter(|word| !word.contains([' ', '\n']));
    for target in named {
        assert!(targets.contains(&format!("  make {target} ")), "`make {target}` is not there:\n{targets}");
    }
}
