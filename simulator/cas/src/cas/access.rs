//! Whom an access policy admits (`reference/scone.md` section 2.8).

use rustls::pki_types::CertificateDer;

use super::secrets::{Secrets, Value};
use super::{CasError, settle};
use crate::session::placeholder::{Part, Placeholder};
use crate::session::{AccessPolicy, Creator, Kind, Rule, Session};
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
    let rules = resolve(secrets, &asked.session, list(&asked.session.access_policy), list)?.concat();
    Ok(match &rules[..] {
        [Rule::Who(who)] if who == "ANY" => true,
        rules => rules.iter().any(|rule| is_met(rule, asked, party)),
    })
}

fn is_met(rule: &Rule, asked: &Stored, party: Party<'_>) -> bool {
    let met = |rules: &[Rule]| rules.iter().filter(|rule| is_met(rule, asked, party)).count();
    match (rule, party) {
        (Rule::All(rules), _) => met(rules) == rules.len(),
        (Rule::AtLeast(count, rules), _) => met(rules) >= *count,
        (Rule::Signer(key), _) => party.has_signed(key),
        (Rule::Who(who), _) if who == "CREATOR" => match (&asked.session.creator, party) {
            (Some(Creator::Signer { signer }), _) => party.has_signed(signer),
            (_, Party::Client(client)) => client.key_hash == asked.creator,
            _ => false,
        },
        // ANY was to stand alone, and no key has NONE for its hash.
        (Rule::Who(hash), Party::Client(client)) => client.key_hash == *hash,
        _ => false,
    }
}

/// What each rule says, with what secrets say now in the place of placeholders: any of what a placeholder stands for will do. A
/// secret that cannot be had now, or names nobody, stands for nothing (section 2.8).
fn resolve(secrets: &Secrets<'_>, session: &Session, rules: &[Rule], list: List) -> Result<Vec<Vec<Rule>>, CasError> {
    let within = |rules: &[Rule]| {
        let resolved = resolve(secrets, session, rules, list)?;
        Ok::<_, CasError>(resolved.into_iter().map(|any| Rule::AtLeast(1, any)).collect::<Vec<_>>())
    };
    let resolve_rule = |rule: &Rule| {
        Ok(match rule {
            Rule::Signer(_) => vec![rule.clone()],
            Rule::All(rules) => vec![Rule::All(within(rules)?)],
            Rule::AtLeast(count, rules) => vec![Rule::AtLeast(*count, within(rules)?)],
            Rule::Who(who) => {
                let parts = session.parts("", who).map_err(|flaw| StoreError::Damaged(flaw.to_string()))?;
                match parts[..] {
                    [Part::Secret(Placeholder { name, .. })] => named(secrets, session, name, list)?,
                    _ => vec![rule.clone()],
                }
            }
        })
    };
    rules.iter().map(resolve_rule).collect()
}

/// Whom a secret's value names now.
fn named(secrets: &Secrets<'_>, session: &Session, secret: &str, list: List) -> Result<Vec<Rule>, CasError> {
    let Ok(Value { kind, bytes, .. }) = settle(secrets.value(session, secret))? else { return Ok(Vec::new()) };
    let text = String::from_utf8_lossy(&bytes);
    Ok(match kind {
        Kind::Ascii if text != "ANY" => vec![Rule::Who(text.into_owned())],
        Kind::X509 | Kind::X509Ca => tls::key_hash(&CertificateDer::from(bytes)).map(Rule::Who).into_iter().collect(),
        Kind::ConfigFragment => AccessPolicy::of_fragment(&text).iter().flat_map(list).cloned().collect(),
        _ => Vec::new(),
    })
}
