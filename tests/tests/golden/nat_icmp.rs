//! ICMP errors about translated packets, from either side.

use abi::reason::Reason;
use config::model::{Forwarding, Service};
use etherparse::{Icmpv4Slice, Icmpv6Slice, Ipv4Header, Ipv6Header, PacketBuilder};
use lb_tests::rig::{CLIENT_MAC, HOP_MAC, INGRESS, OUR_MAC, Rig, service};

use crate::{
    odd::fragments,
    packets::{DROP, L4, PASS, TX, VIP4, VIP6, frame4, frame6, macs, v4, v6},
};

const CLIENT: [&str; 2] = ["198.51.100.7", "2001:db8:9::7"];
const WEB: [&str; 2] = ["10.0.1.11", "2001:db8:2::11"];
const NAT: [&str; 2] = ["10.0.0.1", "2001:db8:f::1"];
const VIP: [&str; 2] = [VIP4, VIP6];
const ROUTER: [&str; 2] = ["192.0.2.254", "2001:db8:aaaa::1"];

fn behind(vip: &str, backend: &str) -> Service {
    let mut web = service("web", &[vip], Forwarding::Nat, &[backend]);
    web.ports[0].target_port = 8080;
    web
}

fn rig(family: usize) -> Rig {
    Rig::with(vec![behind(VIP[family], WEB[family])], INGRESS, 1500)
}

fn from_client(family: usize, l4: L4) -> Vec<u8> {
    if family == 0 {
        frame4(CLIENT[0], VIP[0], l4, 64, b"hello")
    } else {
        frame6(CLIENT[1], VIP[1], l4, 64, b"hello")
    }
}

/// A packet from `src` to `dst`, from the IP header on.
pub(crate) fn sent(src: &str, dst: &str, ports: (u16, u16), udp: bool) -> Vec<u8> {
    let b = PacketBuilder::ethernet2(OUR_MAC, HOP_MAC);
    let b =
        if src.contains(':') { b.ipv6(v6(src), v6(dst), 50) } else { b.ipv4(v4(src), v4(dst), 50) };
    let mut out = Vec::new();
    if udp {
        b.udp(ports.0, ports.1).write(&mut out, b"some datagram").unwrap();
    } else {
        b.tcp(ports.0, ports.1, 9, 1000).ack(2).write(&mut out, b"some segment").unwrap();
    }
    out.split_off(14)
}

/// The error that `from` sends about `packet`, of which `quoted` bytes above the IP header come back, to where that
/// came from.
pub(crate) fn error(
    from: &str,
    packet: &[u8],
    kind: u8,
    code: u8,
    rest: u32,
    quoted: usize,
) -> Vec<u8> {
    let b = PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC);
    let mut out = Vec::new();
    if packet[0] >> 4 == 4 {
        let to = packet[12..16].try_into().unwrap();
        let b = b.ipv4(v4(from), to, 60).icmpv4_raw(kind, code, rest.to_be_bytes());
        b.write(&mut out, &packet[..(20 + quoted).min(packet.len())]).unwrap();
    } else {
        let to = packet[8..24].try_into().unwrap();
        let b = b.ipv6(v6(from), to, 60).icmpv6_raw(kind, code, rest.to_be_bytes());
        b.write(&mut out, &packet[..(40 + quoted).min(packet.len())]).unwrap();
    }
    out
}

/// What an error says, its checksums being right.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Says {
    pub(crate) src: String,
    pub(crate) dst: String,
    pub(crate) hops: u8,
    /// Type, code and the rest of the header.
    pub(crate) message: (u8, u8, u32),
    pub(crate) about: Vec<u8>,
}

pub(crate) fn says(frame: &[u8]) -> Says {
    let l3 = &frame[14..];
    let rest = |bytes: [u8; 4]| u32::from_be_bytes(bytes);
    if l3[0] >> 4 == 4 {
        let (ip, above) = Ipv4Header::from_slice(l3).unwrap();
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!(usize::from(ip.total_len), l3.len());
        let icmp = Icmpv4Slice::from_slice(above).unwrap();
        assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()), "ICMP");
        let (inner, _) = Ipv4Header::from_slice(&above[8..]).unwrap();
        assert_eq!(inner.header_checksum, inner.calc_header_checksum(), "inside");
        Says {
            src: std::net::Ipv4Addr::from(ip.source).to_string(),
            dst: std::net::Ipv4Addr::from(ip.destination).to_string(),
            hops: ip.time_to_live,
            message: (above[0], above[1], rest(above[4..8].try_into().unwrap())),
            about: above[8..].to_vec(),
        }
    } else {
        let (ip, above) = Ipv6Header::from_slice(l3).unwrap();
        assert_eq!(usize::from(ip.payload_length), above.len());
        let icmp = Icmpv6Slice::from_slice(above).unwrap();
        assert!(icmp.is_checksum_valid(ip.source, ip.destination), "ICMP");
        Says {
            src: std::net::Ipv6Addr::from(ip.source).to_string(),
            dst: std::net::Ipv6Addr::from(ip.destination).to_string(),
            hops: ip.hop_limit,
            message: (above[0], above[1], rest(above[4..8].try_into().unwrap())),
            about: above[8..].to_vec(),
        }
    }
}

/// The NAT port of a client's packet.
fn nat_port(rig: &mut Rig, family: usize, l4: L4) -> u16 {
    let got = rig.run(&from_client(family, l4));
    assert_eq!(got.reason, Reason::ForwardedTx);
    let at = 14 + [20, 40][family];
    u16::from_be_bytes([got.frame[at], got.frame[at + 1]])
}

/// Kinds of errors of each family: type, code, the rest of the header.
const KINDS: [[(u8, u8, u32); 4]; 2] = [
    [(3, 4, 1400), (3, 3, 0), (3, 1, 0), (11, 0, 0)],
    [(2, 0, 1400), (1, 4, 0), (1, 3, 0), (3, 0, 0)],
];

#[test]
fn from_the_clients_side_to_the_backend() {
    for family in [0, 1] {
        let mut rig = rig(family);
        for (l4, port, target, udp) in
            [(L4::Syn(80), 80, 8080, false), (L4::Udp(443), 443, 443, true)]
        {
            let nat = nat_port(&mut rig, family, l4);
            // What the client was sent, and what the backend had sent.
            let seen = sent(VIP[family], CLIENT[family], (port, 40000), udp);
            let was = sent(WEB[family], NAT[family], (target, nat), udp);
            for (kind, code, rest) in KINDS[family] {
                for quoted in [8, 18, 20, 100] {
                    for from in [ROUTER[family], CLIENT[family]] {
                        let got = rig.run(&error(from, &seen, kind, code, rest, quoted));
                        assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                        assert_eq!(macs(&got.frame), (HOP_MAC, OUR_MAC));
                        let said = says(&got.frame);
                        assert_eq!(
                            (&*said.src, &*said.dst, said.hops),
                            (NAT[family], WEB[family], 59)
                        );
                        assert_eq!(said.message, (kind, code, rest));
                        expect_about(&said.about, &was, udp, quoted);
                    }
                }
            }
        }
        let (front, back) = rig.counts("web");
        assert_eq!((front.packets, back.packets), (2 + 64, 2 + 64));
    }
}

#[test]
fn from_the_backends_side_to_the_client() {
    for family in [0, 1] {
        let mut rig = rig(family);
        for (l4, port, target, udp) in
            [(L4::Syn(80), 80, 8080, false), (L4::Udp(443), 443, 443, true)]
        {
            let nat = nat_port(&mut rig, family, l4);
            let seen = sent(NAT[family], WEB[family], (nat, target), udp);
            let was = sent(CLIENT[family], VIP[family], (40000, port), udp);
            for (kind, code, rest) in KINDS[family] {
                for quoted in [8, 18, 20, 100] {
                    for from in [WEB[family], ROUTER[family]] {
                        let got = rig.run(&error(from, &seen, kind, code, rest, quoted));
                        assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                        assert_eq!(macs(&got.frame), (CLIENT_MAC, OUR_MAC));
                        let said = says(&got.frame);
                        assert_eq!(
                            (&*said.src, &*said.dst, said.hops),
                            (VIP[family], CLIENT[family], 59)
                        );
                        assert_eq!(said.message, (kind, code, rest));
                        expect_about(&said.about, &was, udp, quoted);
                    }
                }
            }
        }
    }
}

/// A packet from the IP header on, as the first fragment of a datagram, of so many bytes, or as the one behind it.
fn fragment(packet: &[u8], bytes: usize, first: bool) -> Vec<u8> {
    let mut frame = vec![0; 14];
    frame[12..14].copy_from_slice(if packet[0] >> 4 == 4 { &[8, 0] } else { &[0x86, 0xdd] });
    frame.extend(packet);
    fragments(&frame, 7, bytes)[usize::from(!first)][14..].to_vec()
}

/// The first one has ports, so that an error about it finds its way. What the sender had sent is what it sees, but for an
/// IPv4 fragment's identification, which nobody remembers.
#[test]
fn about_fragments() {
    for family in [0, 1] {
        let mut rig = rig(family);
        let nat = nat_port(&mut rig, family, L4::Udp(443));
        let above = [20, 48][family];
        let sides = [
            (
                (VIP[family], CLIENT[family], (443, 40000)),
                (WEB[family], NAT[family], (443, nat)),
                HOP_MAC,
            ),
            (
                (NAT[family], WEB[family], (nat, 443)),
                (CLIENT[family], VIP[family], (40000, 443)),
                CLIENT_MAC,
            ),
        ];
        for (seen, was, mac) in sides {
            let of = |(src, dst, ports), first| fragment(&sent(src, dst, ports, true), 16, first);
            for (kind, code, rest) in KINDS[family] {
                for quoted in [8, 12, 16] {
                    // The fragment header is one of what is quoted above the IP header.
                    let quoted = quoted + above - [20, 40][family];
                    let message = error(ROUTER[family], &of(seen, true), kind, code, rest, quoted);
                    let got = rig.run(&message);
                    assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx), "{quoted}");
                    assert_eq!(macs(&got.frame).0, mac);
                    let said = says(&got.frame);
                    assert_eq!((&*said.src, &*said.dst), (was.1, was.0));
                    assert_eq!(said.message, (kind, code, rest));
                    expect_about(&said.about, &of(was, true), true, quoted);
                }
                // A later one has no ports.
                let message = error(ROUTER[family], &of(seen, false), kind, code, rest, 8 + above);
                let got = rig.run(&message);
                let own = seen.0 == NAT[family];
                let want =
                    if own { (PASS, Reason::NatPassed) } else { (DROP, Reason::VipOtherProtocol) };
                assert_eq!((got.action, got.reason, &got.frame), (want.0, want.1, &message));
            }
        }
    }
}

/// The packet inside is the one that its sender had sent, as far as it came back.
#[track_caller]
pub(crate) fn expect_about(about: &[u8], was: &[u8], udp: bool, quoted: usize) {
    let plain = if was[0] >> 4 == 4 { 20 } else { 40 };
    let len = (plain + quoted).min(was.len());
    let mut was = was[..len].to_vec();
    if !udp && (18..20).contains(&quoted) {
        // The header was cut: its checksum stays as it came.
        was[plain + 16..plain + 18].copy_from_slice(&about[plain + 16..plain + 18]);
    }
    assert_eq!(about, was);
}

#[test]
fn what_is_of_no_connection() {
    for family in [0, 1] {
        let mut rig = rig(family);
        let nat = nat_port(&mut rig, family, L4::Syn(80));
        let (kind, code, rest) = KINDS[family][0];
        let message = |packet: &[u8]| error(ROUTER[family], packet, kind, code, rest, 8);
        let to_client = |port, to| sent(VIP[family], CLIENT[family], (port, to), false);
        let to_backend = |port, to| sent(NAT[family], WEB[family], (port, to), false);
        for (what, frame, reason) in [
            ("another client", message(&to_client(80, 40001)), Reason::NatNoEntry),
            ("no service", message(&to_client(81, 40000)), Reason::NoService),
            ("another NAT port", message(&to_backend(nat ^ 1, 8080)), Reason::NatPassed),
            ("another port of the backend", message(&to_backend(nat, 80)), Reason::NatPassed),
            ("the host's own", message(&to_backend(50000, 80)), Reason::NatPassed),
        ] {
            let got = rig.run(&frame);
            let action = if reason == Reason::NatPassed { PASS } else { DROP };
            assert_eq!((got.action, got.reason), (action, reason), "{what}");
            assert_eq!(got.frame, frame, "{what}");
        }
        // An MTU that no link has, about a connection that there is; a packet that has no hops left.
        let least = if family == 0 { 60 } else { 1200 };
        let frame = error(ROUTER[family], &to_backend(nat, 8080), kind, code, least, 8);
        assert_eq!(rig.run(&frame).reason, Reason::BadIcmp);
        let frame = error(ROUTER[family], &to_client(80, 40000), kind, code, least, 8);
        assert_eq!(rig.run(&frame).reason, Reason::BadIcmp);
        let mut late = message(&to_backend(nat, 8080));
        late[[22, 21][family]] = 1;
        assert_eq!(rig.run(&late).reason, Reason::TtlExpired);
        let mut lie = message(&to_backend(nat, 8080));
        lie[[17, 19][family]] += 40;
        assert_eq!(rig.run(&lie).reason, Reason::BadLength);
        // It says that it is about a packet that did not come from here.
        let mut other = message(&to_backend(nat, 8080));
        other[14 + [20 + 8 + 12, 40 + 8 + 8][family]] ^= 1;
        assert_eq!(rig.run(&other).reason, Reason::NatPassed);
    }
}
