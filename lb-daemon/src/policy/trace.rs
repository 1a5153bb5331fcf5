//! Why two sides may or may not talk: for both ends, which rules are about them, which one decides, and
//! what would change it. Pure.

use std::{fmt, net::IpAddr, str::FromStr};

use config::{
    model::Source,
    policy::{Direction, Enforcement, Entity, Labels, Rule},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Flow, Verdict,
    compile::Subject,
    explain,
    explain::{Explanation, Other},
    identity::reserved,
    state::Wanted,
};

/// One side of a connection, as it is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// An endpoint with these labels.
    Labels(Labels),
    /// A reserved identity.
    Reserved(Entity),
    /// Whoever has this address.
    Address(IpAddr),
    /// The endpoint of this name.
    Name(String),
}

impl FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if text.contains('=') {
            let pairs = text.split(',').map(|pair| {
                let (key, value) =
                    pair.split_once('=').ok_or_else(|| format!("{pair} has no ="))?;
                if key.is_empty() {
                    return Err(format!("{pair} has no key"));
                }
                Ok((key.to_owned(), value.to_owned()))
            });
            return pairs.collect::<Result<Labels, String>>().map(Self::Labels);
        }
        let entity = match text.strip_prefix("reserved:").unwrap_or(text) {
            "host" => Entity::Host,
            "remote-node" => Entity::RemoteNode,
            "init" => Entity::Init,
            "health" => Entity::Health,
            "unmanaged" => Entity::Unmanaged,
            _ => {
                let name = text.strip_prefix("endpoint:").unwrap_or(text);
                if config::is_name(name) {
                    return Ok(Self::Name(name.to_owned()));
                }
                let allowed = "KEY=VALUE,..., an address, the name of an endpoint, host, \
                               remote-node, init, health, unmanaged";
                return Err(format!("allowed: {allowed}"));
            }
        };
        Ok(Self::Reserved(entity))
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Labels(labels) => {
                let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "{}", pairs.join(","))
            }
            Self::Reserved(entity) => write!(f, "{}", entity.as_str()),
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name) => write!(f, "endpoint:{name}"),
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            1 => "icmp".to_owned(),
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            58 => "icmpv6".to_owned(),
            132 => "sctp".to_owned(),
            other => other.to_string(),
        };
        write!(f, "{}/{protocol}", self.port)
    }
}

/// Reads a port and protocol, such as `80/tcp`.
///
/// # Errors
/// What is allowed.
pub fn flow(text: &str) -> Result<Flow, String> {
    let allowed = "allowed: NUMBER/PROTOCOL with tcp, udp, sctp, icmp or icmpv6, such as 80/tcp";
    let (port, protocol) = text.split_once('/').ok_or(allowed)?;
    let port: u16 = port.parse().map_err(|_| allowed)?;
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" if port < 256 => 1,
        "icmpv6" if port < 256 => 58,
        _ => return Err(allowed.to_owned()),
    };
    Ok(Flow { protocol, port })
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trace {
    /// Whether both ends let it pass.
    pub allowed: bool,
    /// What each end that is an endpoint says: the one that opens the connection first.
    pub ends: Vec<End>,
}

/// What one end says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct End {
    /// `egress` for the end that opens the connection, `ingress` for the other one.
    pub direction: String,
    /// Labels of the endpoint, or of this node.
    pub labels: Labels,
    /// It is this machine, on its own interfaces.
    #[serde(default)]
    pub host: bool,
    /// `open`, `allowed`, `denied`, `denied_by_default`, `would_deny`, `would_deny_by_default`.
    pub verdict: String,
    /// The rule that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// Rules that select the endpoint.
    pub selected_by: Vec<RuleName>,
    /// Those that would allow it.
    pub allowed_by: Vec<RuleName>,
    /// Those that would deny it.
    pub denied_by: Vec<RuleName>,
    /// Those in audit that would deny it.
    pub audited_by: Vec<RuleName>,
    /// What would change the verdict.
    pub change: String,
}

/// A rule and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleName {
    /// Its name.
    pub name: String,
    /// File with line and column, `api`, or the Kubernetes object.
    pub origin: String,
}

impl From<&Rule> for RuleName {
    fn from(rule: &Rule) -> Self {
        let origin = match &rule.source {
            Source::File { path, line, column } => format!("{}:{line}:{column}", path.display()),
            Source::Api => "api".to_owned(),
            Source::Kubernetes(object) => object.clone(),
        };
        Self { name: rule.name.clone(), origin }
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} ({})", self.name, self.origin)
    }
}

/// A side, found among the facts.
#[derive(Clone, Debug)]
enum Party {
    Endpoint {
        labels: Labels,
        ports: Vec<config::policy::PortName>,
        enforcement: Enforcement,
    },
    /// This machine, whose firewall is on.
    Host {
        labels: Labels,
        ports: Vec<config::policy::PortName>,
        enforcement: Enforcement,
    },
    Reserved(Entity),
    World(IpAddr),
}

impl Party {
    fn find(side: &Side, facts: &Wanted) -> Result<Self, String> {
        let endpoint = |endpoint: &config::model::Endpoint| Self::Endpoint {
            labels: endpoint.labels.clone(),
            ports: endpoint.ports.clone(),
            enforcement: endpoint.enforcement.unwrap_or(facts.enforcement),
        };
        let mut known = facts.endpoints.iter().map(|(endpoint, _)| endpoint);
        Ok(match side {
            Side::Labels(labels) => match known.find(|own| own.labels == *labels) {
                Some(own) => endpoint(own),
                None => Self::Endpoint {
                    labels: labels.clone(),
                    ports: Vec::new(),
                    enforcement: facts.enforcement,
                },
            },
            Side::Name(name) => match known.find(|own| own.name == *name) {
                Some(own) => endpoint(own),
                None => return Err(format!("there is no endpoint named \"{name}\"")),
            },
            Side::Address(address) => match known.find(|own| own.addresses.contains(address)) {
                Some(own) => endpoint(own),
                None => match facts.nodes.get(address) {
                    Some(own) if reserved(Entity::Host) == Some(*own) => Self::host(facts),
                    Some(_) => Self::Reserved(Entity::RemoteNode),
                    None => Self::World(*address),
                },
            },
            Side::Reserved(Entity::Host) => Self::host(facts),
            Side::Reserved(entity) => Self::Reserved(*entity),
        })
    }

    fn host(facts: &Wanted) -> Self {
        match &facts.host {
            None => Self::Reserved(Entity::Host),
            Some((host, _)) => Self::Host {
                labels: host.labels.clone(),
                ports: host.ports.clone(),
                enforcement: host.enforcement.unwrap_or_default(),
            },
        }
    }

    /// As rules are compiled for it; `None`: none are.
    fn subject(&self) -> Option<Subject<'_>> {
        let (labels, ports, enforcement, host) = match self {
            Self::Endpoint { labels, ports, enforcement } => (labels, ports, *enforcement, false),
            Self::Host { labels, ports, enforcement } => (labels, ports, *enforcement, true),
            Self::Reserved(_) | Self::World(_) => return None,
        };
        Some(Subject { labels, ports, enforcement, host })
    }

    fn other(&self) -> Other<'_> {
        match self {
            Self::Endpoint { labels, .. } => Other::Endpoint(labels),
            Self::Host { .. } => Other::Reserved(Entity::Host),
            Self::Reserved(entity) => Other::Reserved(*entity),
            Self::World(address) => Other::World(*address),
        }
    }
}

/// Says why.
///
/// # Errors
/// No rule is about these two, or one of them is nobody.
pub fn trace(facts: &Wanted, from: &Side, to: &Side, flow: Flow) -> Result<Trace, String> {
    let (from, to) = (Party::find(from, facts)?, Party::find(to, facts)?);
    let mut ends = Vec::new();
    let mut allowed = true;
    for (direction, own, other) in
        [(Direction::Egress, &from, &to), (Direction::Ingress, &to, &from)]
    {
        let Some(subject) = own.subject() else { continue };
        let why = explain(facts, subject, direction, other.other(), flow);
        allowed &= why.verdict.passes();
        ends.push(end(facts, subject, direction, other.other(), flow, &why));
    }
    if ends.is_empty() {
        return Err(
            "neither side is an endpoint, or the host with its firewall on, so no rule is about \
                    them; give labels with = for one"
                .to_owned(),
        );
    }
    Ok(Trace { allowed, ends })
}

fn end(
    facts: &Wanted,
    subject: Subject<'_>,
    direction: Direction,
    other: Other<'_>,
    flow: Flow,
    why: &Explanation,
) -> End {
    let name = |index: &u32| RuleName::from(&facts.rules[*index as usize]);
    let names = |which: &[u32]| which.iter().map(name).collect::<Vec<_>>();
    End {
        direction: match direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
        .to_owned(),
        labels: subject.labels.clone(),
        host: subject.host,
        verdict: match why.verdict {
            Verdict::Open => "open",
            Verdict::Allowed(_) => "allowed",
            Verdict::Denied(_) => "denied",
            Verdict::DeniedByDefault => "denied_by_default",
            Verdict::WouldDeny(_) => "would_deny",
            Verdict::WouldDenyByDefault => "would_deny_by_default",
        }
        .to_owned(),
        rule: why.verdict.rule().as_ref().map(name),
        selected_by: names(&why.selecting),
        allowed_by: names(&why.allowing),
        denied_by: names(&why.denying),
        audited_by: names(&why.auditing),
        change: change(facts, subject, direction, other, flow, why),
    }
}

/// What would change the verdict, in a sentence.
fn change(
    facts: &Wanted,
    subject: Subject<'_>,
    direction: Direction,
    other: Other<'_>,
    flow: Flow,
    why: &Explanation,
) -> String {
    let listed = |which: &[u32]| {
        let all: Vec<String> =
            which.iter().map(|i| facts.rules[*i as usize].name.clone()).collect();
        all.join(", ")
    };
    match why.verdict {
        Verdict::Open => "a rule that denies it, or one that closes this direction".to_owned(),
        Verdict::Denied(_) => format!("without the denial of {}", listed(&why.denying)),
        Verdict::WouldDeny(_) => format!("{} out of audit denies it", listed(&why.auditing)),
        Verdict::DeniedByDefault | Verdict::WouldDenyByDefault => {
            format!("a rule that allows it: {}", suggestion(subject, direction, other, flow))
        }
        Verdict::Allowed(_) => {
            let mut rules = facts.rules.to_vec();
            for index in why.allowing.iter().rev() {
                rules.remove(*index as usize);
            }
            let without = Wanted { rules: rules.into(), ..facts.clone() };
            let word = match explain(&without, subject, direction, other, flow).verdict.passes() {
                true => "open",
                false => "denied",
            };
            format!("without {} it is {word}", listed(&why.allowing))
        }
    }
}

/// A rule that would allow a flow, as YAML on one line.
fn suggestion(subject: Subject<'_>, direction: Direction, other: Other<'_>, flow: Flow) -> String {
    let quoted = |text: &str| match text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
        true if text.parse::<f64>().is_err() && !text.is_empty() => text.to_owned(),
        _ => format!("{text:?}"),
    };
    let labels = |labels: &Labels| {
        let pairs: Vec<String> =
            labels.iter().map(|(k, v)| format!("{}: {}", quoted(k), quoted(v))).collect();
        format!("{{matchLabels: {{{}}}}}", pairs.join(", "))
    };
    let (key, way) = match direction {
        Direction::Ingress => ("ingress", "from"),
        Direction::Egress => ("egress", "to"),
    };
    let peers = match other {
        Other::Endpoint(of) => format!("{way}Endpoints: [{}]", labels(of)),
        Other::Reserved(entity) => format!("{way}Entities: [{}]", entity.as_str()),
        Other::World(address) => {
            format!("{way}CIDR: [{:?}]", ipnet::IpNet::from(address).to_string())
        }
    };
    let port = flow.port;
    let ports = match flow.protocol {
        6 => format!("toPorts: [{{ports: [{{port: \"{port}\", protocol: TCP}}]}}]"),
        17 => format!("toPorts: [{{ports: [{{port: \"{port}\", protocol: UDP}}]}}]"),
        132 => format!("toPorts: [{{ports: [{{port: \"{port}\", protocol: SCTP}}]}}]"),
        1 => format!("icmps: [{{fields: [{{type: {port}}}]}}]"),
        _ => format!("icmps: [{{fields: [{{family: IPv6, type: {port}}}]}}]"),
    };
    let selector = if subject.host { "nodeSelector" } else { "endpointSelector" };
    format!("{{{selector}: {}, {key}: [{{{peers}, {ports}}}]}}", labels(subject.labels))
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for end in &self.ends {
            write!(f, "{end}")?;
        }
        writeln!(f, "{}", if self.allowed { "allowed" } else { "denied" })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<String> = self.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let by = self.rule.as_ref().map(ToString::to_string).unwrap_or_default();
        let decision = match self.verdict.as_str() {
            "open" => "open: no rule denies it, and nothing closes this direction".to_owned(),
            "allowed" => format!("allowed by {by}"),
            "denied" => format!("denied by {by}"),
            "denied_by_default" => "denied: no rule allows it".to_owned(),
            "would_deny" => format!("passes, would be denied by {by}, which is in audit"),
            _ => "passes, would be denied: no rule allows it, and rules in audit close this \
                  direction"
                .to_owned(),
        };
        let whose = if self.host { "the host " } else { "" };
        writeln!(f, "{} of {whose}{}: {decision}", self.direction, labels.join(","))?;
        for (what, which) in [
            ("selected by", &self.selected_by),
            ("would be allowed by", &self.allowed_by),
            ("would be denied by", &self.denied_by),
            ("would be denied in audit by", &self.audited_by),
        ] {
            for rule in which.iter().filter(|rule| self.rule.as_ref() != Some(rule)) {
                writeln!(f, "  {what} {rule}")?;
            }
        }
        writeln!(f, "  would change it: {}", self.change)
    }
}
