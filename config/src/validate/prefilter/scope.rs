//! Which packets a list is about.

use crate::{
    fault::Report,
    file::{self, Direction, ScopePorts},
    model,
};

/// Names of interfaces of a list; the tables have as many.
const MAX_INTERFACES: usize = 16;
/// Ranges of ports of a list; the tables have as many.
const MAX_PORTS: usize = 8;
/// Bytes of the name of an interface.
const MAX_NAME: usize = 15;

pub(crate) fn scope(list: &file::PrefixList, report: &Report<'_>) -> model::Scope {
    let file::PrefixList { interfaces, direction, protocol, ports, .. } = list;
    for (name, at) in interfaces.elements() {
        let is_name = !name.is_empty()
            && name.len() <= MAX_NAME
            && !name.contains(|c: char| c.is_whitespace() || "/*?[]:".contains(c));
        if !is_name {
            let message = format!("`{name}` is not the name of an interface");
            report.fault(at, message, "allowed: names as `ip link` shows them, no patterns");
        }
    }
    if let Some((_, at)) = interfaces.elements().nth(MAX_INTERFACES) {
        report.fault(at, "a list has more interfaces than that", "allowed: 16; make two lists");
    }
    if let Some((_, at)) = ports.elements().nth(MAX_PORTS) {
        report.fault(at, "a list has more ranges of ports than that", "allowed: 8; make two lists");
    }
    let protocol = protocol.get().map(|protocol| match protocol {
        file::ScopeProtocol::Tcp => model::ScopeProtocol::Tcp,
        file::ScopeProtocol::Udp => model::ScopeProtocol::Udp,
        file::ScopeProtocol::Sctp => model::ScopeProtocol::Sctp,
        file::ScopeProtocol::Icmp => model::ScopeProtocol::Icmp,
    });
    if let Some((_, at)) = ports.elements().next()
        && matches!(protocol, None | Some(model::ScopeProtocol::Icmp))
    {
        let help = "allowed: protocol: tcp, udp or sctp beside it";
        report.fault(at, "`ports` needs a `protocol` that has ports", help);
    }
    model::Scope {
        interfaces: interfaces.elements().map(|(name, _)| name.clone()).collect(),
        destination: direction.get() == Some(&Direction::Destination),
        protocol,
        ports: ports.elements().map(|(&ScopePorts(first, last), _)| (first, last)).collect(),
    }
}
