//! `SCONE_CONFIG_ID` and `SCONE_CAS_ADDR`, at the runtime and at CAS: nothing but the exact name of a service is granted, and one
//! that demands a code never without one of six digits.
#![no_main]

use std::fs;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use scone_protocol::connection::{Address, config_id_parts};
use scone_sim::cas::{Access, Cas, Claim};
use scone_sim::clock::Clock;
use scone_sim::tls::{Client, Identity};

const MRENCLAVE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const FREE: &str = "
name: ns
version: \"0.3.10\"
access_policy: {create_sessions: [CREATOR]}
services: [{name: free, command: /p, attestation: [{mrenclave: [MRENCLAVE]}]}]
";
const CODE: &str = "
name: ns/s
version: \"0.3.10\"
services: [{name: code, command: /p, attestation: [{mrenclave: [MRENCLAVE]}]}]
secrets: [{name: otp, kind: binary, size: 20}]
security: {attestation: {one_time_password_shared_secret: \"$$SCONE::otp:base32nopad$$\"}}
";

/// In memory, as long as the fuzzer runs.
fn cas() -> &'static Cas {
    static CAS: OnceLock<(tempfile::TempDir, Cas)> = OnceLock::new();
    let start = || {
        let home = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::write(home.path().join("clock"), "1800000015").unwrap();
        let cas = Cas::open(home.path(), Clock::File(home.path().join("clock"))).unwrap();
        let identity = Identity::generate("alice").unwrap();
        let alice = Client { key_hash: identity.key_hash.clone(), certificate: identity.certificate_pem.clone() };
        for session in [FREE, CODE] {
            cas.upload(&session.replace("MRENCLAVE", MRENCLAVE), Some(&alice)).unwrap().unwrap();
        }
        (home, cas)
    };
    &CAS.get_or_init(start).1
}

fuzz_target!(|text: &str| {
    if let Some(address) = Address::parse(text) {
        assert!(!address.host.is_empty());
    }
    let (service, code) = config_id_parts(text);
    assert_eq!(code.map_or(service.to_owned(), |code| format!("{service}@{code}")), text);
    let claim = Claim { service, code, mrenclave: MRENCLAVE, signer: None, vouched: true, access: Access::default() };
    if cas().configure(&claim).unwrap().is_ok() {
        let is_code = |code: &str| code.len() == 6 && code.bytes().all(|byte| byte.is_ascii_digit());
        assert!(service == "ns/free" || service == "ns/s/code" && code.is_some_and(is_code), "{text:?}");
    }
});
