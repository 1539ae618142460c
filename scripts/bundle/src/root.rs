//! Where the bundle is. Nothing is ever created in a place that does not already hold what the script needs.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{env, fs};

use super::outcome::{Failure, PRECONDITION, found_bundle};

/// The first of `--root`, `OTPQR_ROOT`, the script's parent and the current directory that holds `needed`. A place the
/// user named must hold it: no other is tried then. `absent`: the command that helps if there is none.
pub fn find(named: Option<&Path>, needed: &Path, absent: Option<&str>) -> Result<PathBuf, Failure> {
    let variable = || env::var_os("OTPQR_ROOT").filter(|value| !value.is_empty()).map(PathBuf::from);
    let chosen = named.map(Path::to_owned).or_else(variable);
    let mut candidates: Vec<(PathBuf, bool)> = chosen.into_iter().map(|place| (place, false)).collect();
    if candidates.is_empty() {
        // rust-script names the directory the script lies in; a compiled binary has no such neighbours.
        let scripts = env::var_os("RUST_SCRIPT_BASE_PATH").filter(|value| !value.is_empty());
        candidates.extend(scripts.map(|scripts| (Path::new(&scripts).join(".."), false)));
        candidates.extend(env::current_dir().ok().map(|here| (here, true)));
    }
    for (place, is_here) in &candidates {
        let Ok(place) = place.canonicalize() else { continue };
        let unseen = format!("'{}' cannot be looked for in '{}'", needed.display(), place.display());
        if !place.join(needed).try_exists().map_err(Failure::because(PRECONDITION, unseen))? {
            continue;
        }
        // A root's templates become policies and its programs are run: nobody else may have laid them out for us where we
        // happen to stand.
        let owner = fs::metadata(&place).map_or(u32::MAX, |found| found.uid());
        let open = fs::metadata(&place).map_or(true, |found| found.mode() & 0o002 != 0);
        if *is_here && (open || (owner != 0 && owner != rustix::process::geteuid().as_raw())) {
            let message = format!("the current directory '{}' is not yours alone", place.display());
            return Err(Failure::new(PRECONDITION, message)
                .hint(format!("./scripts/{}.rs --root .   # if you trust it", crate::outcome::script())));
        }
        found_bundle(&place, named.is_some());
        return Ok(place);
    }
    // What helps is to be done there all the same.
    if let Some(place) = named {
        found_bundle(place, true);
    }
    let places: Vec<_> = candidates.iter().map(|(place, _)| format!("'{}'", place.display())).collect();
    let (needed, places) = (needed.display(), places.join(" or "));
    let message = format!("there is no '{needed}' in {places}; '--root' or OTPQR_ROOT says where the bundle is");
    Err(absent.into_iter().fold(Failure::new(PRECONDITION, message), Failure::hint))
}
