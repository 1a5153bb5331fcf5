//! From a record of the ring buffer to names, addresses and ports. Pure.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use abi::{
    addr::Addr,
    event::{Event, Hook, Outcome, Stream},
    reason::Reason,
    upper,
    wire::{Frame as _, Ports, protocol},
};

use config::{model::Source, policy::Labels};

use crate::view::View;

/// A sampled packet.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// When.
    pub time: SystemTime,
    /// Which program.
    pub hook: Hook,
    /// What became of it.
    pub outcome: Outcome,
    /// Why; of a packet that passed the prefilter it is not known yet.
    pub reason: Reason,
    /// The blocklist that it is on.
    pub list: Option<Arc<str>>,
    /// The rate limit that it is beyond.
    pub limit: Option<Arc<str>>,
    /// The rule of policy that decided.
    pub rule: Option<Arc<str>>,
    /// Where that rule stands.
    pub origin: Option<Arc<str>>,
    /// Identities of both sides, of policy.
    pub identities: Option<[u32; 2]>,
    /// The labels of these.
    pub labels: Option<[Labels; 2]>,
    /// Where it came in; its number if it has no name here.
    pub interface: Arc<str>,
    /// Addresses and ports, of an IP packet.
    pub flow: Option<Flow>,
    /// Bytes of the frame.
    pub length: u32,
    /// Packets that it stands for.
    pub weight: u32,
    /// Its first bytes.
    pub bytes: Box<[u8]>,
}

impl Sample {
    /// The stream that it is of.
    pub(super) fn stream(&self) -> Stream {
        match self.outcome {
            Outcome::Passed => Stream::Passed,
            Outcome::Dropped | Outcome::Forwarded | Outcome::Audited => Stream::Dropped,
        }
    }
}

/// Who sent it to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// IP protocol, behind extension headers.
    pub protocol: u8,
    /// Ports of source and destination, where there are any.
    pub ports: Option<(u16, u16)>,
}

/// Of a frame's first bytes. `None`: it is no IP packet, or cut short.
pub(super) fn flow(frame: &[u8]) -> Option<Flow> {
    let (ip, upper) = upper::of_frame(frame)?;
    let mut flow = Flow {
        source: address(ip.src),
        destination: address(ip.dst),
        protocol: ip.protocol,
        ports: None,
    };
    if let Some(upper) = upper {
        const SCTP: u8 = 132;
        flow.protocol = upper.protocol;
        let has = matches!(upper.protocol, protocol::TCP | protocol::UDP | SCTP);
        if has && upper.piece.offset == 0 {
            flow.ports = frame.header::<Ports>(upper.at).map(|ports| {
                let [a, b, c, d] = ports.both();
                (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
            });
        }
    }
    Some(flow)
}

fn address(addr: Addr) -> IpAddr {
    IpAddr::from(addr.to_bytes()).to_canonical()
}

/// Names for the numbers of a record. `None`: its reason is none of this version.
pub(super) fn sample(event: &Event, time: SystemTime, view: &View) -> Option<Sample> {
    let head = &event.head;
    let hook = match head.hook {
        1 => Hook::Ingress,
        2 => Hook::Egress,
        _ => Hook::Xdp,
    };
    let outcome = match head.outcome {
        0 => Outcome::Passed,
        1 => Outcome::Dropped,
        2 => Outcome::Forwarded,
        _ => Outcome::Audited,
    };
    let policy = hook != Hook::Xdp;
    let reason = Reason::from_index(u32::from(head.reason))?;
    let limited = reason == Reason::RateLimited;
    let list = view.lists.iter().find(|list| !policy && !limited && list.row == head.number);
    let limit = view.limits.iter().find(|limit| limited && limit.row + 1 == head.number);
    let rule = view.policy.rules.iter().find(|rule| policy && rule.row + 1 == head.number);
    Some(Sample {
        time,
        hook,
        outcome,
        reason,
        list: list.filter(|_| head.number != 0).map(|list| list.name.as_str().into()),
        limit: limit.map(|limit| limit.spec.name.as_str().into()),
        rule: rule.map(|rule| rule.name.as_str().into()),
        origin: rule.map(|rule| origin(&rule.source).into()),
        identities: policy.then_some(head.identities),
        labels: policy.then(|| head.identities.map(|identity| labels(view, identity))),
        interface: interface(view, head.ifindex),
        flow: flow(event.packet()),
        length: head.length,
        weight: head.weight,
        bytes: event.packet().into(),
    })
}

/// The labels of an identity; none of one that is not known (any more).
fn labels(view: &View, identity: u32) -> Labels {
    let all = &view.policy.identities;
    let found = all.binary_search_by_key(&identity, |(number, _)| *number);
    found.map(|at| all[at].1.clone()).unwrap_or_default()
}

fn origin(source: &Source) -> String {
    match source {
        Source::File { path, line, column } => format!("{}:{line}:{column}", path.display()),
        Source::Api => "api".to_owned(),
        Source::Kubernetes(object) => object.clone(),
    }
}

fn interface(view: &View, index: u32) -> Arc<str> {
    match view.interfaces.iter().find(|i| i.ifindex == Some(index)) {
        Some(known) => known.name.as_str().into(),
        None => nix::net::if_::if_indextoname(index)
            .ok()
            .and_then(|name| name.into_string().ok())
            .unwrap_or_else(|| index.to_string())
            .into(),
    }
}

#[cfg(test)]
impl Sample {
    /// A packet of 60 bytes from this address to itself, which passed.
    pub(crate) fn passed_from(source: &str) -> Self {
        let source = source.parse().expect("an address");
        Self {
            time: SystemTime::UNIX_EPOCH,
            hook: Hook::Xdp,
            outcome: Outcome::Passed,
            reason: Reason::NotOurs,
            list: None,
            limit: None,
            rule: None,
            origin: None,
            labels: None,
            identities: None,
            interface: "eth0".into(),
            flow: Some(Flow { source, destination: source, protocol: 6, ports: None }),
            length: 60,
            weight: 1,
            bytes: Box::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A SYN from 192.0.2.1:1 to 192.0.2.2:80, behind a VLAN tag.
    fn tagged() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x81, 0, 0, 5, 8, 0]);
        frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        frame.extend([0, 1, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn flows() {
        let want = Flow {
            source: "192.0.2.1".parse().unwrap(),
            destination: "192.0.2.2".parse().unwrap(),
            protocol: 6,
            ports: Some((1, 80)),
        };
        assert_eq!(flow(&tagged()), Some(want));
        let mut fragment = tagged();
        fragment[25] = 1;
        assert_eq!(flow(&fragment), Some(Flow { ports: None, ..want }), "a later fragment");
        assert_eq!(flow(&tagged()[..38]), Some(Flow { ports: None, ..want }), "cut short");
        assert_eq!(flow(&[0; 60]), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..128), v6: bool) {
            let mut bytes = bytes;
            if bytes.len() > 14 {
                (bytes[12], bytes[13]) = if v6 { (0x86, 0xdd) } else { (8, 0) };
            }
            let _ = flow(&bytes);
        }
    }
}
