//! Sessions, signed or not, as anybody may upload them: refused, or understood the same way again from what CAS writes down of
//! them, for people and for itself. Commands, placeholders and names are split on the way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scone_sim::session::Session;
use scone_sim::signing::Signed;

fuzz_target!(|text: &str| {
    let Ok(Signed { session, .. }) = Signed::parse(text) else { return };
    let written = session.to_yaml().expect("what was understood can be written");
    let again = Session::parse(&written).unwrap_or_else(|error| panic!("{error}\n{written}"));
    assert_eq!(session.hash(), again.hash(), "{written}");
    let stored = serde_json::to_string(&session).expect("what was understood can be stored");
    let again: Session = serde_json::from_str(&stored).unwrap_or_else(|error| panic!("{error}\n{stored}"));
    assert_eq!(session.hash(), again.hash(), "{stored}");
});
