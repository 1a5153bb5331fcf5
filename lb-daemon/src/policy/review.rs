//! What is probably not meant in rules that are valid. Pure.
//!
//! Finds entries about nobody, and entries that a deny makes pointless. Only what holds whatever the
//! endpoints are is found: rules are compared as written.

use config::policy::{Clause, Direction, Peer, Ports, Rule};

/// Something about a rule that is probably not meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Index of the rule.
    pub rule: usize,
    /// Direction of the entry.
    pub direction: Direction,
    /// What is wrong with it.
    pub kind: Kind,
}

/// What is wrong with an entry of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It lists no peers or no ports.
    Nobody,
    /// What it allows is denied by the rule of this index.
    Shadowed(usize),
}

impl Finding {
    /// One line; `rules` are those that were reviewed.
    #[must_use]
    pub fn message(&self, rules: &[Rule]) -> String {
        let entry = match self.direction {
            Direction::Ingress => "an ingress entry",
            Direction::Egress => "an egress entry",
        };
        match self.kind {
            Kind::Nobody => format!("{entry} is about nobody"),
            Kind::Shadowed(by) => {
                format!("{entry} never counts: rule {} denies all of it", rules[by].name)
            }
        }
    }
}

/// All findings, in the order of the rules and of their entries.
#[must_use]
pub fn review(rules: &[Rule]) -> Vec<Finding> {
    let denials: Vec<(usize, &Clause)> = rules
        .iter()
        .enumerate()
        .flat_map(|(n, rule)| rule.clauses.iter().map(move |clause| (n, clause)))
        .filter(|(_, clause)| clause.deny)
        .collect();
    let mut findings = Vec::new();
    for (n, rule) in rules.iter().enumerate() {
        for clause in &rule.clauses {
            let nobody =
                clause.peers.is_empty() || clause.ports.as_ref().is_some_and(Vec::is_empty);
            let shadow = || {
                denials.iter().find(|(by, denial)| {
                    let subject = &rules[*by].subject;
                    (subject.conditions.is_empty() || *subject == rule.subject)
                        && covers(denial, clause)
                })
            };
            let kind = if nobody {
                Kind::Nobody
            } else if let Some((by, _)) = (!clause.deny).then(shadow).flatten() {
                Kind::Shadowed(*by)
            } else {
                continue;
            };
            findings.push(Finding { rule: n, direction: clause.direction, kind });
        }
    }
    findings
}

/// Whether `wide` is about all that `narrow` is about.
fn covers(wide: &Clause, narrow: &Clause) -> bool {
    let peers = wide.peers.contains(&Peer::Any)
        || narrow.peers.iter().all(|peer| wide.peers.contains(peer));
    let ports = match (&wide.ports, &narrow.ports) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => narrow.iter().all(|n| wide.iter().any(|w| within(*n, *w))),
    };
    wide.direction == narrow.direction && peers && ports
}

fn within(narrow: Ports, wide: Ports) -> bool {
    narrow.protocol == wide.protocol && wide.first <= narrow.first && narrow.last <= wide.last
}
