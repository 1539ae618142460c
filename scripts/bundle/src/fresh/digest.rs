//! The digest of the library's sources. `build.rs` includes this file, so that the compiled and the present one are reckoned alike.
//! It finds changes, not forgeries: who can write the sources needs none.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};

/// Of everything cargo compiles the library from: names and contents. An error comes with the path that it is about.
pub fn digest(library: &Path) -> Result<String, (PathBuf, io::Error)> {
    let mut files = vec![PathBuf::from("Cargo.toml"), PathBuf::from("build.rs")];
    list(library, Path::new("src"), &mut files).map_err(|cause| (library.join("src"), cause))?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        let content = fs::read(library.join(&file)).map_err(|cause| (library.join(&file), cause))?;
        for part in [file.as_os_str().as_encoded_bytes(), &content] {
            hasher.write(&(part.len() as u64).to_le_bytes());
            hasher.write(part);
        }
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Adds what is below `directory`, but no editor's hidden files.
fn list(library: &Path, directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(library.join(directory))? {
        let entry = entry?;
        let file = directory.join(entry.file_name());
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.path().is_dir() {
            list(library, &file, files)?;
        } else {
            files.push(file);
        }
    }
    Ok(())
}
