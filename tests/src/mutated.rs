//! Packets made by chance from a seed and then damaged, through the program in the kernel: every packet is
//! counted once, none passes half rewritten, and none leaves with a wrong checksum that came with a right
//! one.
//!
//! [`run`] sends them; `make test` has it do so for one seed, `make bench ARGS="--only fuzz"` for many.
#![expect(clippy::unwrap_used, reason = "packets that are built here fit their buffers")]

use std::{collections::BTreeMap, net::IpAddr};

use abi::{
    reason::{Reason, Verdict},
    table::Unserved,
};
use config::model::{Forwarding, SourceRoute};
use etherparse::PacketBuilder;
use lb_daemon::datapath::Op;

use self::translated::Connections;
use crate::rig::{CLIENT_MAC, INGRESS, OUR_MAC, Outcome, Rig, service};

mod translated;

/// VIPs of the services, by the last byte of their addresses.
const VIPS: [(Forwarding, u8); 6] = [
    (Forwarding::L2, 10),
    (Forwarding::Ipip, 11),
    (Forwarding::Gue, 12),
    (Forwarding::Geneve, 13),
    (Forwarding::Nat, 15),
    (Forwarding::Nat, 16),
];
/// The one with a list of clients.
const LISTED: u8 = 13;
/// Those that route some clients.
const ROUTED: [u8; 2] = [11, LISTED];
/// Those whose packets are translated.
const TRANSLATED: [u8; 2] = [15, 16];
/// Where tunnels end, and where translated packets come from.
const OURS4: [u8; 4] = [10, 0, 0, 1];
const OURS6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0xf, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn vip4(last: u8) -> [u8; 4] {
    [203, 0, 113, last]
}

fn vip6(last: u8) -> [u8; 16] {
    [0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// Numbers that look random (xorshift64*), the same for the same seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.below(some.len())]
    }
}

/// A packet without Ethernet header: plain, whole and right.
fn datagram(dice: &mut Dice) -> Vec<u8> {
    let last = dice.of(&[10, 11, 12, 13, 15, 16, 10, 11, 12, 13, 14, 15]);
    let payload = vec![dice.next() as u8; dice.of(&[0, 1, 5, 64, 700, 1450, 1470])];
    let source = 1024 + dice.below(60000) as u16;
    let (tcp, udp) = match dice.below(8) {
        0 => dice.of(&[(443, 80), (0, 0), (81, 6080), (81, 6081)]),
        _ => (80, 443),
    };
    let hops = dice.of(&[64, 64, 64, 64, 64, 64, 64, 255, 2, 1, 0]);
    let kind = dice.below(6);
    let mut out = Vec::new();
    if dice.one_in(2) {
        let b = PacketBuilder::ipv4([198, 51, 100, dice.next() as u8], vip4(last), hops);
        match kind {
            0 => b.tcp(source, tcp, 7, 9).syn().write(&mut out, &payload),
            1 | 2 => b.tcp(source, tcp, 7, 9).ack(3).write(&mut out, &payload),
            3 => b.udp(source, udp).write(&mut out, &payload),
            4 => b.icmpv4_echo_request(source, 1).write(&mut out, &payload),
            _ => {
                let quoted = reply4(dice, last);
                let (kind, code) = dice.of(&[(3, 4), (3, 3), (11, 0), (12, 0), (5, 0)]);
                let mtu = dice.of(&[0, 40, 1400]);
                b.icmpv4_raw(kind, code, [0, 0, (mtu >> 8) as u8, mtu as u8])
                    .write(&mut out, &quoted)
            }
        }
        .unwrap();
    } else {
        let mut client = vip6(0);
        client[5] = 9;
        client[15] = dice.next() as u8;
        let b = PacketBuilder::ipv6(client, vip6(last), hops);
        match kind {
            0 => b.tcp(source, tcp, 7, 9).syn().write(&mut out, &payload),
            1 | 2 => b.tcp(source, tcp, 7, 9).ack(3).write(&mut out, &payload),
            3 => b.udp(source, udp).write(&mut out, &payload),
            4 => b.icmpv6_echo_request(source, 1).write(&mut out, &payload),
            _ => {
                let mut quoted = vec![0x60, 0, 0, 0, 0, 8, dice.of(&[6, 17]), 60];
                quoted.extend(vip6(last));
                quoted.extend(client);
                quoted.extend([0, dice.of(&[80, 187]), 0x9c, 0x40, 0, 0, 0, 0]);
                let (kind, code) = dice.of(&[(2, 0), (1, 4), (3, 0), (135, 0), (200, 0)]);
                let mtu = dice.of(&[0u16, 1200, 1400]).to_be_bytes();
                b.icmpv6_raw(kind, code, [0, 0, mtu[0], mtu[1]]).write(&mut out, &quoted)
            }
        }
        .unwrap();
    }
    out
}

/// What an ICMP error brings back: the beginning of a reply from a VIP.
fn reply4(dice: &mut Dice, last: u8) -> Vec<u8> {
    let mut quoted = vec![0x45, 0, 5, 0, 0, 0, 0x40, 0, 60, dice.of(&[6, 17]), 0, 0];
    quoted.extend(vip4(last));
    quoted.extend([198, 51, 100, 7]);
    let sum = full_sum(&[&quoted]);
    quoted[10..12].copy_from_slice(&(!sum).to_be_bytes());
    quoted.extend([0, dice.of(&[80, 187]), 0x9c, 0x40, 0, 0, 0, 0]);
    quoted
}

/// Perhaps a fragment of it, with options, or behind extension headers.
fn odd(dice: &mut Dice, mut l3: Vec<u8>) -> Vec<u8> {
    let four = l3[0] >> 4 == 4;
    match dice.below(12) {
        0 if four => {
            let field = dice.of(&[0x2000u16, 0x2010, 0x0010, 0x1fff]);
            l3[4] = dice.below(4) as u8;
            l3[6..8].copy_from_slice(&field.to_be_bytes());
        }
        0 | 1 if !four => {
            let header = match dice.below(2) {
                0 => [l3[6], 0, 0, dice.of(&[1, 0x11, 0x10]), 0, 0, 0, dice.below(4) as u8],
                _ => [l3[6], 0, 1, 4, 0, 0, 0, 0],
            };
            l3[6] = if header[2] == 0 { 44 } else { dice.of(&[0, 60, 43]) };
            l3.splice(40..40, header);
            let len = (l3.len() - 40) as u16;
            l3[4..6].copy_from_slice(&len.to_be_bytes());
        }
        1 => {
            l3[0] = 0x46;
            // Nothing; a source route with something left, and with nothing.
            l3.splice(20..20, dice.of(&[[1, 1, 1, 0], [131, 3, 3, 0], [131, 3, 4, 0]]));
            let len = l3.len() as u16;
            l3[2..4].copy_from_slice(&len.to_be_bytes());
        }
        _ => {}
    }
    set_header_sum(&mut l3);
    l3
}

/// Perhaps inside a tunnel that ends here.
fn tunnelled(dice: &mut Dice, inner: Vec<u8>) -> Vec<u8> {
    let inner_v4 = inner[0] >> 4 == 4;
    let mut shim = match dice.below(3) {
        0 => Vec::new(),
        1 => vec![0, if inner_v4 { 4 } else { 41 }, 0, 0],
        _ => {
            let mut shim = vec![0, 0, 8, 0, 0, 0, 0, 0];
            if !inner_v4 {
                shim[2..4].copy_from_slice(&[0x86, 0xdd]);
            }
            if dice.one_in(3) {
                shim[0] = 1;
                shim.extend([0, 0, 0, 0]);
            }
            shim
        }
    };
    let protocol = match shim.len() {
        0 if inner_v4 => 4,
        0 => 41,
        n => {
            let [high, low] = (8 + n + inner.len()).to_be_bytes()[6..] else { unreachable!() };
            let port = if n == 4 { 0xc0 } else { 0xc1 };
            shim.splice(0..0, [0xd0, 0, 0x17, port, high, low, 0, 0]);
            17
        }
    };
    let tos = dice.below(4) as u8;
    let len = (shim.len() + inner.len()) as u16;
    let mut out = if dice.one_in(2) {
        let total = (len + 20).to_be_bytes();
        let mut h = vec![0x45, tos, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
        h.extend([10, 0, 0, 9]);
        h.extend(OURS4);
        h
    } else {
        let len = len.to_be_bytes();
        let mut h = vec![0x60, tos << 4, 0, 0, len[0], len[1], protocol, 64];
        h.extend(vip6(9));
        h.extend(OURS6);
        h
    };
    set_header_sum(&mut out);
    out.extend(shim);
    out.extend(inner);
    out
}

fn set_header_sum(l3: &mut [u8]) {
    if l3[0] >> 4 == 4 {
        let header = (l3[0] as usize & 15) * 4;
        l3[10..12].fill(0);
        let sum = !full_sum(&[&l3[..header]]);
        l3[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// A frame: with tags, perhaps damaged; perhaps of a connection that is translated.
fn frame(dice: &mut Dice, connections: &Connections) -> Vec<u8> {
    let plain = if dice.one_in(4) { connections.packet(dice) } else { None };
    let plain = plain.unwrap_or_else(|| datagram(dice));
    let mut l3 = odd(dice, plain);
    if dice.one_in(5) {
        l3 = tunnelled(dice, l3);
    }
    let mut out = Vec::with_capacity(l3.len() + 22);
    out.extend(OUR_MAC);
    out.extend(CLIENT_MAC);
    for _ in 0..dice.of(&[0, 0, 0, 1, 2]) {
        out.extend([0x81, 0, 0, 7]);
    }
    out.extend(if l3[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] });
    let head = out.len();
    out.extend(l3);
    for _ in 0..dice.of(&[0, 0, 0, 1, 1, 2, 3]) {
        damage(dice, &mut out, head);
    }
    out
}

fn damage(dice: &mut Dice, frame: &mut Vec<u8>, head: usize) {
    // Most often within the headers.
    let near = (head + 64).min(frame.len());
    let at = if dice.one_in(8) { dice.below(frame.len()) } else { head + dice.below(near - head) };
    match dice.below(8) {
        0 => frame[at] ^= 1 << dice.below(8),
        1 => frame[at] = dice.of(&[0, 1, 0x7f, 0x80, 0xff]),
        2 => frame[at] = dice.next() as u8,
        3 => frame[dice.of(&[12usize, 13, 16, 17]).min(near - 1)] = dice.next() as u8,
        4 => {
            let len = (14 + dice.below(frame.len())).clamp(15, frame.len());
            frame.truncate(len.max(head + 1));
        }
        5 => frame.extend(vec![0; dice.below(40)]),
        6 => frame[head] = dice.of(&[0x45, 0x46, 0x4f, 0x44, 0x60, 0x00, 0xf5]),
        // Right again, so that what stands behind it is looked at.
        _ if frame.len() >= head + 60 && frame[head] == 0x45 => set_header_sum(&mut frame[head..]),
        _ => {}
    }
}

/// Ones' complement sum, from RFC 1071 and not from the code under test.
fn full_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| u64::from(b));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The first wrong checksum of an IP packet, inner packets included; or that there is none.
fn wrong(l3: &[u8]) -> Option<&'static str> {
    let (protocol, payload, pseudo) = match l3.first()? >> 4 {
        4 => {
            let header = (l3[0] as usize & 15) * 4;
            let total = usize::from(u16::from_be_bytes([*l3.get(2)?, *l3.get(3)?]));
            if header < 20 || l3.len() < total || total < header {
                return Some("lengths");
            }
            if full_sum(&[&l3[..header]]) != 0xffff {
                return Some("IPv4 header");
            }
            if u16::from_be_bytes([l3[6], l3[7]]) & 0x3fff != 0 {
                return None;
            }
            (l3[9], &l3[header..total], l3[12..20].to_vec())
        }
        6 => {
            let total = 40 + usize::from(u16::from_be_bytes([*l3.get(4)?, *l3.get(5)?]));
            if l3.len() < total {
                return Some("lengths");
            }
            let mut above = (l3[6], &l3[40..total]);
            // Behind headers that do not matter to the checksum.
            while let (0 | 60 | 43 | 44, [next, len, kind, left, ..]) = above {
                let part = above.0 == 44 && [*kind, left & 0xf9] != [0, 0];
                if part || (above.0 == 43 && *left != 0) {
                    return None;
                }
                let len = if above.0 == 44 { 0 } else { usize::from(*len) };
                above = (*next, above.1.get(8 + 8 * len..).unwrap_or_default());
            }
            (above.0, above.1, l3[8..40].to_vec())
        }
        _ => return Some("version"),
    };
    let len = (payload.len() as u32).to_be_bytes();
    let sum = |with: bool| {
        let pseudo: &[u8] = if with { &pseudo } else { &[] };
        let tail = if with { [0, 0, 0, protocol] } else { [0; 4] };
        full_sum(&[pseudo, if with { &len } else { &[] }, &tail, payload])
    };
    match protocol {
        6 if payload.len() >= 20 && sum(true) != 0xffff => Some("TCP"),
        17 if payload.len() >= 8 => {
            let tunnel = payload[2] == 0x17 && matches!(payload[3], 0xc0 | 0xc1);
            let none = payload[6..8] == [0, 0] && (l3[0] >> 4 == 4 || tunnel);
            let inner = match payload[3] {
                0xc0 if tunnel => 12,
                0xc1 if tunnel && payload.len() > 8 => 16 + (payload[8] as usize & 0x3f) * 4,
                _ => return if none || sum(true) == 0xffff { None } else { Some("UDP") },
            };
            if !none {
                return Some("a tunnel's UDP");
            }
            wrong(payload.get(inner..).unwrap_or_default())
        }
        1 if payload.len() >= 8 && sum(false) != 0xffff => Some("ICMP"),
        58 if payload.len() >= 8 && sum(true) != 0xffff => Some("ICMPv6"),
        4 | 41 => wrong(payload),
        _ => None,
    }
}

/// Where the IP header of a frame begins, if it has one.
fn l3_of(frame: &[u8]) -> Option<usize> {
    let mut at = 12;
    for _ in 0..3 {
        match frame.get(at..at + 2)? {
            [0x81, 0] | [0x88, 0xa8] if at < 20 => at += 4,
            [8, 0] | [0x86, 0xdd] => return Some(at + 2),
            _ => return None,
        }
    }
    None
}

/// The packet without what every hop changes.
fn without_hops(l3: &[u8]) -> Vec<u8> {
    let mut out = l3.to_vec();
    if out[0] >> 4 == 4 {
        out[8] = 0;
        out[10..12].fill(0);
    } else {
        out[7] = 0;
    }
    out
}

/// What must be true of any packet.
fn judge(frame: &[u8], got: &Outcome) -> Result<(), String> {
    const ACTIONS: [u32; 3] = [2, 1, 3];
    let index = match got.reason.verdict() {
        Verdict::Pass => 0,
        Verdict::Drop => 1,
        Verdict::Forward => 2,
    };
    if got.action != ACTIONS[index] {
        return Err(format!("action {}", got.action));
    }
    if matches!(
        got.reason,
        Reason::NatNotWritten | Reason::NatNotChosen | Reason::NatTagged | Reason::NatNotPlain
    ) {
        return Err("the program that should have gone on with it did not".to_owned());
    }
    // The stack sends it on to where its new destination says.
    if got.reason == Reason::HandedOnByHost {
        return Ok(());
    }
    if matches!(index, 0) && got.reason != Reason::Decapsulated && got.frame != frame {
        return Err("it passes and has been changed".to_owned());
    }
    if index == 1 || (index == 0 && got.reason != Reason::Decapsulated) {
        return Ok(());
    }
    let (Some(before), Some(after)) = (l3_of(frame), l3_of(&got.frame)) else {
        return Err("no IP header".to_owned());
    };
    let (sent, came) = (&got.frame[after..], &frame[before..]);
    let translated = got.reason == Reason::ForwardedTx && translated::is_due(came);
    // Those of what is translated are the client's.
    if !translated && frame[12..before - 2] != got.frame[12..after - 2] {
        return Err("other tags".to_owned());
    }
    let own = matches!(got.reason, Reason::TooBigAnswered | Reason::UnservedRejected);
    if let Some(what) = wrong(sent)
        && (own || wrong(came).is_none())
    {
        return Err(format!("wrong checksum: {what}"));
    }
    match got.reason {
        Reason::ForwardedTx if translated => translated::judge(came, sent)?,
        Reason::ForwardedTx => {
            let outer = sent.len() - came.len();
            if without_hops(&sent[outer..]) != without_hops(came) {
                return Err("the packet inside is another".to_owned());
            }
            let header = if sent[0] >> 4 == 4 { 20 } else { 40 };
            if outer > 0 && header == 20 && full_sum(&[&sent[..20]]) != 0xffff {
                return Err("outer header's checksum".to_owned());
            }
        }
        Reason::Decapsulated => {
            let outer = came.len() - sent.len();
            let inner = &came[outer..];
            let at = if sent[0] >> 4 == 4 { 12 } else { 2 };
            if sent[at..] != inner[at..] {
                return Err("another packet than the one inside".to_owned());
            }
        }
        _ => {}
    }
    Ok(())
}

/// Reasons that a hundred thousand of these packets meet; others need another configuration.
pub const MET: [Reason; 25] = [
    Reason::NotOurs,
    Reason::NotIp,
    Reason::VipOtherProtocol,
    Reason::Decapsulated,
    Reason::ForwardedTx,
    Reason::Truncated,
    Reason::BadLength,
    Reason::TtlExpired,
    Reason::Fragment,
    Reason::FragmentKept,
    Reason::NoService,
    Reason::TooBig,
    Reason::BadInner,
    Reason::CongestedInner,
    Reason::EchoAnswered,
    Reason::NeighbourDiscovery,
    Reason::BadIcmp,
    Reason::TooBigAnswered,
    Reason::UnservedRejected,
    Reason::UnservedPassed,
    Reason::SourceRefused,
    Reason::TunnelSourceRefused,
    Reason::NatPassed,
    Reason::NatNoEntry,
    Reason::NatRefused,
];

/// Packets after which the configuration is another one.
const CHAPTER: u64 = 4096;

/// Sends `count` packets of this seed, and says how many came to which reason.
///
/// # Errors
///
/// The first packet that was not treated as it should be, as it came and as it left.
///
/// # Panics
///
/// A packet is counted under no reason, or under two.
pub fn run(seed: u64, count: u64) -> Result<BTreeMap<&'static str, u64>, String> {
    let mut rig = Rig::with(VIPS.iter().map(service_of).collect(), INGRESS, 1500);
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    let mut connections = Connections::default();
    for n in 0..count {
        if n.is_multiple_of(CHAPTER) {
            configure(&mut rig, n / CHAPTER);
        }
        let frame = frame(&mut dice, &connections);
        // Counted under one reason, and with all its bytes: the rig sees to it.
        let got = rig.run(&frame);
        *seen.entry(got.reason.name()).or_default() += 1;
        judge(&frame, &got).map_err(|what| {
            format!(
                "packet {n} of seed {seed}: {:?}: {what}\n in  {:02x?}\n out {:02x?}",
                got.reason,
                &frame[..frame.len().min(160)],
                &got.frame[..got.frame.len().min(160)]
            )
        })?;
        if got.reason == Reason::ForwardedTx {
            connections.note(&mut dice, &frame, &got.frame);
        }
    }
    Ok(seen)
}

/// A service with addresses of both families. The last one is for some clients alone, and it and one other route half
/// of them to a backend of their own.
fn service_of(&(forwarding, last): &(Forwarding, u8)) -> config::model::Service {
    let addresses = [IpAddr::from(vip4(last)).to_string(), IpAddr::from(vip6(last)).to_string()];
    let addresses = addresses.each_ref().map(String::as_str);
    let backends = match last % 2 {
        0 => ["10.0.1.1", "10.0.1.2", "10.0.1.3"],
        _ => ["2001:db8:2::1", "2001:db8:2::2", "10.0.1.4"],
    };
    let mut made = service(&format!("s{last}"), &addresses, forwarding, &backends);
    if last == LISTED {
        made.source_ranges = ["198.51.100.0/25", "2001:db8:9::/121"]
            .map(|net| net.parse().expect("a prefix that is written here"))
            .into();
    }
    if ROUTED.contains(&last) {
        let prefixes = ["198.51.100.0/26", "198.51.100.128/25", "2001:db8:9::/122"]
            .map(|net| net.parse().expect("a prefix that is written here"));
        made.source_routes =
            vec![SourceRoute { prefixes: prefixes.into(), group: "few".to_owned() }];
        if let Some(backend) = made.backends.last_mut() {
            backend.group = Some("few".to_owned());
        }
    }
    made
}

/// What the configuration says beside the services, by turns.
fn configure(rig: &mut Rig, chapter: u64) {
    let unserved = [Unserved::Drop, Unserved::Reject, Unserved::Pass][(chapter % 3) as usize];
    rig.apply(&[Op::Unserved(unserved)]);
    let sources: &[&str] = if chapter.is_multiple_of(2) { &[] } else { &["10.0.0.8/30"] };
    rig.decap_from("10.0.0.1", sources);
}
