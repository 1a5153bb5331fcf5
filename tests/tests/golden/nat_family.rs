//! NAT between families: packets of either direction, and what is said about those that do not get through.

use abi::reason::Reason;
use lb_tests::rig::{CLIENT_MAC, HOP_MAC, INGRESS, OUR_MAC, Rig};

use crate::{
    nat::{behind, client_frame, from_backend, says},
    nat_icmp,
    packets::{DROP, L4, TX, VIP4, VIP6, macs},
};

/// The address that clients use, the backend, the NAT address, the client.
const CROSSED: [[&str; 4]; 2] = [
    [VIP6, "10.0.1.11", "10.0.0.1", "2001:db8:9::7"],
    [VIP4, "2001:db8:2::11", "2001:db8:f::1", "198.51.100.7"],
];

fn rig(vip: &str, backend: &str) -> Rig {
    Rig::with(vec![behind(vip, backend)], INGRESS, 1500)
}

/// DSCP and ECN of a packet.
fn tos(frame: &[u8]) -> u8 {
    if frame[14] >> 4 == 4 { frame[15] } else { frame[14] << 4 | frame[15] >> 4 }
}

#[test]
fn there_and_back() {
    for [vip, web, nat, client] in CROSSED {
        let mut rig = rig(vip, web);
        for (l4, port, target, udp) in
            [(L4::Syn(80), 80, 8080, false), (L4::Udp(443), 443, 443, true)]
        {
            for payload in [&b""[..], b"hello", b"even", &[7; 1300]] {
                let mut frame = client_frame(vip, l4, payload);
                if vip == VIP6 {
                    frame[14..16].copy_from_slice(&[0x6b, 0x90]);
                }
                let got = rig.run(&frame);
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                assert_eq!(macs(&got.frame), (HOP_MAC, OUR_MAC));
                let change = if vip == VIP6 { -20 } else { 20 };
                assert_eq!(got.frame.len() as i64 - frame.len() as i64, change);
                assert_eq!(tos(&got.frame), tos(&frame));
                let forth = says(&got.frame);
                assert_eq!((&*forth.src, &*forth.dst, forth.ttl), (nat, web, 63));
                assert_eq!((forth.ports.1, &*forth.payload), (target, payload));
                if vip == VIP6 {
                    let may_be_cut = got.frame.len() - 14 <= 1260;
                    assert_eq!(got.frame[20] & 0x40 == 0, may_be_cut, "{}", got.frame.len());
                }

                let reply = from_backend(web, target, nat, forth.ports.0, udp, payload);
                let got = rig.run(&reply);
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                assert_eq!(macs(&got.frame), (CLIENT_MAC, OUR_MAC));
                let back = says(&got.frame);
                assert_eq!((&*back.src, &*back.dst, back.ttl), (vip, client, 59));
                assert_eq!((back.ports, &*back.payload), ((port, 40000), payload));
            }
        }
        let (front, back) = rig.counts("web");
        assert_eq!((front, front.packets, front.new_connections), (back, 8, 4));
    }
}

#[test]
fn a_datagram_without_a_checksum() {
    let [vip, web, ..] = CROSSED[1];
    let mut rig = rig(vip, web);
    for bytes in (0..20).chain([511, 512, 513, 1023, 1024, 1025, 1451, 1452]) {
        let payload: Vec<u8> = (0..bytes).map(|n| (n * 7 + 255) as u8).collect();
        let mut frame = client_frame(vip, L4::Udp(443), &payload);
        frame[40..42].fill(0);
        let got = rig.run(&frame);
        assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx), "{bytes}");
        let said = says(&got.frame);
        assert_eq!((&*said.dst, said.payload), (web, payload), "with the right one");
    }
    // Its length is a lie.
    let mut frame = client_frame(vip, L4::Udp(443), b"hello");
    frame[38..42].copy_from_slice(&[0, 14, 0, 0]);
    let got = rig.run(&frame);
    assert_eq!((got.action, got.reason), (DROP, Reason::NatNoChecksum));
    assert_eq!(got.frame, frame);

    // As much as is read, and more.
    let mut rig = Rig::with(vec![behind(vip, web)], INGRESS, 9000);
    for (bytes, reason) in [(2040, Reason::ForwardedTx), (2041, Reason::NatNoChecksum)] {
        let mut frame = client_frame(vip, L4::Udp(443), &vec![0xfe; bytes]);
        frame[40..42].fill(0);
        let got = rig.run(&frame);
        assert_eq!(got.reason, reason);
        if reason == Reason::ForwardedTx {
            assert_eq!(says(&got.frame).payload.len(), bytes);
        }
    }
}

/// A packet grows by 20 bytes from IPv4 to IPv6, in either direction; the other way it shrinks.
#[test]
fn who_sends_too_much_at_once_is_told() {
    for [vip, web, nat, client] in CROSSED {
        let mut rig = rig(vip, web);
        let first = rig.run(&client_frame(vip, L4::Syn(80), b""));
        let port = says(&first.frame).ports.0;
        let fits = |v4: bool| if v4 { 1480 - 40 } else { 1520 - 60 };
        let of = |bytes: usize| vec![7; bytes];

        let room = fits(vip == VIP4);
        assert_eq!(rig.run(&client_frame(vip, L4::Ack(80), &of(room))).reason, Reason::ForwardedTx);
        let got = rig.run(&client_frame(vip, L4::Ack(80), &of(room + 1)));
        assert_eq!((got.action, got.reason), (TX, Reason::TooBigAnswered));
        let said = nat_icmp::says(&got.frame);
        assert_eq!((&*said.src, &*said.dst), (vip, client));
        let told = if vip == VIP4 { (3, 4, 1480) } else { (2, 0, 1520) };
        assert_eq!(said.message, told);

        let room = fits(vip == VIP6);
        let reply = |bytes| from_backend(web, 8080, nat, port, false, &of(bytes));
        assert_eq!(rig.run(&reply(room)).reason, Reason::ForwardedTx);
        let got = rig.run(&reply(room + 1));
        assert_eq!((got.action, got.reason), (TX, Reason::TooBigAnswered));
        let said = nat_icmp::says(&got.frame);
        assert_eq!((&*said.src, &*said.dst), (nat, web));
        let told = if vip == VIP6 { (3, 4, 1480) } else { (2, 0, 1520) };
        assert_eq!(said.message, told);
    }
}

/// Errors, in the terms of either family: IPv4's, and what they are in IPv6.
const ERRORS: [[(u8, u8, u32); 2]; 6] = [
    [(3, 4, 1380), (2, 0, 1400)],
    // The hop count, and the destination.
    [(12, 0, 8 << 24), (4, 0, 7)],
    [(12, 0, 16 << 24), (4, 0, 24)],
    [(3, 3, 0), (1, 4, 0)],
    [(3, 1, 0), (1, 0, 0)],
    [(11, 0, 0), (3, 0, 0)],
];

#[test]
fn errors_of_either_side() {
    for [vip, web, nat, client] in CROSSED {
        let mut rig = rig(vip, web);
        for (l4, port, target, udp) in
            [(L4::Syn(80), 80, 8080, false), (L4::Udp(443), 443, 443, true)]
        {
            let given = says(&rig.run(&client_frame(vip, l4, b"")).frame).ports.0;
            let (to_client, to_backend) = ((port, 40000), (given, target));
            for [v4, v6] in ERRORS {
                let (near, far) = if vip == VIP4 { (v4, v6) } else { (v6, v4) };
                for quoted in [8, 20, 100] {
                    // About what the client was sent, to the backend.
                    let seen = nat_icmp::sent(vip, client, to_client, udp);
                    let was = nat_icmp::sent(web, nat, (target, given), udp);
                    let (kind, code, rest) = near;
                    let got = rig.run(&nat_icmp::error(client, &seen, kind, code, rest, quoted));
                    assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                    assert_eq!(macs(&got.frame), (HOP_MAC, OUR_MAC));
                    let mut said = nat_icmp::says(&got.frame);
                    assert_eq!((&*said.src, &*said.dst, said.hops), (nat, web, 59));
                    assert_eq!(said.message, far);
                    expect_about(&mut said.about, &was, udp, quoted);

                    // About what the backend was sent, to the client.
                    let seen = nat_icmp::sent(nat, web, to_backend, udp);
                    let was = nat_icmp::sent(client, vip, (40000, port), udp);
                    let (kind, code, rest) = far;
                    let got = rig.run(&nat_icmp::error(web, &seen, kind, code, rest, quoted));
                    assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                    assert_eq!(macs(&got.frame), (CLIENT_MAC, OUR_MAC));
                    let mut said = nat_icmp::says(&got.frame);
                    assert_eq!((&*said.src, &*said.dst, said.hops), (vip, client, 59));
                    assert_eq!(said.message, near);
                    expect_about(&mut said.about, &was, udp, quoted);
                }
            }
            let seen = nat_icmp::sent(vip, client, to_client, udp);
            // No counterpart: a parameter problem with the identification, or the flow label.
            let (kind, rest) = if vip == VIP4 { (12, 4 << 24) } else { (4, 2) };
            let got = rig.run(&nat_icmp::error(client, &seen, kind, 0, rest, 8));
            assert_eq!((got.action, got.reason), (DROP, Reason::NatRefused));
            // What is told fits through here, on both sides: 1500 bytes.
            let (v4, v6) = ((3, 4, 1480), (2, 0, 1500));
            let (near, far, asked) = if vip == VIP4 { (v4, v6, (3, 4)) } else { (v6, v4, (2, 0)) };
            let got = rig.run(&nat_icmp::error(client, &seen, asked.0, asked.1, 9000, 8));
            assert_eq!(nat_icmp::says(&got.frame).message, far);
            let seen = nat_icmp::sent(nat, web, to_backend, udp);
            let got = rig.run(&nat_icmp::error(web, &seen, far.0, far.1, 9000, 8));
            assert_eq!(nat_icmp::says(&got.frame).message, near);
        }
    }
}

/// As for one family, but for what the other family's header did not say.
#[track_caller]
fn expect_about(about: &mut [u8], was: &[u8], udp: bool, quoted: usize) {
    if was[0] >> 4 == 4 {
        // Identification, flags, and the checksum over them, which was looked at before.
        about[4..8].copy_from_slice(&was[4..8]);
        about[10..12].copy_from_slice(&was[10..12]);
    }
    nat_icmp::expect_about(about, was, udp, quoted);
}
