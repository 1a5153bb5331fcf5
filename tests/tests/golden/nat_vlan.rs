//! VLAN tags and NAT: they come off on the way to the backend, and replies carry those of the client's last packet.

use abi::reason::Reason;
use config::model::{Scheduling, Steering};
use lb_tests::rig::{CLIENT_MAC, HOP_MAC, INGRESS, OUR_MAC, Rig};

use crate::{
    nat::{behind, client_frame, from_backend, says},
    nat_icmp,
    odd::fragments,
    packets::{DROP, L4, PASS, TX, VIP4, VIP6, macs},
    vlan::{TAGS, tagged},
};

/// VIP, backend, NAT address, client; within a family and between both.
const ALL: [[&str; 4]; 4] = [
    [VIP4, "10.0.1.11", "10.0.0.1", "198.51.100.7"],
    [VIP6, "2001:db8:2::11", "2001:db8:f::1", "2001:db8:9::7"],
    [VIP6, "10.0.1.11", "10.0.0.1", "2001:db8:9::7"],
    [VIP4, "2001:db8:2::11", "2001:db8:f::1", "198.51.100.7"],
];

fn rig(vip: &str, backend: &str) -> Rig {
    Rig::with(vec![behind(vip, backend)], INGRESS, 1500)
}

/// The VLAN that the backend is in.
const THEIRS: [u8; 4] = [0x81, 0, 0, 9];

/// A frame with so many bytes of tags, without the identification that a packet gets with its IPv4 header, and the
/// checksum over that.
fn without_id(frame: &[u8], tags: usize) -> Vec<u8> {
    let (mut out, l3) = (frame.to_vec(), 14 + tags);
    if frame[l3] >> 4 == 4 {
        out[l3 + 4..l3 + 6].fill(0);
        out[l3 + 10..l3 + 12].fill(0);
    }
    out
}

#[test]
fn there_and_back() {
    for [vip, web, nat, _] in ALL {
        let mut rig = rig(vip, web);
        for (l4, target, udp) in [(L4::Syn(80), 8080, false), (L4::Udp(443), 443, true)] {
            let request = client_frame(vip, l4, b"hello");
            let plain = rig.run(&request);
            let reply = from_backend(web, target, nat, says(&plain.frame).ports.0, udp, b"hi");
            let back = rig.run(&reply);
            assert_eq!(says(&back.frame).src, vip);
            for tags in TAGS {
                let got = rig.run(&tagged(&request, tags));
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                assert_eq!(macs(&got.frame), (HOP_MAC, OUR_MAC));
                assert_eq!(without_id(&got.frame, 0), without_id(&plain.frame, 0), "{tags:x?}");
                for reply in [reply.clone(), tagged(&reply, &THEIRS)] {
                    let got = rig.run(&reply);
                    assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                    assert_eq!(macs(&got.frame), (CLIENT_MAC, OUR_MAC));
                    let wanted = tagged(&back.frame, tags);
                    assert_eq!(without_id(&got.frame, tags.len()), without_id(&wanted, tags.len()));
                }
            }
            // The client has moved to a network without.
            rig.run(&request);
            assert_eq!(without_id(&rig.run(&reply).frame, 0), without_id(&back.frame, 0));
        }
        let (front, back) = rig.counts("web");
        assert_eq!((front, front.packets), (back, 2 * (1 + 4 + 1)));
        assert!(front.bytes > u64::from(back.packets > 0));
    }
}

/// What is not sent has its tags again.
#[test]
fn what_is_not_sent_is_as_it_came() {
    for [vip, web, nat, client] in ALL {
        let mut rig = rig(vip, web);
        for tags in TAGS {
            for (frame, action, reason) in [
                (client_frame(vip, L4::Ack(80), b""), DROP, Reason::NatNoEntry),
                (client_frame(vip, L4::Syn(81), b""), DROP, Reason::NoService),
                (from_backend(web, 8080, nat, 22, false, b"x"), PASS, Reason::NatPassed),
                (from_backend(web, 8080, nat, 2000, true, b"x"), PASS, Reason::NatPassed),
            ] {
                let frame = tagged(&frame, tags);
                let got = rig.run(&frame);
                assert_eq!((got.action, got.reason), (action, reason), "{tags:x?}");
                assert_eq!(got.frame, frame, "{tags:x?}");
            }
            if nat.contains(':') != client.contains(':') {
                continue;
            }
            let mut ping = nat_icmp::error(
                client,
                &nat_icmp::sent(nat, client, (1, 2), false),
                if nat.contains(':') { 128 } else { 8 },
                0,
                7,
                8,
            );
            ping[6..12].copy_from_slice(&HOP_MAC);
            let ping = tagged(&ping, tags);
            let got = rig.run(&ping);
            assert_eq!((got.action, got.reason, got.frame), (PASS, Reason::NatPassed, ping));
        }
    }
}

#[test]
fn who_sends_too_much_at_once_is_told() {
    for [vip, web, ..] in ALL {
        let mut rig = rig(vip, web);
        rig.run(&client_frame(vip, L4::Syn(80), b""));
        let large = client_frame(vip, L4::Ack(80), &[7; 1500]);
        let plain = rig.run(&large);
        for tags in TAGS {
            let got = rig.run(&tagged(&large, tags));
            assert_eq!((got.action, got.reason), (TX, Reason::TooBigAnswered));
            assert_eq!(got.frame, tagged(&plain.frame, tags));
        }
    }
}

#[test]
fn errors_of_either_side() {
    for [vip, web, nat, client] in ALL {
        let mut rig = rig(vip, web);
        let syn = client_frame(vip, L4::Syn(80), b"");
        let given = says(&rig.run(&syn).frame).ports.0;
        let unreachable = |from: &str, about: &[u8]| {
            let (kind, code) = if about[0] >> 4 == 4 { (3, 3) } else { (1, 4) };
            nat_icmp::error(from, about, kind, code, 0, 20)
        };
        let to_backend = unreachable(client, &nat_icmp::sent(vip, client, (80, 40000), false));
        let to_client = unreachable(web, &nat_icmp::sent(nat, web, (given, 8080), false));
        let (there, back) = (rig.run(&to_backend), rig.run(&to_client));
        assert_eq!((there.reason, back.reason), (Reason::ForwardedTx, Reason::ForwardedTx));
        for tags in TAGS {
            rig.run(&tagged(&syn, tags));
            let got = rig.run(&tagged(&to_backend, tags));
            assert_eq!(got.reason, Reason::ForwardedTx);
            assert_eq!(nat_icmp::says(&got.frame).dst, nat_icmp::says(&there.frame).dst);
            assert_eq!(got.frame.len(), there.frame.len());
            for error in [to_client.clone(), tagged(&to_client, &THEIRS)] {
                let got = rig.run(&error);
                assert_eq!(got.reason, Reason::ForwardedTx);
                assert_eq!(got.frame[12..12 + tags.len()], *tags);
                let untagged = [&got.frame[..12], &got.frame[12 + tags.len()..]].concat();
                let (said, plain) = (nat_icmp::says(&untagged), nat_icmp::says(&back.frame));
                assert_eq!(
                    (said.src, said.dst, said.message),
                    (plain.src, plain.dst, plain.message)
                );
                assert_eq!(macs(&got.frame), macs(&back.frame));
            }
        }
    }
}

/// Services that want more than their ring, and datagrams in fragments.
#[test]
fn in_the_other_programs() {
    for [vip, web, nat, _] in ALL {
        // To the other family, and back.
        let change: isize = match (vip.contains(':'), web.contains(':')) {
            (true, false) => -28,
            (false, true) => 28,
            _ => 0,
        };
        let longer = |frame: &[u8], by: isize| frame.len().wrapping_add_signed(by);
        let mut service = behind(vip, web);
        service.steering = Steering { scheduling: Scheduling::Random, ..Steering::default() };
        let mut rig = Rig::with(vec![service], INGRESS, 1500);
        let datagram = client_frame(vip, L4::Udp(443), &[5; 2000]);
        for tags in TAGS {
            let got = rig.run(&tagged(&client_frame(vip, L4::Udp(443), b"x"), tags));
            let port = says(&got.frame).ports.0;
            for part in fragments(&datagram, 9, 800) {
                let got = rig.run(&tagged(&part, tags));
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                assert_eq!((macs(&got.frame).0, got.frame.len()), (HOP_MAC, longer(&part, change)));
            }
            let reply = from_backend(web, 443, nat, port, true, &[5; 2000]);
            for part in fragments(&reply, 9, 800) {
                let got = rig.run(&part);
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                assert_eq!(
                    (macs(&got.frame).0, &got.frame[12..12 + tags.len()]),
                    (CLIENT_MAC, tags)
                );
                assert_eq!(got.frame.len(), longer(&part, -change) + tags.len());
            }
        }
    }
}
