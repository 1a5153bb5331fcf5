//! GUE and Geneve, there and back; what the outer header says to the inner one.

use abi::{limits::feature, reason::Reason};
use config::model::Forwarding;
use etherparse::{Ipv4Header, Ipv6Header, UdpHeader};
use lb_tests::rig::{INGRESS, Rig};

use crate::{
    packets::{DROP, L4, PASS, TX, VIP4, VIP6, frame4, frame6, one_hop_later, v4, v6},
    rig, web,
};

/// Whatever is sent, to a backend of either family.
fn frames() -> [Vec<u8>; 4] {
    [
        frame4("198.51.100.7", VIP4, L4::Syn(80), 64, b"hello"),
        frame4("198.51.100.7", VIP4, L4::Udp(443), 64, b"hello"),
        frame6("2001:db8:9::7", VIP6, L4::Ack(80), 64, b"hello"),
        frame6("2001:db8:9::7", VIP6, L4::Udp(443), 64, b""),
    ]
}

/// The UDP header and what follows it, of a frame with an outer header to `backend`.
fn outer_udp<'f>(frame: &'f [u8], backend: &str) -> (UdpHeader, &'f [u8]) {
    let l3 = &frame[14..];
    let rest = if backend.contains(':') {
        assert_eq!(frame[12..14], [0x86, 0xdd]);
        let (h, rest) = Ipv6Header::from_slice(l3).unwrap();
        assert_eq!((h.source, h.destination), (v6("2001:db8:f::1"), v6(backend)));
        assert_eq!((h.next_header.0, usize::from(h.payload_length)), (17, rest.len()));
        rest
    } else {
        assert_eq!(frame[12..14], [8, 0]);
        let (h, rest) = Ipv4Header::from_slice(l3).unwrap();
        assert_eq!(h.header_checksum, h.calc_header_checksum());
        assert_eq!((h.source, h.destination), (v4("10.0.0.1"), v4(backend)));
        assert_eq!((h.protocol.0, usize::from(h.total_len)), (17, l3.len()));
        assert!(h.dont_fragment);
        rest
    };
    let (udp, inner) = UdpHeader::from_slice(rest).unwrap();
    assert_eq!(usize::from(udp.length), rest.len());
    assert_eq!(udp.checksum, 0, "RFC 6935");
    assert!(udp.source_port >= 0xc000);
    (udp, inner)
}

#[test]
fn there_and_back_in_every_combination_of_families() {
    let mut sender = Rig::with(Vec::new(), INGRESS, 1500);
    let mut receiver = Rig::new(feature::DECAP);
    for backend in ["10.0.1.11", "2001:db8:2::11"] {
        for forwarding in [Forwarding::Ipip, Forwarding::Gue, Forwarding::Geneve] {
            sender.put(Vec::new());
            sender.fill(vec![web(forwarding, backend)], INGRESS, 1500);
            receiver.decap_at(backend);
            for frame in frames() {
                let sent = sender.run(&frame);
                assert_eq!((sent.action, sent.reason), (TX, Reason::ForwardedTx));
                let sent = sent.frame;
                let v4 = frame[12..14] == [8, 0];
                match forwarding {
                    Forwarding::Gue => {
                        let (udp, rest) = outer_udp(&sent, backend);
                        assert_eq!(udp.destination_port, 6080);
                        assert_eq!(rest[..4], [0, if v4 { 4 } else { 41 }, 0, 0]);
                        assert_eq!(rest[4..], one_hop_later(&frame[14..]));
                    }
                    Forwarding::Geneve => {
                        let (udp, rest) = outer_udp(&sent, backend);
                        assert_eq!(udp.destination_port, 6081);
                        assert_eq!(rest[..2], [0, 0]);
                        assert_eq!(rest[2..4], frame[12..14]);
                        assert_eq!(rest[4..8], [0; 4]);
                        assert_eq!(rest[8..], one_hop_later(&frame[14..]));
                    }
                    _ => {}
                }
                let got = receiver.run(&sent);
                assert_eq!((got.action, got.reason), (PASS, Reason::Decapsulated));
                assert_eq!(got.frame[..12], sent[..12]);
                assert_eq!(got.frame[12..14], frame[12..14]);
                assert_eq!(got.frame[14..], one_hop_later(&frame[14..]));
            }
        }
    }
}

#[test]
fn flows_spread_over_source_ports() {
    for forwarding in [Forwarding::Gue, Forwarding::Geneve] {
        let mut rig = rig(forwarding, "10.0.1.11");
        let mut ports = std::collections::BTreeSet::new();
        for n in 1..=100 {
            let frame = frame4(&format!("198.51.100.{n}"), VIP4, L4::Ack(80), 64, b"");
            let port = outer_udp(&rig.run(&frame).frame, "10.0.1.11").0.source_port;
            assert_eq!(outer_udp(&rig.run(&frame).frame, "10.0.1.11").0.source_port, port);
            ports.insert(port);
        }
        assert!(ports.len() > 90, "{} ports", ports.len());
    }
}

#[test]
fn the_largest_packet_that_fits() {
    for (forwarding, backend, outer) in [
        (Forwarding::Ipip, "10.0.1.11", 20),
        (Forwarding::Gue, "10.0.1.11", 32),
        (Forwarding::Geneve, "10.0.1.11", 36),
        (Forwarding::Ipip, "2001:db8:2::11", 40),
        (Forwarding::Gue, "2001:db8:2::11", 52),
        (Forwarding::Geneve, "2001:db8:2::11", 56),
    ] {
        let mut rig = rig(forwarding, backend);
        // 1,500 bytes less the outer headers and those of IPv4 and TCP.
        let fits = 1500 - outer - 40;
        let frame = |n: usize| frame4("198.51.100.7", VIP4, L4::Ack(80), 64, &vec![0; n]);
        let got = rig.run(&frame(fits));
        assert_eq!((got.reason, got.frame.len()), (Reason::ForwardedTx, 1514));
        assert_eq!(
            rig.run(&frame(fits + 1)).reason,
            Reason::TooBigAnswered,
            "{forwarding:?} {backend}"
        );
    }
}

/// What a receiver must understand and we do not is dropped; what it may ignore is skipped.
#[test]
fn what_the_tunnel_headers_say() {
    const GUE: usize = 14 + 20 + 8;
    let original = frame4("198.51.100.7", VIP4, L4::Syn(80), 64, b"hello");
    let mut receiver = Rig::new(feature::DECAP);
    receiver.decap_at("10.0.1.11");
    let gue = rig(Forwarding::Gue, "10.0.1.11").run(&original).frame;
    let geneve = rig(Forwarding::Geneve, "10.0.1.11").run(&original).frame;
    let with = |frame: &[u8], at: usize, byte: u8| {
        let mut f = frame.to_vec();
        f[at] = byte;
        f
    };
    for (what, frame) in [
        ("GUE: control", with(&gue, GUE, 0x20)),
        ("GUE: an extension", with(&gue, GUE, 0x01)),
        ("GUE: variant 2", with(&gue, GUE, 0x80)),
        ("GUE: variant 1, and no IP header", with(&gue, GUE, 0x41)),
        ("GUE: an inner length of nothing", with(&with(&gue, GUE + 6, 0), GUE + 7, 19)),
        ("GUE: an inner length beyond the outer one", with(&gue, GUE + 6, 1)),
        ("GUE: a flag", with(&gue, GUE + 2, 0x80)),
        ("GUE: says IPv6", with(&gue, GUE + 1, 41)),
        ("GUE: says ICMP", with(&gue, GUE + 1, 1)),
        ("Geneve: version 1", with(&geneve, GUE, 0x40)),
        ("Geneve: control", with(&geneve, GUE + 1, 0x80)),
        ("Geneve: critical options", with(&geneve, GUE + 1, 0x40)),
        ("Geneve: Ethernet", with(&with(&geneve, GUE + 2, 0x65), GUE + 3, 0x58)),
        ("Geneve: options beyond the packet", with(&geneve, GUE, 0x3f)),
    ] {
        let got = receiver.run(&frame);
        assert_eq!((got.action, got.reason), (DROP, Reason::BadInner), "{what}");
    }

    // Geneve with an option of 8 bytes, not critical; GUE's variant 1.
    let mut options = geneve[..GUE + 8].to_vec();
    options[GUE] = 2;
    options.extend([0, 1, 0, 1, 9, 9, 9, 9]);
    options.extend(&geneve[GUE + 8..]);
    let mut direct = gue[..GUE].to_vec();
    direct.extend(&gue[GUE + 4..]);
    for mut frame in [options, direct] {
        let total = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        let got = receiver.run(&frame);
        assert_eq!((got.action, got.reason), (PASS, Reason::Decapsulated));
        assert_eq!(got.frame[14..], one_hop_later(&original[14..]));
    }

    let other_port = with(&gue, 14 + 20 + 3, 0xff);
    let got = receiver.run(&other_port);
    assert_eq!((got.action, got.reason, got.frame), (PASS, Reason::NotOurs, other_port));
}

#[test]
fn senders_that_are_not_listed() {
    let mut sender = Rig::with(Vec::new(), INGRESS, 1500);
    let mut receiver = Rig::new(feature::DECAP);
    for backend in ["10.0.1.11", "2001:db8:2::11"] {
        for forwarding in [Forwarding::Ipip, Forwarding::Gue, Forwarding::Geneve] {
            sender.put(Vec::new());
            sender.fill(vec![web(forwarding, backend)], INGRESS, 1500);
            let sent = sender.run(&frames()[0]).frame;
            receiver.decap_from(backend, &["10.0.0.1/32", "2001:db8:f::/64"]);
            assert_eq!(receiver.run(&sent).reason, Reason::Decapsulated);
            receiver.decap_from(backend, &["10.0.0.2/32", "2001:db8:e::/64"]);
            let got = receiver.run(&sent);
            assert_eq!((got.action, got.reason), (DROP, Reason::TunnelSourceRefused));
            receiver.decap_from(backend, &[]);
            assert_eq!(receiver.run(&sent).reason, Reason::Decapsulated);
        }
    }
}

/// RFC 6040: congestion met by the outer packet is told to the inner one.
#[test]
fn congestion_is_told() {
    for backend in ["10.0.1.11", "2001:db8:2::11"] {
        let mut sender = rig(Forwarding::Gue, backend);
        let mut receiver = Rig::new(feature::DECAP);
        receiver.decap_at(backend);
        for frame in frames() {
            let plain = sender.run(&frame).frame;
            let inner_at = plain.len() - (frame.len() - 14);
            for (inner, outer, want) in
                [(0, 0, Some(0)), (2, 2, Some(2)), (2, 3, Some(3)), (1, 3, Some(3)), (0, 3, None)]
            {
                let mut sent = plain.clone();
                set_ecn(&mut sent[14..], outer);
                set_ecn(&mut sent[inner_at..], inner);
                let got = receiver.run(&sent);
                let Some(ecn) = want else {
                    assert_eq!((got.action, got.reason), (DROP, Reason::CongestedInner));
                    continue;
                };
                assert_eq!((got.action, got.reason), (PASS, Reason::Decapsulated));
                let mut expected = plain[inner_at..].to_vec();
                set_ecn(&mut expected, ecn);
                assert_eq!(got.frame[14..], expected, "{inner} {outer}");
            }
        }
    }
}

/// Sets the ECN bits of an IP packet, and the checksum anew.
fn set_ecn(l3: &mut [u8], ecn: u8) {
    if l3[0] >> 4 == 6 {
        l3[1] = l3[1] & !0x30 | ecn << 4;
        return;
    }
    l3[1] = l3[1] & !3 | ecn;
    let (h, _) = Ipv4Header::from_slice(l3).unwrap();
    l3[10..12].copy_from_slice(&h.calc_header_checksum().to_be_bytes());
}
