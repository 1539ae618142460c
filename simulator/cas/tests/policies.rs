//! Policies as a whole: placeholders in all of their places.

use std::collections::{BTreeMap, BTreeSet};

use scone_sim::session::{NOT_SIMULATED, Session};
use yaml_serde::{Mapping, Value};

/// A policy that holds every key that is served.
const EVERYTHING: &str = include_str!("../../fuzz/seeds/session/everything.yml");

const PLACEHOLDER: &str = "$$SCONE::nothing$$";

fn everything() -> Value {
    let session = Session::parse(EVERYTHING).unwrap();
    assert!(Session::parse(&session.to_yaml().unwrap()).unwrap() == session);
    yaml_serde::from_str(EVERYTHING).unwrap()
}

fn refusal(session: &Value) -> String {
    let text = yaml_serde::to_string(session).unwrap();
    Session::parse(&text).map(|_| text).expect_err("a policy is accepted").to_string()
}

/// The way to each value of a policy.
fn places(value: &Value) -> Vec<Vec<Value>> {
    let inner: Vec<(Value, &Value)> = match value {
        Value::Mapping(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Sequence(list) => list.iter().enumerate().map(|(at, value)| (at.into(), value)).collect(),
        _ => Vec::new(),
    };
    let below = inner
        .iter()
        .flat_map(|(step, value)| places(value).into_iter().map(move |rest| [vec![step.clone()], rest].concat()));
    std::iter::once(Vec::new()).chain(below).collect()
}

fn at<'a>(session: &'a mut Value, place: &[Value]) -> &'a mut Value {
    place.iter().fold(session, |value, step| match step.as_u64() {
        Some(at) => value.get_mut(at as usize).unwrap(),
        None => value.get_mut(step).unwrap(),
    })
}

/// Asks the parser itself, by a key that it cannot know, which keys each mapping may have.
#[test]
fn the_policy_that_holds_everything_holds_every_key_that_is_served() {
    let session = everything();
    let (mut served, mut held) = (BTreeMap::new(), BTreeMap::<String, BTreeSet<String>>::new());
    for place in places(&session) {
        let mut changed = session.clone();
        let Value::Mapping(mapping) = at(&mut changed, &place) else { continue };
        let path = place.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(".");
        if path == "services.environment" {
            continue;
        }
        let keys = mapping.keys().map(|key| key.as_str().unwrap().to_owned());
        held.entry(path.clone()).or_default().extend(keys);
        mapping.insert("colour".into(), "red".into());
        let said = refusal(&changed);
        let (_, known) =
            said.split_once("unknown field `colour`, expected ").unwrap_or_else(|| panic!("{path}: {said}"));
        served.insert(path, known.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>());
    }
    assert_eq!(held, served);
}

/// A placeholder that nothing resolves is an error wherever it stands: taken literally, its text, which every reader of the
/// policy knows, would be a token, a name or a key.
#[test]
fn an_unresolvable_placeholder_is_refused_in_every_place() {
    #[track_caller]
    fn refused(session: &Value) {
        let said = refusal(session);
        let reasons = [
            "a placeholder is not resolved here",
            ": a placeholder",
            "no secret 'nothing' is declared",
            // In place of the whole map.
            "environment: invalid type",
        ];
        assert!(reasons.iter().any(|reason| said.contains(reason)), "{said}");
    }
    let session = everything();
    for place in places(&session) {
        let mut changed = session.clone();
        if let Value::Mapping(mapping) = at(&mut changed, &place) {
            mapping.insert(PLACEHOLDER.into(), "x".into());
            refused(&changed);
        }
        *at(&mut changed, &place) = PLACEHOLDER.into();
        refused(&changed);
    }
    for path in NOT_SIMULATED {
        let mapping = |inner, key: &str| Mapping::from_iter([(key.into(), inner)]).into();
        let said = refusal(&path.rsplit('.').fold(PLACEHOLDER.into(), mapping));
        assert!(said.contains("not simulated: "), "{said}");
    }
}
