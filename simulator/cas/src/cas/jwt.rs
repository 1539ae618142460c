//! JSON Web Tokens (RFC 7519) that CAS makes for a session (`reference/scone.md` section 10): compact JWS (RFC 7515), ES384.

use data_encoding::BASE64URL_NOPAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Map, Value, json};

use super::release::Refusal;
use super::secrets::{Result, Room, Secrets};
use crate::session::placeholder::{SOFTWARE_IDENTITY, is_one_placeholder};
use crate::session::{Secret, Session};
use crate::store::StoreError;

impl Secrets<'_> {
    /// A token that `owner` declares, valid from now on.
    pub fn jwt(&self, owner: &Session, secret: &Secret) -> Result<Vec<u8>> {
        let damaged = || StoreError::Damaged(format!("the JWT '{}' is not declared as it must be", secret.name));
        self.spend_signature()?;
        let key = self.value(owner, secret.signer.as_deref().ok_or_else(damaged)?)?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &key.bytes, &random).ok();
        let no_key = || Refusal::misconfigured(format!("The signer of JWT '{}' is no P-384 key", secret.name));
        let key = key.ok_or_else(no_key)?;
        let (mut claims, mut room) = (Map::new(), Room::of_a_configuration());
        for (name, value) in &secret.payload {
            let text = value.as_str().ok_or_else(damaged)?;
            let claim = self.claim(owner, text)?;
            room.take(name.len() + claim.len())?;
            claims.insert(name.clone(), claim.into());
        }
        let lifetime = secret.lifetime().ok_or_else(damaged)?;
        let times = [("iat", self.now), ("nbf", self.now), ("exp", self.now.saturating_add(lifetime))];
        claims.extend(times.map(|(name, time)| (name.to_owned(), time.into())));

        let encode = |part: Value| BASE64URL_NOPAD.encode(part.to_string().as_bytes());
        let token = format!("{}.{}", encode(json!({ "alg": "ES384", "typ": "JWT" })), encode(claims.into()));
        let signature = key.sign(&random, token.as_bytes()).map_err(|_| no_key())?;
        Ok(format!("{token}.{}", BASE64URL_NOPAD.encode(signature.as_ref())).into_bytes())
    }

    fn claim(&self, owner: &Session, text: &str) -> Result<String> {
        match text {
            // Assumption: without attestation nothing is known of the program.
            SOFTWARE_IDENTITY => self.program.map(str::to_owned).ok_or_else(|| {
                Refusal::misconfigured("A JWT names the program's identity, but no program was attested".into())
            }),
            text if is_one_placeholder(text) => self.text(owner, text),
            text => Ok(text.to_owned()),
        }
    }
}
