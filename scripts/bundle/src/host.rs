//! What a host may lack for a start: the words that say so, and the command that helps.

use std::fs;

use crate::account::Account;
use crate::hint::quoted;
use crate::policy::{self, DEBUG_MODE};
use crate::refusal::{UNSIGNED, lacks_evidence};

/// What switches user namespaces off or takes their use away: the setting, the value that does, and one that does not.
const RESTRICTIONS: &[(&str, &str, &str)] = &[
    ("user.max_user_namespaces", "0", "15000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
];

impl Account {
    /// The command that helps, by the words that say what is missing.
    pub fn remedy(&self, said: &str) -> Option<String> {
        // The runtime's words. They come first, since the kernel says "no space", too, where no more namespaces are allowed.
        if ["create a user namespace", "user namespaces may be restricted"].iter().any(|words| said.contains(words)) {
            return Some(allow_user_namespaces());
        }
        if ["/dev/sgx_enclave", "SGX device"].iter().any(|words| said.contains(words)) {
            return Some("ls -l /dev/sgx_enclave   # is it there, and yours to use?".to_owned());
        }
        if lacks_evidence(said) {
            return Some(
                "docker network ls   # LAS is in one of them? create.rs --network names it. Else: SCONE_LAS_ADDR"
                    .to_owned(),
            );
        }
        if [UNSIGNED, "Debug mode is enabled"].iter().any(|words| said.contains(words)) {
            return Some(if self.state.attestation.insecure_test_cas {
                let tolerated = self.state.tolerate.iter().cloned().chain([DEBUG_MODE.to_owned()]).collect();
                let options = policy::options(&tolerated, &self.state.ignore_advisories);
                self.script("create", &format!("{options}   # for tests: such an enclave can be read"))
            } else {
                format!(
                    "{}   # signs ours for production; another: protect.rs --signing-key",
                    self.tools.facts.image_missing
                )
            });
        }
        if let Some(options) = self.letting_pass(said) {
            return Some(self.script("create", &options));
        }
        if said.contains("seccomp") {
            return Some("uname -r   # Linux 5.11 or newer is needed, with seccomp".to_owned());
        }
        // The image is older than the scripts.
        if said.contains("/entry: no such file or directory") || said.contains("`/entry`") {
            return Some(self.tools.facts.image_missing.to_owned());
        }
        let said = said.to_lowercase();
        if said.contains("no space left on device") || said.contains("quota exceeded") {
            return Some(format!("df -h {}   # what is full", quoted(self.root.join("state").display())));
        }
        let log = "\"${XDG_DATA_HOME:-$HOME/.local/share}/scone-sim/cas.log\"";
        said.contains("cas failed, see its log").then(|| format!("tail -n 3 {log}   # says why"))
    }
}

impl Account {
    /// What lets pass the weaknesses that CAS names where it distrusts a host. Given anew, all are replaced: so what passes already
    /// is given, too. An advisory passes only with its category (reference/scone.md 10), and of which it is, only CAS's words tell.
    fn letting_pass(&self, said: &str) -> Option<String> {
        let said = said.split_once("not trustworthy")?.1;
        let (mut ignored, mut tolerated) = (self.state.ignore_advisories.clone(), self.state.tolerate.clone());
        let words: Vec<&str> = said.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).collect();
        let advisories = words.iter().filter(|word| word.starts_with("INTEL-SA-") && policy::advisory(word).is_ok());
        ignored.extend(advisories.map(|word| (*word).to_owned()));
        let named = words.iter().filter(|word| **word != DEBUG_MODE && policy::is_weakness(word));
        tolerated.extend(named.map(|word| (*word).to_owned()));
        if (&ignored, &tolerated) == (&self.state.ignore_advisories, &self.state.tolerate) {
            return None;
        }
        let has_category = CATEGORIES.iter().any(|category| tolerated.contains(*category));
        let besides = if ignored.is_empty() || has_category {
            String::new()
        } else {
            format!("with --tolerate {}; ", CATEGORIES.join(" or "))
        };
        let options = policy::options(&tolerated, &ignored);
        Some(format!("{options}   # {besides}if Intel says the same: these words can be forged"))
    }
}

/// What an advisory may be of, which has to be tolerated besides (SCONE's page on the session language).
const CATEGORIES: [&str; 3] = ["outdated-tcb", "insecure-configuration", "software-hardening-needed"];

fn allow_user_namespaces() -> String {
    let is_set = |name: &str, to: &str| {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::read_to_string(file).is_ok_and(|value| value.trim() == to)
    };
    match RESTRICTIONS.iter().find(|(name, restricts, _)| is_set(name, restricts)) {
        Some((name, _, allows)) => format!("sudo sysctl --write {name}={allows}   # allows user namespaces"),
        None => "./scripts/create.rs --platform sim --account container   # runs in containers instead".to_owned(),
    }
}
