//! What a runtime sends to CAS, evidence and tags: made for nothing, it is bound to no connection and authorised by no key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scone_protocol::{End, Request, Response, Secret, proves_access, unhex};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        match &request {
            Request::Configure { access_proof, evidence, .. } => {
                assert!(!evidence.is_made_with(&Secret::new("key".into()), &[7; 32], "nonce"));
                let proof = access_proof.as_deref().unwrap_or_default();
                assert!(!proves_access(proof, End::Runtime, "token", &[7; 32], "nonce"));
            }
            Request::SetTag(request) => assert!(!request.is_authorised_by(&[7; 32])),
            Request::ReadTag(request) => assert!(!request.is_authorised_by(&[7; 32], &[7; 32], "nonce")),
        }
        let written = serde_json::to_vec(&request).expect("what was read can be written");
        let again: Request = serde_json::from_slice(&written).expect("and read again");
        assert_eq!(serde_json::to_vec(&again).unwrap(), written);
    }
    // What CAS sends to a runtime.
    if let Ok(Response::Configuration(configuration)) = serde_json::from_slice(bytes) {
        for volume in configuration.volumes {
            let _ = unhex(volume.key.expose());
        }
    }
});
