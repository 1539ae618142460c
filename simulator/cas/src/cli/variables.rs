//! `$VAR` in session files (`reference/scone.md` section 4.2). Variables are filled into the values of the parsed file, not
//! into its text, so that a value cannot change the file's structure. `$$` starts no variable: `$$SCONE::…$$` stays.

use std::collections::BTreeMap;

use yaml_serde::Value;

use crate::session::read_tree;

/// Fills in the variables. A `~` for a whole value stands for nothing. A text without variables stays as it is, so that
/// later errors name its lines.
pub fn substitute(text: String, given: &[String], use_env: bool) -> Result<String, String> {
    let mut values = BTreeMap::new();
    for assignment in given {
        let (name, value) = assignment.split_once('=').ok_or("an option -e is not VAR=VALUE")?;
        values.insert(name, value);
    }
    let lookup = |name: &str| match values.get(name) {
        Some(value) => Some((*value).to_owned()),
        None if use_env => std::env::var(name).ok(),
        None => None,
    };
    let mut tree = read_tree(&text).map_err(|error| error.to_string())?;
    let mut changed = false;
    fill(&mut tree, "", &lookup, &mut changed).map_err(|(path, name)| {
        let (line, column) = position(&text, &name);
        format!("{path}: Value for variable ${name} is missing at line {line} column {column}")
    })?;
    if changed { yaml_serde::to_string(&tree).map_err(|error| error.to_string()) } else { Ok(text) }
}

/// The error is the key and the variable.
fn fill(
    value: &mut Value,
    path: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
    changed: &mut bool,
) -> Result<(), (String, String)> {
    match value {
        Value::String(text) => {
            if let Some(filled) = fill_text(text, lookup).map_err(|name| (path.to_owned(), name))? {
                *changed = true;
                *value = if filled == "~" { Value::Null } else { Value::String(filled) };
            }
        }
        Value::Sequence(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                fill(item, &format!("{path}[{i}]"), lookup, changed)?;
            }
        }
        Value::Mapping(mapping) => {
            for (key, value) in mapping.iter_mut() {
                let key = key.as_str().unwrap_or("?");
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                fill(value, &path, lookup, changed)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// `None`: there is no variable in it. The error is the variable that has no value.
fn fill_text(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>, String> {
    let mut filled = String::new();
    let mut found = false;
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, after) = rest.split_at(at);
        filled.push_str(before);
        let name = variable_name(&after[1..]);
        if let Some(after) = after.strip_prefix("$$") {
            filled.push_str("$$");
            rest = after;
        } else if name.is_empty() {
            filled.push('$');
            rest = &after[1..];
        } else {
            filled.push_str(&lookup(name).ok_or_else(|| name.to_owned())?);
            found = true;
            rest = &after[1 + name.len()..];
        }
    }
    filled.push_str(rest);
    Ok(found.then_some(filled))
}

fn variable_name(text: &str) -> &str {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    if !text.starts_with(letter) {
        return "";
    }
    let end = text.find(|c: char| !letter(c) && !c.is_ascii_digit()).unwrap_or(text.len());
    &text[..end]
}

/// Line and column of the variable's first use, from 1.
fn position(text: &str, name: &str) -> (usize, usize) {
    let at = |line: &str| {
        let is_whole = |&(at, _): &(usize, &str)| variable_name(&line[at + 1..]) == name;
        line.match_indices('$').find(is_whole).map(|(at, _)| line[..at].chars().count() + 1)
    };
    text.lines().zip(1..).find_map(|(line, number)| Some((number, at(line)?))).unwrap_or((0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str, given: &[&str]) -> Result<String, String> {
        let given: Vec<String> = given.iter().map(|&s| s.to_owned()).collect();
        substitute(text.to_owned(), &given, false)
    }

    #[test]
    fn a_variable_without_value_is_an_error_in_scones_words() {
        let error = filled("a: b\nversion: x\nname: $SESSION\n", &[]).unwrap_err();
        assert_eq!(error, "name: Value for variable $SESSION is missing at line 3 column 7");
    }

    #[test]
    fn a_documented_key_is_named_before_a_tag_in_its_value_is_refused() {
        assert_eq!(filled("secret_config: !cas x\n", &[]).unwrap_err(), "not simulated: secret_config");
    }

    #[test]
    fn a_value_cannot_change_the_files_structure() {
        let text = filled("name: $N\nlist: [$N]\n", &["N=x, evil: true\nread: [ANY]"]).unwrap();
        let tree: Value = yaml_serde::from_str(&text).unwrap();
        assert_eq!(tree.as_mapping().unwrap().len(), 2);
    }

    #[test]
    fn secrets_placeholders_and_texts_without_variables_stay_as_they_are() {
        let text = "a: $$SCONE::s:hex$$ # $comment\nb: $ 5\n";
        assert_eq!(filled(text, &[]).unwrap(), text);
    }

    #[test]
    fn a_tilde_stands_for_nothing() {
        assert_eq!(filled("predecessor: $P\n", &["P=~"]).unwrap(), "predecessor: null\n");
    }
}
