//! Which packets a list is about, as options.

use clap::Args;

use crate::api::lists::ListSpec;

/// Which packets the list is about, when it is made; a list that is there must be about the same, or nothing is said.
#[derive(Debug, Default, Args)]
pub(crate) struct ScopeOptions {
    /// The list is about packets of this protocol only: tcp, udp, sctp or icmp.
    #[arg(long, value_parser = ["tcp", "udp", "sctp", "icmp"])]
    protocol: Option<String>,
    /// To this port or range, as 80 or 8000-8999; may be repeated.
    #[arg(long, requires = "protocol", value_name = "PORT", value_delimiter = ',')]
    port: Vec<String>,
    /// That come in by this interface; may be repeated.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    interface: Vec<String>,
    /// Packets from its addresses (source), or to them (destination).
    #[arg(long, value_parser = ["source", "destination"])]
    direction: Option<String>,
    /// What the list does: drop, or audit (count and let pass).
    #[arg(long, value_parser = ["drop", "audit"])]
    action: Option<String>,
}

impl ScopeOptions {
    /// The same of a list that is about these packets, unless the options say something else.
    pub(super) fn or(&self, spec: ListSpec) -> [(&'static str, Option<String>); 5] {
        let ListSpec { action, interfaces, direction, protocol, ports } = spec;
        let joined = |parts: Option<Vec<String>>| parts.map(|parts| parts.join(","));
        let exported =
            [protocol, joined(ports), joined(interfaces), direction, Some(action)].into_iter();
        let mut query = self.query();
        for ((_, value), exported) in query.iter_mut().zip(exported) {
            *value = value.take().or(exported);
        }
        query
    }

    /// As a query of the API.
    pub(super) fn query(&self) -> [(&'static str, Option<String>); 5] {
        let Self { protocol, port, interface, direction, action } = self;
        let joined = |parts: &[String]| (!parts.is_empty()).then(|| parts.join(","));
        [
            ("protocol", protocol.clone()),
            ("ports", joined(port)),
            ("interfaces", joined(interface)),
            ("direction", direction.clone()),
            ("action", action.clone()),
        ]
    }
}
