//! `$VAR` in session files, and the splitting of commands: a value is one value, whatever is in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scone_sim::session::{self, Session};
use yaml_serde::Value;

#[path = "../../cas/src/cli/variables.rs"]
mod variables;

fuzz_target!(|parts: (String, String, String)| {
    let (text, value, command) = parts;
    if let Ok(filled) = variables::substitute(text.clone(), &[format!("VAR={value}")], false) {
        let before = session::tree::read(&text).expect("it was read");
        let after = session::tree::read(&filled).expect("what was filled in can be read");
        assert_eq!(shape(&before), shape(&after), "{filled}");
    }

    let quoted = serde_json::to_string(&command).expect("text can be quoted");
    let session = format!("name: s\nversion: \"0.3.10\"\nservices: [{{name: p, command: {quoted}}}]\n");
    let _ = Session::parse(&session);
});

/// How many values of each kind, in order; a scalar is a scalar.
fn shape(value: &Value) -> String {
    match value {
        Value::Sequence(values) => format!("[{}]", values.iter().map(shape).collect::<Vec<_>>().join(",")),
        Value::Mapping(values) => {
            format!("{{{}}}", values.iter().map(|(_, value)| shape(value)).collect::<Vec<_>>().join(","))
        }
        Value::Tagged(tagged) => shape(&tagged.value),
        _ => "-".to_owned(),
    }
}
