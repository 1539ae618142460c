//! The session language: what is refused and why, what the normal form is, what the hash covers.

use scone_sim::session::{Mode, NOT_SIMULATED, Session};

const MRENCLAVE: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const OTHER: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// A session with these further lines.
fn session(lines: &str) -> String {
    format!("name: ns/a\nversion: \"0.3.10\"\n{lines}")
}

/// A session with one service that has these further lines.
fn service(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    session(&format!("services:\n  - name: s\n    attestation: {{mrenclave: {MRENCLAVE}}}\n{lines}"))
}

#[track_caller]
fn refused(text: &str, why: &str) {
    let error = Session::parse(text).expect_err(text).to_string();
    assert!(error.contains(why), "{error}\n{text}");
}

#[track_caller]
fn accepted(text: &str) -> Session {
    Session::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn an_unknown_key_is_named_with_its_place() {
    refused(&session("colour: red\n"), "unknown field `colour`");
    refused(&session("colour: red\n"), "line 3 column 1");
    refused(&service("command: /p\nenvironments: {}\n"), "services[0]: unknown field `environments`");
    refused(&session("access_policy: {raed: [ANY]}\n"), "access_policy: unknown field `raed`");
}

#[test]
fn a_key_given_twice_is_refused() {
    refused(&session("name: other\n"), "duplicate");
    refused(&service("command: /p\nenvironment:\n  A: 1\n  A: 2\n"), "duplicate");
}

#[test]
fn a_documented_key_that_is_not_served_says_so() {
    for key in NOT_SIMULATED {
        let (lists, last) =
            key.rsplit_once('.').map_or((Vec::new(), *key), |(path, last)| (path.split('.').collect(), last));
        // Inside lists and outside of them.
        for open in ["[{", "{"] {
            let close = if open == "[{" { "}]" } else { "}" };
            let mut value = format!("{last}: x");
            for list in lists.iter().rev() {
                value = format!("{list}: {open}{value}{close}");
            }
            refused(&session(&format!("{value}\n")), "not simulated: ");
            refused(&session(&format!("{value}\n")), last);
        }
    }
    refused(&session("security: {attestation: {mode: maa}}\n"), "maa");
    refused(&session("secrets: [{name: s, kind: x509}]\n"), "x509");
    refused(&service("command: /p @@1\n"), "not simulated");
    refused(&service("command: /p\nenvironment: {'\\@\\@HOME': x}\n"), "not simulated");
}

#[test]
fn every_row_of_the_documentation_is_there() {
    let page = include_str!("../../docs/session-language.md");
    for key in NOT_SIMULATED {
        let last = key.rsplit('.').next().unwrap_or(key);
        assert!(
            page.contains(&format!("`{last}`")),
            "docs/session-language.md does not say that {key} is not simulated"
        );
    }
}

#[test]
fn versions_0_3_to_0_3_10_are_served() {
    refused("name: a\n", "version: absent");
    for version in ["0.1", "0.2", "0.4", "0.3.11", "0.3.12", "0.3.", "0.3.01", "0.30", "0.3.x", "1", "0.3.10.0"] {
        refused(&format!("name: a\nversion: '{version}'\n"), "not simulated: version");
    }
    for version in ["0.3", "0.3.0", "0.3.8", "0.3.10"] {
        assert_eq!(accepted(&format!("name: a\nversion: {version}\n")).version, version);
    }
}

#[test]
fn names_are_made_of_unreserved_characters() {
    let long = "x".repeat(129);
    for name in ["''", "a//b", "/a", "a/", "'a b'", "a@b", "ä", ".", "a/../b", &long] {
        refused(&format!("name: {name}\nversion: 0.3\n"), "name");
    }
    accepted("name: A-z_0.9~/b\nversion: 0.3\n");
}

#[test]
fn no_predecessor_is_spelled_in_four_ways() {
    refused(&session("predecessor: 1234\n"), "predecessor: not a session hash");
    for spelling in
        ["", "predecessor: ~\n", "predecessor: null\n", "predecessor:\n", "predecessor: ''\n", "predecessor: '~'\n"]
    {
        assert_eq!(accepted(&session(spelling)).predecessor, None, "{spelling}");
    }
    let with = accepted(&session(&format!("predecessor: {MRENCLAVE}\n")));
    assert_eq!(with.predecessor.as_deref(), Some(MRENCLAVE));
}

#[test]
fn who_may_what_is_the_creator_unless_said() {
    for who in ["[ANY, CREATOR]", "[NONE, CREATOR]", "[everybody]", "[any]"] {
        refused(&session(&format!("access_policy: {{read: {who}}}\n")), "access_policy.read");
    }
    refused(&session("access_policy: {read: ['-----BEGIN CERTIFICATE-----']}\n"), "not simulated");
    refused(&session("access_policy: {read: ['$$SCONE::x$$']}\n"), "not simulated");
    let policy = accepted(&session(&format!("access_policy: {{update: [{OTHER}]}}\n"))).access_policy;
    assert_eq!(
        (policy.read, policy.update.clone(), policy.create_sessions),
        (vec!["CREATOR".into()], vec![OTHER.into()], policy.update)
    );
}

#[test]
fn a_service_needs_an_attestation_unless_the_session_switches_it_off() {
    let bare = "services: [{name: s, command: /p}]\n";
    refused(&session(bare), "at least one attestation variant");
    refused(&session("services: [{name: s, command: /p, attestation: []}]\n"), "at least one attestation variant");
    refused(&session("services: [{name: s, command: /p, attestation: [{mrenclave: []}]}]\n"), "names no mrenclave");
    refused(&session("services: [{name: s, command: /p, attestation: [{mrenclave: abc}]}]\n"), "64 hex digits");
    let off = accepted(&session(&format!("{bare}security: {{attestation: {{mode: none}}}}\n")));
    assert_eq!(off.security.attestation.mode, Mode::None);
}

#[test]
fn attestation_is_one_or_a_list_and_has_an_old_spelling() {
    let measured = |lines: &str| {
        let text = session(&format!("services:\n  - name: s\n    command: /p\n    {lines}\n"));
        accepted(&text).services[0].measurements().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(measured(&format!("attestation: {{mrenclave: {MRENCLAVE}}}")), [MRENCLAVE]);
    assert_eq!(measured(&format!("attestation: {{mrenclave: [{MRENCLAVE}, {OTHER}]}}")), [MRENCLAVE, OTHER]);
    assert_eq!(
        measured(&format!("attestation: [{{mrenclave: {OTHER}}}, {{mrenclave: [{MRENCLAVE}]}}]")),
        [MRENCLAVE, OTHER]
    );
    assert_eq!(measured(&format!("mrenclaves: [{OTHER}, {MRENCLAVE}]")), [MRENCLAVE, OTHER]);
    assert_eq!(measured(&format!("mrenclaves: [{}]", OTHER.to_uppercase())), [OTHER]);
}

#[test]
fn a_command_is_text_or_a_list() {
    refused(&service("pwd: /\n"), "without command");
    refused(&service("command: \"/p 'a\"\n"), "not closed");
    assert_eq!(accepted(&service("command: /p 'a b' \"c\"\n")).services[0].command, ["/p", "a b", "c"]);
    assert_eq!(accepted(&service("command: [/p, 'a b', '']\n")).services[0].command, ["/p", "a b", ""]);
}

#[test]
fn the_environment_is_text_as_it_is_written() {
    refused(&service("command: /p\nenvironment: {A: ~}\n"), "services[0].environment.A: the variable has no value");
    refused(&service("command: /p\nenvironment: {A: [1]}\n"), "environment.A");
    refused(&service("command: /p\nenvironment: {'A=B': x}\n"), "not a variable's name");
    let session = accepted(&service("command: /p\nenvironment: {A: 010, B: 1.50, C: TRUE, D: ''}\n"));
    let values: Vec<_> = session.services[0].environment.values().map(String::as_str).collect();
    assert_eq!(values, ["010", "1.50", "TRUE", ""]);
}

#[test]
fn placeholders_name_declared_secrets_in_formats_they_have() {
    let with = |placeholder: &str| {
        service(&format!("command: /p\nenvironment: {{A: '{placeholder}'}}\n"))
            + "secrets: [{name: b, kind: binary}, {name: a, kind: ascii}]\n"
    };
    refused(&with("$$SCONE::nobody$$"), "no secret 'nobody'");
    refused(&with("$$SCONE::a:hex$$"), "takes no format");
    refused(&with("$$SCONE::b$$"), "has no format");
    refused(&with("$$SCONE::b:bin$$"), "not simulated");
    refused(&with("$$SCONE::a"), "not closed");
    accepted(&with("x $$SCONE::a$$ $$SCONE::b:base64url$$"));
}

#[test]
fn a_shared_secret_has_at_least_128_bits() {
    let with = |secret: &str| {
        session(&format!(
            "security: {{attestation: {{one_time_password_shared_secret: '{secret}'}}}}\nsecrets: [{{name: short, kind: binary, size: 15}}, {{name: long, kind: binary, size: 16}}, {{name: drawn, kind: ascii}}, {{name: own, kind: ascii, value: JJBFGV2ZGNCFARKIKBFTGUCYKBNFKVQK}}]\n"
        ))
    };
    for weak in ["", "JJBFGV2ZGNCFARKIKBFTGUCY", "jjbfgv2zgncfarkikbftgucykbnfkvqk", "not base32 0189"] {
        refused(&with(weak), "one_time_password_shared_secret");
    }
    refused(&with("$$SCONE::short:base32nopad$$"), "shorter than 16 bytes");
    refused(&with("$$SCONE::long:hex$$"), "needs :base32nopad");
    refused(&with("$$SCONE::drawn$$"), "128 bits");
    refused(&with("A$$SCONE::own$$"), "neither base32 nor one placeholder");
    // 128, 160 and 256 bits: the lengths that are in use (section 3.2).
    for strong in [
        "GEZDGNBVGY3TQOJQGEZDGNBVGY",
        "JJBFGV2ZGNCFARKIKBFTGUCYKBNFKVQK",
        "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZA====",
        "$$SCONE::long:base32nopad$$",
        "$$SCONE::own$$",
    ] {
        accepted(&with(strong));
    }
}

#[test]
fn secrets_are_drawn_given_or_imported() {
    for (secret, why) in [
        ("{name: s}", "kind: missing"),
        ("{name: s, kind: binary, size: 0}", "size"),
        ("{name: s, kind: binary, size: 1000000}", "size"),
        ("{name: s, kind: binary, value: xyz}", "not hex"),
        ("{name: s, kind: binary, value: 'aabb', size: 3}", "size"),
        ("{name: s, kind: ascii, value: 'ä'}", "printable"),
        ("{name: s, kind: ascii, value: x, import: {session: a, secret: b}}", "neither value nor export"),
        ("{name: s, import: {session: a, secret: b}, export: {session: c}}", "neither value nor export"),
        ("{name: s, kind: ascii, export: {session: '/session=x,session_hash=y'}}", "not a session's name"),
    ] {
        refused(&session(&format!("secrets: [{secret}]\n")), why);
    }
    refused(&session("secrets: [{name: s, kind: ascii}, {name: s, kind: binary}]\n"), "declared twice");
    let session = accepted(&session("secrets: [{name: s, kind: ascii}, {name: t, kind: binary, value: aabb}]\n"));
    assert_eq!(session.secrets.iter().map(|s| s.size).collect::<Vec<_>>(), [Some(20), Some(2)]);
}

#[test]
fn volumes_are_mounted_by_images() {
    let image = |image: &str| session(&format!("volumes: [{{name: v}}]\nimages: [{image}]\n"));
    refused(&image("{name: i, volumes: [{name: w, path: /x}]}"), "no volume 'w'");
    for path in ["x", "/", "/a/../b", "/a//b", "/a/"] {
        refused(&image(&format!("{{name: i, volumes: [{{name: v, path: {path}}}]}}")), "path");
    }
    refused(&image("{name: i, volumes: [{name: v, path: /x}, {name: v, path: /x}]}"), "used twice");
    refused(&service("command: /p\nimage_name: i\n"), "no image 'i'");
    accepted(&image("{name: i, volumes: {name: v, path: /x/y}}"));
}

#[test]
fn references_may_be_relative() {
    let export = |reference: &str| session(&format!("volumes: [{{name: v, export: {{session: {reference}}}}}]\n"));
    refused(&export("../../../x"), "above the root");
    assert_eq!(accepted(&export("../b")).volumes[0].export[0].to.session, "ns/b");
    assert_eq!(accepted(&export("./b")).volumes[0].export[0].to.session, "ns/a/b");
    assert_eq!(accepted(&export("b")).volumes[0].export[0].to.session, "b");
}

#[test]
fn what_is_tolerated_must_be_known() {
    refused(&session("security: {attestation: {tolerate: [everything]}}\n"), "'everything' is not known");
    refused(&session("security: {attestation: {ignore_advisories: '*'}}\n"), "debug-mode");
    accepted(&session("security: {attestation: {tolerate: [debug-mode], ignore_advisories: '*'}}\n"));
}

#[test]
fn a_session_that_is_too_long_or_blows_up_is_refused() {
    refused(&session(&format!("# {}\n", "x".repeat(300_000))), "longer than");
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n";
    refused(bomb, "");
    refused(&"[".repeat(100_000), "");
}

#[test]
fn an_error_repeats_no_value_of_a_secret() {
    let secret = "GEZDGNBVGY3TQOJ1";
    for text in [
        session(&format!("secrets: [{{name: s, kind: binary, value: {secret}}}]\n")),
        session(&format!("security: {{attestation: {{one_time_password_shared_secret: {secret}}}}}\n")),
    ] {
        assert!(!Session::parse(&text).unwrap_err().to_string().contains(secret));
        assert!(!format!("{:?}", Session::parse(&text)).contains(secret));
    }
}

#[test]
fn the_hash_changes_with_everything_but_spelling_and_predecessor() {
    let plain = accepted(&service("command: /p\n"));
    for other in [
        "command: /q\n".to_owned(),
        "command: /p\npwd: /\n".to_owned(),
        "command: /p\nenvironment: {A: b}\n".to_owned(),
        format!("command: /p\none_time_password_shared_secret: {}\n", "GEZDGNBVGY3TQOJQGEZDGNBVGY"),
    ] {
        assert_ne!(accepted(&service(&other)).hash(), plain.hash(), "{other}");
    }
    let mut created = plain.clone();
    created.creator = Some("PEM".into());
    assert_ne!(created.hash(), plain.hash());

    let spelled_otherwise = service("command: [/p]\n") + "predecessor: ~\naccess_policy: {read: CREATOR}\nvolumes:\n";
    assert_eq!(accepted(&spelled_otherwise).hash(), plain.hash());
    assert_eq!(plain.hash().len(), 64);
}

#[test]
fn what_is_read_back_is_the_same_session() {
    let session = accepted(
        &(service("command: /p 'a b'\nimage_name: i\nenvironment: {A: '$$SCONE::b:hex$$', B: '010', C: 'yes: no'}\n")
            + "images: [{name: i, volumes: [{name: v, path: /v}]}]\nvolumes: [{name: v, export: {session: ../b}}]\n"
            + "secrets: [{name: b, kind: binary}, {name: c, import: {session: x, secret: y}}]\n"),
    );
    let again = accepted(&session.to_yaml().unwrap());
    assert!(again == session);
    assert_eq!(again.hash(), session.hash());
}
