//! `make blocks FROM=scripts/x.rs`: copies the blocks of that script over those of the same name in the scripts beside it.

#[path = "../support/blocks.rs"]
mod blocks;

use std::error::Error;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let from =
        env::args_os().nth(1).filter(|from| !from.is_empty()).ok_or("usage: make blocks FROM=scripts/create.rs")?;
    let from = Path::new(&from).canonicalize()?;
    let source = fs::read_to_string(&from)?;
    for entry in from.parent().ok_or("a script lies in a directory")?.read_dir()? {
        let path = entry?.path();
        if path == from || path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let script = fs::read_to_string(&path)?;
        let copied =
            blocks::with_blocks_of(&script, &source).map_err(|cause| format!("{}: {cause}", path.display()))?;
        if copied != script {
            fs::write(&path, copied)?;
            println!("changed: {}", path.display());
        }
    }
    Ok(())
}
