//! Whom an access policy admits (`reference/scone.md` section 2.8).

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use rustls::pki_types::CertificateDer;

use super::secrets::{Secrets, Value};
use super::{CasError, settle};
use crate::session::placeholder::{OPEN, Part, Placeholder};
use crate::session::{AccessPolicy, Creator, Kind, Rule};
use crate::signing::{SessionSigner, Signature};
use crate::store::{StoreError, Stored};
use crate::tls;

/// Who stands behind a request: one client or some signers, never both.
#[derive(Clone, Copy)]
pub(super) enum Party<'a> {
    /// A client that showed no certificate.
    Nobody,
    /// Whoever holds the key of a client certificate.
    Client(&'a tls::Client),
    /// Those who signed the session that is uploaded.
    Signers(&'a [Signature]),
}

impl<'a> Party<'a> {
    /// Signatures count alone, and without any the client does.
    pub fn of(signatures: &'a [Signature], client: Option<&'a tls::Client>) -> Party<'a> {
        match (signatures, client) {
            ([], None) => Party::Nobody,
            ([], Some(client)) => Party::Client(client),
            _ => Party::Signers(signatures),
        }
    }

    /// Whether this key signed.
    pub fn has_signed(self, signer: &SessionSigner) -> bool {
        matches!(self, Party::Signers(signatures) if signatures.iter().any(|signature| signature.signer == *signer))
    }

    /// The key hashes, with commas in between.
    pub fn key_hashes(self) -> String {
        match self {
            Party::Nobody => String::new(),
            Party::Client(client) => client.key_hash.clone(),
            Party::Signers(signatures) => {
                signatures.iter().map(|signature| signature.signer.key_hash()).collect::<Vec<_>>().join(",")
            }
        }
    }
}

/// A list of an access policy.
pub(super) type List = fn(&AccessPolicy) -> &[Rule];

/// Whether a list of the session's access policy admits them.
pub(super) fn admits(secrets: &Secrets<'_>, asked: &Stored, list: List, party: Party<'_>) -> Result<bool, CasError> {
    let mut judge = Judge { secrets, asked, list, party, known: HashMap::new() };
    let rules = match list(&asked.session.access_policy) {
        [Rule::Who(only)] if only.contains(OPEN) => {
            Cow::Owned(judge.value(only)?.map_or(Vec::new(), |value| judge.named(&value)))
        }
        rules => Cow::Borrowed(rules),
    };
    match &rules[..] {
        [Rule::Who(who)] if who == "ANY" => Ok(true),
        rules => Ok(judge.count(rules, 1)? == 1),
    }
}

/// One question to an access policy.
struct Judge<'a> {
    secrets: &'a Secrets<'a>,
    asked: &'a Stored,
    list: List,
    party: Party<'a>,
    /// What was found out: a long list may name the same large fragment over and over, by whatever names.
    known: HashMap<*const Value, bool>,
}

impl Judge<'_> {
    /// How many of the rules are met, up to this number.
    fn count(&mut self, rules: &[Rule], enough: usize) -> Result<usize, CasError> {
        let mut met = 0;
        for rule in rules {
            if met < enough && self.is_met(rule)? {
                met += 1;
            }
        }
        Ok(met)
    }

    fn is_met(&mut self, rule: &Rule) -> Result<bool, CasError> {
        let (asked, party) = (self.asked, self.party);
        Ok(match (rule, party) {
            (Rule::All(rules), _) => self.count(rules, rules.len())? == rules.len(),
            (Rule::AtLeast(count, rules), _) => self.count(rules, *count)? == *count,
            (Rule::Signer(key), _) => party.has_signed(key),
            (Rule::Who(who), _) if who.contains(OPEN) => self.is_met_by_secret(who)?,
            (Rule::Who(who), _) if who == "CREATOR" => match (&asked.session.creator, party) {
                (Some(Creator::Signer { signer }), _) => party.has_signed(signer),
                (_, Party::Client(client)) => client.key_hash == asked.creator,
                _ => false,
            },
            // ANY was to stand alone, and no key has NONE for its hash.
            (Rule::Who(hash), Party::Client(client)) => client.key_hash == *hash,
            _ => false,
        })
    }

    /// Whether any of what a placeholder stands for now is met.
    fn is_met_by_secret(&mut self, placeholder: &str) -> Result<bool, CasError> {
        let Some(value) = self.value(placeholder)? else { return Ok(false) };
        // `secrets` keeps it as long as this asks.
        let key = Rc::as_ptr(&value);
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let is_met = self.count(&self.named(&value), 1)? == 1;
        self.known.insert(key, is_met);
        Ok(is_met)
    }

    /// What a placeholder stands for now. A secret that cannot be had stands for nothing (section 2.8).
    fn value(&self, placeholder: &str) -> Result<Option<Rc<Value>>, CasError> {
        let session = &self.asked.session;
        let parts = session.parts("", placeholder).map_err(|flaw| StoreError::Damaged(flaw.to_string()))?;
        let [Part::Secret(Placeholder { name, .. })] = parts[..] else { return Ok(None) };
        Ok(settle(self.secrets.value(session, name))?.ok())
    }

    /// Whom a value names: no further placeholders, and perhaps nobody.
    fn named(&self, value: &Value) -> Vec<Rule> {
        let text = String::from_utf8_lossy(&value.bytes);
        match value.kind {
            Kind::Ascii if text != "ANY" && !text.contains(OPEN) => vec![Rule::Who(text.into_owned())],
            Kind::X509 | Kind::X509Ca => {
                tls::key_hash(&CertificateDer::from(&value.bytes[..])).map(Rule::Who).into_iter().collect()
            }
            Kind::ConfigFragment => AccessPolicy::of_fragment(&text).iter().flat_map(self.list).cloned().collect(),
            _ => Vec::new(),
        }
    }
}
