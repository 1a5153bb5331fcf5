//! DNS messages (RFC 1035), as far as rules on names need them. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use abi::{
    policy::{Part, head},
    wire::ethertype,
};
use simple_dns::{Name, Packet, PacketFlag, RCODE, rdata::RData};

/// Steps from a name to its alias that are followed.
const MAX_ALIASES: usize = 16;
/// Bytes of a UDP header.
const UDP: usize = 8;

/// A message, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The endpoint's address and port.
    pub local: (IpAddr, u16),
    /// The server's address.
    pub server: IpAddr,
    /// Of the question and its answer.
    pub id: u16,
    /// Whom it is about, in lower case and without a dot at the end.
    pub name: String,
    /// Addresses of the name, with their time to live in seconds; none of a question.
    pub addresses: Vec<(IpAddr, u32)>,
}

/// Reads a frame that goes to the endpoint (an answer), or from it (a question). `None`: it is cut short or
/// something else.
#[must_use]
pub fn read(frame: &[u8], is_answer: bool) -> Option<Message> {
    let v4 = match <[u8; 2]>::try_from(frame.get(12..14)?).ok()? {
        ethertype::IPV4 => true,
        ethertype::IPV6 => false,
        _ => return None,
    };
    let head = head(frame, 14, v4)?;
    if head.protocol != 17 || head.part != Part::Whole {
        return None;
    }
    let at = head.at as usize;
    let length = usize::from(u16::from_be_bytes(frame.get(at + 4..at + 6)?.try_into().ok()?));
    let packet = Packet::parse(frame.get(at + UDP..at.checked_add(length)?)?).ok()?;
    if packet.has_flags(PacketFlag::RESPONSE) != is_answer {
        return None;
    }
    let [question] = &packet.questions[..] else { return None };
    let name = text(&question.qname)?;
    let ports = [head.ports as u16, (head.ports >> 16) as u16].map(u16::from_be);
    let (src, dst) = (IpAddr::from(head.src), IpAddr::from(head.dst));
    let (local, server) = if is_answer { ((dst, ports[1]), src) } else { ((src, ports[0]), dst) };
    let good =
        is_answer && packet.rcode() == RCODE::NoError && !packet.has_flags(PacketFlag::TRUNCATION);
    let addresses = if good { addresses(&packet, &name) } else { Vec::new() };
    Some(Message { local, server, id: packet.id(), name, addresses })
}

/// Addresses of a name by way of its aliases; what is about other names is left out.
fn addresses(packet: &Packet<'_>, name: &str) -> Vec<(IpAddr, u32)> {
    let mut aliases: BTreeMap<String, (String, u32)> = BTreeMap::new();
    for record in &packet.answers {
        if let RData::CNAME(to) = &record.rdata
            && let (Some(from), Some(to)) = (text(&record.name), text(&to.0))
        {
            aliases.insert(from, (to, record.ttl));
        }
    }
    // Each name on the way, and the shortest time to live until there.
    let mut way = BTreeMap::from([(name.to_owned(), u32::MAX)]);
    let (mut at, mut ttl) = (name.to_owned(), u32::MAX);
    while let Some((next, own)) = aliases.get(&at)
        && way.len() <= MAX_ALIASES
        && !way.contains_key(next)
    {
        ttl = ttl.min(*own);
        way.insert(next.clone(), ttl);
        at.clone_from(next);
    }
    let mut found = Vec::new();
    for record in &packet.answers {
        let address = match &record.rdata {
            RData::A(a) => IpAddr::V4(Ipv4Addr::from(a.address)),
            RData::AAAA(a) => IpAddr::V6(Ipv6Addr::from(a.address)).to_canonical(),
            _ => continue,
        };
        // Nobody is reached at these over a network.
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            continue;
        }
        if let Some(ttl) = text(&record.name).and_then(|own| way.get(&own).copied()) {
            found.push((address, record.ttl.min(ttl)));
        }
    }
    found
}

/// `None`: a label has characters that no rule can name, such as a dot.
fn text(name: &Name<'_>) -> Option<String> {
    let mut text = String::new();
    for label in name.as_bytes() {
        if !label.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_')) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|c| char::from(c.to_ascii_lowercase())));
    }
    Some(text)
}
