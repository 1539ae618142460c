//! Where the bundle lies. Nothing is ever created in a place that does not already hold what the script needs.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use crate::failure::{Concern, Exit, Failure};
use crate::hint;

#[derive(Debug, thiserror::Error)]
enum RootError {
    #[error("there is no '{needed}' in {places}; '--root' or OTPQR_ROOT says where the bundle is")]
    Absent { needed: String, places: String },
    #[error("'{needed}' cannot be looked for in '{place}': {cause}")]
    Unseen { needed: String, place: String, cause: io::Error },
    #[error("the path {place:?} cannot be used: it is not UTF-8 or has control characters; move the bundle")]
    Unusable { place: PathBuf },
    #[error("the current directory '{place}' is not yours alone")]
    OpenToOthers { place: String },
}

impl Concern for RootError {
    fn exit(&self) -> Exit {
        Exit::Precondition
    }
}

/// The first of `--root`, `OTPQR_ROOT`, the script's parent and the current directory that holds `needed`. A place the user
/// named must hold it: no other is tried then. `absent`: the command that makes it.
pub fn find(named: Option<&Path>, needed: &Path, absent: Option<String>) -> Result<PathBuf, Failure> {
    let candidates = candidates(named);
    for (place, is_current) in &candidates {
        let Ok(place) = place.canonicalize() else { continue };
        let unseen = |cause| RootError::Unseen { needed: shown(needed), place: shown(&place), cause };
        if !place.join(needed).try_exists().map_err(unseen)? {
            continue;
        }
        // Paths are recorded, and become arguments.
        if place.to_str().is_none_or(|path| path.contains(char::is_control)) {
            return Err(RootError::Unusable { place }.into());
        }
        // A root's templates become policies and its programs are run: nobody else may have laid them out for us where we
        // happen to stand.
        if *is_current && !is_ours_alone(&place) {
            return Err(Failure::from(RootError::OpenToOthers { place: shown(&place) })
                .hint(format!("./scripts/{}.rs --root .   # if you trust it", crate::script())));
        }
        hint::set_bundle(&place, named.is_some());
        return Ok(place);
    }
    // The command that helps is about the place that was named.
    if let Some(place) = named {
        hint::set_bundle(place, true);
    }
    let places: Vec<_> = candidates.iter().map(|(place, _)| format!("'{}'", place.display())).collect();
    let error = RootError::Absent { needed: shown(needed), places: places.join(" or ") };
    Err(Failure::from(error).hints(absent))
}

/// Where to look, and whether a place is merely the current directory.
fn candidates(named: Option<&Path>) -> Vec<(PathBuf, bool)> {
    let variable = || env::var_os("OTPQR_ROOT").filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(chosen) = named.map(Path::to_owned).or_else(variable) {
        return vec![(chosen, false)];
    }
    // rust-script names the directory the script lies in; a compiled binary has no such neighbours.
    let scripts = env::var_os("RUST_SCRIPT_BASE_PATH").filter(|value| !value.is_empty());
    let parent = scripts.map(|scripts| (Path::new(&scripts).join(".."), false));
    parent.into_iter().chain(env::current_dir().ok().map(|current| (current, true))).collect()
}

/// Whether it belongs to this user or to root, and not everybody may write there.
fn is_ours_alone(place: &Path) -> bool {
    fs::metadata(place).is_ok_and(|found| {
        found.mode() & 0o002 == 0 && (found.uid() == 0 || found.uid() == rustix::process::geteuid().as_raw())
    })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
