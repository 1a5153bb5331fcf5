//! Packets for a VIP that are not plain TCP or UDP at a port of a service: fragments, extension
//! headers, other protocols, other ports, lies.

use abi::{reason::Reason, table::Unserved};
use config::model::Forwarding;
use etherparse::{Ipv4Header, Ipv6Header, TcpHeader};
use lb_daemon::datapath::Op;
use lb_tests::rig::{CLIENT_MAC, INGRESS, OUR_MAC, Rig, service};

use crate::{
    nat_parts::with_v4_options,
    packets::{DROP, L4, PASS, TX, VIP4, VIP6, frame4, frame6, macs, one_hop_later, v4, v6},
    rig,
};

const CLIENT4: &str = "198.51.100.7";
const CLIENT6: &str = "2001:db8:9::7";

/// Cuts a datagram into fragments with `size` bytes of it each (a multiple of 8).
pub(crate) fn fragments(frame: &[u8], id: u16, size: usize) -> Vec<Vec<u8>> {
    let l3 = &frame[14..];
    let four = l3[0] >> 4 == 4;
    let (head, payload) = l3.split_at(if four { 20 } else { 40 });
    let count = payload.len().div_ceil(size);
    payload
        .chunks(size)
        .enumerate()
        .map(|(n, part)| {
            let (more, offset) = (n + 1 < count, n * size / 8);
            let mut out = frame[..14].to_vec();
            if four {
                let mut h = Ipv4Header::from_slice(head).unwrap().0;
                h.identification = id;
                h.dont_fragment = false;
                h.more_fragments = more;
                h.fragment_offset = (offset as u16).try_into().unwrap();
                h.total_len = (20 + part.len()) as u16;
                h.header_checksum = h.calc_header_checksum();
                out.extend(h.to_bytes());
            } else {
                let mut h = Ipv6Header::from_slice(head).unwrap().0;
                let next = h.next_header.0;
                h.next_header = 44.into();
                h.payload_length = (8 + part.len()) as u16;
                out.extend(h.to_bytes());
                let field = (offset as u16) << 3 | u16::from(more);
                out.extend([next, 0]);
                out.extend(field.to_be_bytes());
                out.extend(u32::from(id).to_be_bytes());
            }
            out.extend(part);
            out
        })
        .collect()
}

#[test]
fn fragments_follow_the_first() {
    let backends: Vec<String> = (1..=20).map(|n| format!("10.0.1.{n}")).collect();
    let names: Vec<&str> = backends.iter().map(String::as_str).collect();
    let web = service("web", &[VIP4, VIP6], Forwarding::Ipip, &names);
    let mut rig = Rig::with(vec![web], INGRESS, 1500);
    for n in 1..=20u16 {
        for frame in [
            frame4(&format!("198.51.100.{n}"), VIP4, L4::Udp(443), 64, &[5; 2000]),
            frame6(&format!("2001:db8:9::{n}"), VIP6, L4::Udp(443), 64, &[5; 2000]),
        ] {
            let whole = match frame[14] >> 4 {
                4 => frame4(&format!("198.51.100.{n}"), VIP4, L4::Udp(443), 64, b""),
                _ => frame6(&format!("2001:db8:9::{n}"), VIP6, L4::Udp(443), 64, b""),
            };
            let owner = rig.run(&whole).frame[30..34].to_vec();
            let parts = fragments(&frame, n, 800);
            assert_eq!(parts.len(), 3);
            let got = rig.run(&parts[1]);
            assert_eq!((got.action, got.reason), (DROP, Reason::FragmentKept), "before the first");
            for part in [&parts[0], &parts[2], &parts[1]] {
                let got = rig.run(part);
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                assert_eq!(got.frame[30..34], owner);
                assert_eq!(got.frame[34..], one_hop_later(&part[14..]));
            }
            let other = fragments(&frame, n + 100, 800);
            assert_eq!(rig.run(&other[1]).reason, Reason::FragmentKept, "of another datagram");
        }
    }
    let (front, back) = rig.counts("web");
    assert_eq!((front.packets, back.packets), (20 * 2 * 4, 20 * 2 * 4));
    // Nobody reads the buffer: it is full at some time.
    let parts = fragments(&frame4(CLIENT4, VIP4, L4::Udp(443), 64, &[5; 2000]), 900, 800);
    let kept = (0..300).take_while(|_| rig.run(&parts[1]).reason == Reason::FragmentKept).count();
    assert!((100..260).contains(&kept), "{kept}");
    assert_eq!(rig.run(&parts[1]).reason, Reason::Fragment);
    // Of nothing that services have.
    let mut gre = fragments(&frame4(CLIENT4, VIP4, L4::Udp(443), 64, &[5; 2000]), 7, 800);
    gre[0][23] = 47;
    assert_eq!(rig.run(&gre[0]).reason, Reason::VipOtherProtocol);
    let closed = fragments(&frame4(CLIENT4, VIP4, L4::Udp(444), 64, &[5; 2000]), 7, 800);
    assert_eq!(rig.run(&closed[0]).reason, Reason::NoService);
}

/// A source route, loose or strict, is kept as any other option, with or without something left of it: the server has the
/// VIP, and its stack says what becomes of the packet. Nobody is told that the route failed.
#[test]
fn source_routes_of_the_ip_header_are_the_servers_business() {
    for forwarding in
        [Forwarding::L2, Forwarding::Ipip, Forwarding::Gue, Forwarding::Geneve, Forwarding::Nat]
    {
        let mut rig = rig(forwarding, "10.0.1.11");
        for kind in [131, 137] {
            for pointer in [4, 8] {
                let options = [kind, 7, pointer, 10, 9, 9, 9, 0];
                let plain = frame4(CLIENT4, VIP4, L4::Syn(80), 64, b"hello");
                let sent = with_v4_options(&plain, options);
                let got = rig.run(&sent);
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx), "{forwarding:?}");
                let inner = &got.frame[got.frame.len() - (sent.len() - 14)..];
                let (header, rest) = Ipv4Header::from_slice(inner).unwrap();
                assert_eq!(header.options.as_slice(), options, "{forwarding:?}");
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                assert_eq!((header.time_to_live, rest.len()), (63, 25));
                let kept = if forwarding == Forwarding::Nat { 20..25 } else { 0..25 };
                assert_eq!(rest[kept.clone()], sent[42..][kept], "{forwarding:?}");
            }
        }
    }
}

#[test]
fn extension_headers_are_walked_over() {
    let mut rig = rig(Forwarding::Ipip, "10.0.1.11");
    let plain = frame6(CLIENT6, VIP6, L4::Syn(80), 64, b"hello");
    let with = |extensions: &[u8], first: u8| {
        let mut out = plain[..54].to_vec();
        out[20] = first;
        let len = (plain.len() - 54 + extensions.len()) as u16;
        out[18..20].copy_from_slice(&len.to_be_bytes());
        out.extend(extensions);
        out.extend(&plain[54..]);
        out
    };
    // Hop-by-hop options with padding; destination options of 16 bytes; both.
    let hop = [6, 0, 1, 4, 0, 0, 0, 0];
    let destination = [6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut both = hop.to_vec();
    both[0] = 60;
    both.extend(destination);
    for (first, extensions) in [(0, &hop[..]), (60, &destination[..]), (0, &both[..])] {
        let frame = with(extensions, first);
        let got = rig.run(&frame);
        assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
        assert_eq!(got.frame[34..], one_hop_later(&frame[14..]));
    }
    assert_eq!(rig.counts("web").0.new_connections, 3);
    let endless: Vec<u8> = [0u8, 0, 1, 4, 0, 0, 0, 0].repeat(9);
    assert_eq!(rig.run(&with(&endless, 0)).reason, Reason::Truncated);
    let icmp_error = rig.run(&with(&[59, 0, 1, 4, 0, 0, 0, 0], 0));
    assert_eq!(icmp_error.reason, Reason::VipOtherProtocol, "no next header");
}

#[test]
fn clients_that_are_not_listed() {
    let mut web = service("web", &[VIP4, VIP6], Forwarding::Ipip, &["10.0.1.11"]);
    let set = |web: &mut config::model::Service, nets: &[&str]| {
        web.source_ranges = nets.iter().map(|net| net.parse().unwrap()).collect();
    };
    set(&mut web, &["198.51.100.0/24", "192.0.2.1/32", "2001:db8:9::/64"]);
    let mut rig = Rig::with(vec![web.clone()], INGRESS, 1500);
    let see = |rig: &mut Rig, client: &str| {
        let frame = match client.contains(':') {
            false => frame4(client, VIP4, L4::Syn(80), 64, b""),
            true => frame6(client, VIP6, L4::Syn(80), 64, b""),
        };
        let got = rig.run(&frame);
        match got.reason {
            Reason::ForwardedTx => true,
            reason => {
                assert_eq!((got.action, reason), (DROP, Reason::SourceRefused), "{client}");
                // Nor is a stranger told that its packet had no hop left.
                if !client.contains(':') {
                    let last = frame4(client, VIP4, L4::Syn(80), 1, b"");
                    assert_eq!(rig.run(&last).reason, Reason::SourceRefused, "{client}");
                }
                false
            }
        }
    };
    for (client, may) in [
        ("198.51.100.0", true),
        ("198.51.100.255", true),
        ("198.51.101.0", false),
        ("198.51.99.255", false),
        ("192.0.2.1", true),
        ("192.0.2.2", false),
        ("2001:db8:9::ffff", true),
        ("2001:db8:9:1::", false),
        ("2001:db8:8:ffff:ffff:ffff:ffff:ffff", false),
    ] {
        assert_eq!(see(&mut rig, client), may, "{client}");
    }
    // No IPv6 prefix any more: no IPv6 client. Then everybody.
    set(&mut web, &["192.0.2.0/24"]);
    rig.put(vec![web.clone()]);
    for (client, may) in [("192.0.2.9", true), ("198.51.100.1", false), ("2001:db8:9::1", false)] {
        assert_eq!(see(&mut rig, client), may, "{client}");
    }
    set(&mut web, &[]);
    rig.put(vec![web]);
    assert!(see(&mut rig, "198.51.101.0") && see(&mut rig, "2001:db8:8::"));
}

/// Frames that the driver has in several buffers: only the first is looked at, all of it is sent.
#[test]
fn jumbo_frames() {
    let jumbo = [0x5a; 8800];
    for (forwarding, outer) in [(Forwarding::L2, 0), (Forwarding::Ipip, 20), (Forwarding::Gue, 32)]
    {
        let web = service("web", &[VIP4, VIP6], forwarding, &["10.0.1.11"]);
        let mut rig = Rig::with(vec![web], INGRESS, 9000);
        for frame in [
            frame4(CLIENT4, VIP4, L4::Ack(80), 64, &jumbo),
            frame6(CLIENT6, VIP6, L4::Udp(443), 64, &jumbo),
        ] {
            let got = rig.run(&frame);
            assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
            assert_eq!(got.frame.len(), frame.len() + outer);
            assert_eq!(got.frame[14 + outer..], one_hop_later(&frame[14..]));
        }
        let too_big = frame4(CLIENT4, VIP4, L4::Ack(80), 64, &[0; 8970]);
        let got = rig.run(&too_big);
        assert_eq!((got.action, got.reason), (TX, Reason::TooBigAnswered));
        let mut lie = frame4(CLIENT4, VIP4, L4::Ack(80), 64, &jumbo);
        let beyond = (lie.len() - 14 + 1) as u16;
        lie[16..18].copy_from_slice(&beyond.to_be_bytes());
        assert_eq!(rig.run(&lie).reason, Reason::BadLength);
    }
}

#[test]
fn lies_in_length_fields() {
    let mut rig = rig(Forwarding::Ipip, "10.0.1.11");
    let mut short = frame4(CLIENT4, VIP4, L4::Ack(80), 64, b"hello");
    short[16..18].copy_from_slice(&39u16.to_be_bytes());
    let mut less = frame4(CLIENT4, VIP4, L4::Udp(443), 64, b"hello");
    less[16..18].copy_from_slice(&10u16.to_be_bytes());
    let mut short6 = frame6(CLIENT6, VIP6, L4::Ack(80), 64, b"hello");
    short6[18..20].copy_from_slice(&19u16.to_be_bytes());
    for frame in [short, less, short6] {
        let got = rig.run(&frame);
        assert_eq!((got.action, got.reason), (DROP, Reason::BadLength));
    }
    // Padding to the least length of a frame is no lie.
    let mut padded = frame4(CLIENT4, VIP4, L4::Udp(443), 64, b"");
    padded.resize(60, 0);
    assert_eq!(rig.run(&padded).reason, Reason::ForwardedTx);
}

#[test]
fn what_no_service_takes() {
    let mut rig = rig(Forwarding::Ipip, "10.0.1.11");
    let syn4 = frame4(CLIENT4, VIP4, L4::Syn(81), 64, b"hello");
    let syn6 = frame6(CLIENT6, VIP6, L4::Syn(81), 64, b"");
    let udp4 = frame4(CLIENT4, VIP4, L4::Udp(80), 64, b"hello");
    let udp6 = frame6(CLIENT6, VIP6, L4::Udp(80), 64, b"hello");
    let mut gre = syn4.clone();
    gre[23] = 47;
    for frame in [&syn4, &syn6, &udp4, &udp6] {
        let got = rig.run(frame);
        assert_eq!((got.action, got.reason), (DROP, Reason::NoService));
    }
    assert_eq!(rig.run(&gre).reason, Reason::VipOtherProtocol);

    rig.apply(&[Op::Unserved(Unserved::Pass)]);
    for frame in [&syn4, &syn6, &udp4, &udp6, &gre] {
        let got = rig.run(frame);
        assert_eq!((got.action, got.reason), (PASS, Reason::UnservedPassed));
        assert_eq!(got.frame, *frame);
    }

    rig.apply(&[Op::Unserved(Unserved::Reject)]);
    for frame in [&syn4, &syn6] {
        let got = rig.run(frame);
        assert_eq!((got.action, got.reason), (TX, Reason::UnservedRejected));
        assert_eq!(macs(&got.frame), (CLIENT_MAC, OUR_MAC));
        let l3 = &got.frame[14..];
        let (tcp, payload, sum) = if l3[0] >> 4 == 4 {
            let (ip, rest) = Ipv4Header::from_slice(l3).unwrap();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!((ip.source, ip.destination), (v4(VIP4), v4(CLIENT4)));
            assert_eq!(usize::from(ip.total_len), l3.len());
            let (tcp, payload) = TcpHeader::from_slice(rest).unwrap();
            let sum = tcp.calc_checksum_ipv4(&ip, payload).unwrap();
            (tcp, payload, sum)
        } else {
            let (ip, rest) = Ipv6Header::from_slice(l3).unwrap();
            assert_eq!((ip.source, ip.destination), (v6(VIP6), v6(CLIENT6)));
            let (tcp, payload) = TcpHeader::from_slice(rest).unwrap();
            let sum = tcp.calc_checksum_ipv6(&ip, payload).unwrap();
            (tcp, payload, sum)
        };
        assert!(tcp.rst && tcp.ack && payload.is_empty());
        assert_eq!((tcp.source_port, tcp.destination_port), (81, 40000));
        let sent = (frame.len() - 14 - l3.len()) as u32;
        assert_eq!((tcp.sequence_number, tcp.acknowledgment_number), (0, 1 + 1 + sent));
        assert_eq!(tcp.checksum, sum);
    }
    for (frame, at, kind) in [(&udp4, 34, [3, 3]), (&udp6, 54, [1, 4])] {
        let got = rig.run(frame);
        assert_eq!((got.action, got.reason), (TX, Reason::UnservedRejected));
        assert_eq!(got.frame[at..at + 2], kind);
        let quoted = at - 14 + 8;
        assert_eq!(got.frame[at + 8..], frame[14..14 + quoted]);
        if at == 34 {
            assert_eq!(abi::checksum::full(&got.frame[at..]), 0);
        } else {
            let icmp = etherparse::Icmpv6Slice::from_slice(&got.frame[at..]).unwrap();
            assert!(icmp.is_checksum_valid(v6(VIP6), v6(CLIENT6)));
        }
    }
    let mut reset = syn4.clone();
    reset[14 + 20 + 13] = 4;
    assert_eq!(rig.run(&reset).reason, Reason::NoService, "a reset is not answered");
    assert_eq!(rig.run(&gre).reason, Reason::VipOtherProtocol);
}
