//! What is probably not meant in rules that are valid. Pure.
//!
//! Finds rules and entries about nobody, entries that a deny contradicts, and entries that another one
//! makes pointless. Rules are compared as written; only whether a rule selects anybody depends on the
//! endpoints, where they are known.

use config::policy::{Clause, Condition, Direction, Labels, Peer, Ports, Rule, Selector};

/// Something about a rule that is probably not meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Index of the rule.
    pub rule: usize,
    /// Direction of the entry; `None`: it is about the whole rule.
    pub direction: Option<Direction>,
    /// What is wrong with it.
    pub kind: Kind,
}

/// What is wrong with a rule or an entry of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The rule's conditions, or those of a peer, contradict each other.
    Impossible,
    /// No endpoint that is known has these labels.
    SelectsNobody,
    /// It lists no peers or no ports.
    Nobody,
    /// What it allows is denied by the rule of this index.
    Contradicted(usize),
    /// What it says the rule of this index says as well.
    Shadowed(usize),
}

impl Finding {
    /// One line; `rules` are those that were reviewed.
    #[must_use]
    pub fn message(&self, rules: &[Rule]) -> String {
        let entry = match self.direction {
            Some(Direction::Ingress) => "an ingress entry",
            Some(Direction::Egress) => "an egress entry",
            None => "it",
        };
        match (self.kind, self.direction) {
            (Kind::Impossible, None) => {
                "it selects nothing: its conditions contradict each other".to_owned()
            }
            (Kind::Impossible, _) => {
                format!("{entry} names peers whose conditions contradict each other")
            }
            (Kind::SelectsNobody, _) if rules[self.rule].node => {
                "it does not select this node, or there is no `host_firewall`".to_owned()
            }
            (Kind::SelectsNobody, _) => "it selects none of the endpoints".to_owned(),
            (Kind::Nobody, _) => format!("{entry} is about nobody"),
            (Kind::Contradicted(by), _) => {
                format!("{entry} never counts: rule {} denies all of it", rules[by].name)
            }
            (Kind::Shadowed(by), _) => {
                format!("{entry} is shadowed: rule {} says all of it", rules[by].name)
            }
        }
    }
}

/// All findings, in the order of the rules and of their entries. `endpoints`: labels of all, where
/// they are known; `true`: those of the host, where its firewall is on.
#[must_use]
pub fn review(rules: &[Rule], endpoints: Option<&[(bool, Labels)]>) -> Vec<Finding> {
    let clauses: Vec<(usize, &Clause)> = rules
        .iter()
        .enumerate()
        .flat_map(|(n, rule)| rule.clauses.iter().map(move |clause| (n, clause)))
        .collect();
    let mut findings = Vec::new();
    for (n, rule) in rules.iter().enumerate() {
        let nobody = |endpoints: &[(bool, Labels)]| {
            !endpoints.iter().any(|(host, own)| rule.selects(*host, own))
        };
        let of_rule = if is_impossible(&rule.subject) {
            Some(Kind::Impossible)
        } else {
            endpoints.is_some_and(nobody).then_some(Kind::SelectsNobody)
        };
        findings.extend(of_rule.map(|kind| Finding { rule: n, direction: None, kind }));
        for clause in &rule.clauses {
            let kind = of_clause(rules, &clauses, n, clause);
            let direction = Some(clause.direction);
            findings.extend(kind.map(|kind| Finding { rule: n, direction, kind }));
        }
    }
    findings
}

fn of_clause(
    rules: &[Rule],
    clauses: &[(usize, &Clause)],
    rule: usize,
    clause: &Clause,
) -> Option<Kind> {
    let silent = clause.ports.as_ref().is_some_and(Vec::is_empty) && clause.named.is_empty();
    if clause.peers.is_empty() || silent {
        return Some(Kind::Nobody);
    }
    let impossible =
        |peer: &Peer| matches!(peer, Peer::Endpoints(selector) if is_impossible(selector));
    if clause.peers.iter().any(impossible) {
        return Some(Kind::Impossible);
    }
    let covering = |by: &usize, other: &Clause| {
        // What is required of peers may take away from either.
        rules[*by].requires.is_empty()
            && rules[rule].node == rules[*by].node
            && is_within(&rules[rule].subject, &rules[*by].subject)
            && covers(other, clause)
            && (!rules[*by].audit || rules[rule].audit)
    };
    let denied = clauses.iter().find(|(by, other)| other.deny && covering(by, other));
    if let Some((by, _)) = denied.filter(|_| !clause.deny) {
        return Some(Kind::Contradicted(*by));
    }
    // Of two that say the same, the later one is named.
    let said = clauses.iter().find(|(by, other)| {
        other.deny == clause.deny
            && !std::ptr::eq(*other, clause)
            && covering(by, other)
            && (*by < rule
                || !covers(clause, other)
                || *by != rule && !is_within(&rules[*by].subject, &rules[rule].subject))
    });
    said.map(|(by, _)| Kind::Shadowed(*by))
}

/// Whether `wide` is about all that `narrow` is about.
fn covers(wide: &Clause, narrow: &Clause) -> bool {
    let peers = wide.peers.contains(&Peer::Any)
        || narrow.peers.iter().all(|peer| wide.peers.iter().any(|own| is_part(peer, own)));
    let ports = match (&wide.ports, &narrow.ports) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => narrow.iter().all(|n| wide.iter().any(|w| within(*n, *w))),
    };
    let named = wide.ports.is_none() || narrow.named.iter().all(|one| wide.named.contains(one));
    wide.direction == narrow.direction && peers && ports && named
}

fn is_part(narrow: &Peer, wide: &Peer) -> bool {
    match (narrow, wide) {
        (Peer::Endpoints(narrow), Peer::Endpoints(wide)) => {
            is_within(narrow, wide) && wide.names_reserved() == narrow.names_reserved()
        }
        (Peer::Prefix { net: narrow, .. }, Peer::Prefix { net: wide, except }) => {
            except.is_empty() && wide.contains(narrow)
        }
        _ => narrow == wide,
    }
}

/// Whether whoever has `narrow` has `wide`.
fn is_within(narrow: &Selector, wide: &Selector) -> bool {
    wide.conditions.iter().all(|condition| narrow.conditions.contains(condition))
}

fn within(narrow: Ports, wide: Ports) -> bool {
    narrow.protocol == wide.protocol && wide.first <= narrow.first && narrow.last <= wide.last
}

/// Whether no labels can meet all conditions.
fn is_impossible(selector: &Selector) -> bool {
    let all = &selector.conditions;
    all.iter().any(|condition| match condition {
        Condition::In(key, values) => {
            let may = |value: &String| {
                let labels = Labels::from([(key.clone(), value.clone())]);
                all.iter().filter(|own| own.key() == key).all(|own| own.holds(&labels))
            };
            !values.iter().any(may)
        }
        Condition::Exists(key) => all.contains(&Condition::DoesNotExist(key.clone())),
        Condition::NotIn(..) | Condition::DoesNotExist(_) => false,
    })
}
