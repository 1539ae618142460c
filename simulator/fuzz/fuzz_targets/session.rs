//! Session YAML, as anybody may upload it: refused, or understood the same way again from what CAS writes down of it. Commands,
//! placeholders and names are split on the way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scone_sim::session::Session;

fuzz_target!(|text: &str| {
    let Ok(session) = Session::parse(text) else { return };
    let written = session.to_yaml().expect("what was understood can be written");
    let again = Session::parse(&written).unwrap_or_else(|error| panic!("{error}\n{written}"));
    assert_eq!(session.hash(), again.hash(), "{written}");
});
