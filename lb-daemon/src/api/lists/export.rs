//! Lists as text for other programs. Pure.

use std::fmt::Write as _;

use config::model::{ListAction, PrefixList as Compact, Scope, ScopeProtocol, port_ranges};

use super::entries::scope_of;

/// A comment that says which packets the list is about, for whoever would take it for one about all.
fn comment(list: &Compact) -> String {
    scope_of(list).map(|scope| format!("# only packets {scope}\n")).unwrap_or_default()
}

/// A prefix per line.
pub(super) fn plain(list: &Compact) -> String {
    let mut text = String::with_capacity(list.prefixes.len() * 18);
    text.push_str(&comment(list));
    for net in list.prefixes.iter() {
        let _ = writeln!(text, "{net}");
    }
    text
}

/// A table with a set for each family that is not empty, and a chain, to be jumped to, with a rule for each: to the
/// packets that the list is about it does what the list does.
pub(super) fn nft(list: &Compact) -> String {
    let name = identifier(&list.name);
    let mut text = comment(list) + "table inet lb {\n";
    let mut rules = String::new();
    let mut set = |family: &str, ip: &str, nets: &mut dyn Iterator<Item = String>| {
        let mut nets = nets.peekable();
        if nets.peek().is_none() {
            return;
        }
        let _ = writeln!(
            text,
            "  set {name}_{family} {{\n    type {family}_addr\n    flags interval\n    auto-merge\n    elements = {{"
        );
        for net in nets {
            let _ = writeln!(text, "      {net},");
        }
        text.push_str("    }\n  }\n");
        let end = if list.scope.destination { "daddr" } else { "saddr" };
        let matches = matches(&list.scope, &format!("{ip} {end} @{name}_{family}"));
        let verdict = match list.action {
            ListAction::Drop => "counter drop",
            ListAction::Audit => "counter",
        };
        let _ = writeln!(rules, "    {matches} {verdict}");
    };
    let v4 = list.prefixes.v4().iter().map(|&n| ipnet::Ipv4Net::from(n).to_string());
    set("ipv4", "ip", &mut { v4 });
    set("ipv6", "ip6", &mut list.prefixes.v6().iter().map(ToString::to_string));
    let _ = writeln!(text, "  chain {name}_packets {{\n{rules}  }}\n}}");
    text
}

/// What a rule asks of a packet, the addresses among it.
fn matches(scope: &Scope, addresses: &str) -> String {
    let Scope { interfaces, destination: _, protocol, ports } = scope;
    let mut parts = Vec::new();
    if !interfaces.is_empty() {
        let names: Vec<String> = interfaces.iter().map(|name| format!("\"{name}\"")).collect();
        parts.push(format!("iifname {{ {} }}", names.join(", ")));
    }
    parts.push(addresses.to_owned());
    match protocol {
        None => {}
        Some(ScopeProtocol::Icmp) => parts.push("meta l4proto { icmp, ipv6-icmp }".to_owned()),
        Some(protocol) if ports.is_empty() => {
            parts.push(format!("meta l4proto {}", protocol.as_str()));
        }
        Some(protocol) => {
            let ports = port_ranges(ports).join(", ");
            parts.push(format!("{} dport {{ {ports} }}", protocol.as_str()));
        }
    }
    parts.join(" ")
}

/// A name that `nft` takes: it begins with a letter.
fn identifier(name: &str) -> String {
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    match name.starts_with(|first: char| first.is_ascii_alphabetic()) {
        true => name,
        false => format!("list_{name}"),
    }
}

#[cfg(test)]
mod tests {
    use config::model::Source;

    use super::*;

    fn list(name: &str, scope: Scope, action: ListAction) -> Compact {
        let nets = ["192.0.2.0/24", "2001:db8:1::/48"];
        let nets = nets.iter().map(|net| net.parse::<ipnet::IpNet>().unwrap()).collect();
        Compact { scope, action, ..Compact::new(name, Source::Api, nets) }
    }

    fn rules(scope: Scope, action: ListAction) -> Vec<String> {
        let text = nft(&list("l", scope, action));
        let rules = text.lines().filter(|line| line.contains('@'));
        rules.map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn nft_blocks_what_the_list_does_and_no_more() {
        let all = Scope::default();
        assert_eq!(
            rules(all.clone(), ListAction::Drop),
            ["ip saddr @l_ipv4 counter drop", "ip6 saddr @l_ipv6 counter drop"]
        );
        assert_eq!(rules(all, ListAction::Audit)[0], "ip saddr @l_ipv4 counter");
        let ports = Scope {
            interfaces: vec!["eth0".to_owned(), "eth1".to_owned()],
            protocol: Some(ScopeProtocol::Tcp),
            ports: vec![(80, 80), (8000, 8999)],
            ..Scope::default()
        };
        assert_eq!(
            rules(ports, ListAction::Drop)[1],
            "iifname { \"eth0\", \"eth1\" } ip6 saddr @l_ipv6 tcp dport { 80, 8000-8999 } counter drop"
        );
        let to =
            |protocol| Scope { destination: true, protocol: Some(protocol), ..Scope::default() };
        assert_eq!(
            rules(to(ScopeProtocol::Udp), ListAction::Drop)[0],
            "ip daddr @l_ipv4 meta l4proto udp counter drop"
        );
        assert_eq!(
            rules(to(ScopeProtocol::Icmp), ListAction::Drop)[0],
            "ip daddr @l_ipv4 meta l4proto { icmp, ipv6-icmp } counter drop"
        );
    }

    #[test]
    fn names_are_what_nft_takes() {
        let of = |name: &str| nft(&list(name, Scope::default(), ListAction::Drop));
        assert!(of("feeds:drop-v4").contains("  set feeds_drop_v4_ipv4 {\n"));
        assert!(of("7days").contains("  chain list_7days_packets {\n"));
        assert!(of("drop").contains("  chain drop_packets {\n"), "no keyword");
        let none = Compact::new("none", Source::Api, config::PrefixSet::default());
        assert_eq!(nft(&none), "table inet lb {\n  chain none_packets {\n  }\n}\n");
    }
}
