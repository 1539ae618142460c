//! The blocks of the scripts: what the drift test compares and `make blocks` copies. A block is all between a line
//! `// --- block NAME` and the line `// --- end NAME`, these two included.

use std::collections::BTreeMap;

/// The blocks of a script, by name.
pub fn blocks(script: &str) -> Result<BTreeMap<&str, &str>, String> {
    let mut found = BTreeMap::new();
    let mut open = None;
    let mut position = 0;
    for line in script.split_inclusive('\n') {
        let start = position;
        position += line.len();
        let mark = line.trim_end();
        if let Some(name) = mark.strip_prefix("// --- block ") {
            if let Some((outer, _)) = open.replace((name, start)) {
                return Err(format!("block '{name}' begins inside block '{outer}'"));
            }
        } else if let Some(name) = mark.strip_prefix("// --- end ") {
            match open.take() {
                Some((begun, start)) if begun == name => {
                    if found.insert(name, &script[start..position]).is_some() {
                        return Err(format!("block '{name}' is there twice"));
                    }
                }
                _ => return Err(format!("'{mark}' ends no block")),
            }
        }
    }
    match open {
        Some((name, _)) => Err(format!("block '{name}' does not end")),
        None => Ok(found),
    }
}

/// The script with each of its blocks replaced by the one of the same name in `source`, if there is one.
pub fn with_blocks_of(script: &str, source: &str) -> Result<String, String> {
    let theirs = blocks(source)?;
    let mut replaced = script.to_owned();
    for (name, text) in blocks(script)? {
        if let Some(theirs) = theirs.get(name) {
            // A block's marks name it, so its text occurs nowhere else.
            replaced = replaced.replacen(text, theirs, 1);
        }
    }
    Ok(replaced)
}
