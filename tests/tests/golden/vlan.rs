//! 802.1Q and QinQ: whatever becomes of a packet becomes of it with its tags too, and they stay as they came.

use abi::{limits::feature, reason::Reason, table::Unserved};
use config::model::Forwarding;
use etherparse::PacketBuilder;
use lb_daemon::datapath::Op;
use lb_tests::rig::{CLIENT_MAC, INGRESS, OUR_MAC, Rig};

use crate::{
    packets::{L4, VIP4, VIP6, frame4, frame6, v4, v6},
    web,
};

/// One tag; a service tag alone; a service tag and a customer's, with priorities and drop eligibility.
pub(crate) const TAGS: [&[u8]; 4] = [
    &[0x81, 0x00, 0x60, 0x07],
    &[0x88, 0xa8, 0x00, 0x64],
    &[0x88, 0xa8, 0xf0, 0x64, 0x81, 0x00, 0x2f, 0xff],
    &[0x81, 0x00, 0x00, 0x64, 0x81, 0x00, 0x00, 0x07],
];

pub(crate) fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

/// Runs it without tags and with each set of tags; the reason, and the frame without.
fn all_the_same(rig: &mut Rig, frame: &[u8]) -> (Reason, Vec<u8>) {
    let plain = rig.run(frame);
    for tags in TAGS {
        let got = rig.run(&tagged(frame, tags));
        assert_eq!((got.action, got.reason), (plain.action, plain.reason), "{tags:x?}");
        assert_eq!(got.frame, tagged(&plain.frame, tags), "{tags:x?}, {:?}", plain.reason);
    }
    (plain.reason, plain.frame)
}

#[test]
fn in_every_mode_there_and_back() {
    let mut rig = Rig::with(Vec::new(), INGRESS, 1500);
    let mut receiver = Rig::new(feature::DECAP);
    for (forwarding, backend) in [
        (Forwarding::L2, "10.0.1.11"),
        (Forwarding::Ipip, "10.0.1.11"),
        (Forwarding::Ipip, "2001:db8:2::11"),
        (Forwarding::Gue, "10.0.1.11"),
        (Forwarding::Gue, "2001:db8:2::11"),
        (Forwarding::GueTwice, "10.0.1.11"),
        (Forwarding::GueTwice, "2001:db8:2::11"),
        (Forwarding::Geneve, "10.0.1.11"),
        (Forwarding::Geneve, "2001:db8:2::11"),
    ] {
        rig.put(Vec::new());
        rig.fill(vec![web(forwarding, backend)], INGRESS, 1500);
        receiver.decap_at(backend);
        for frame in [
            frame4("198.51.100.7", VIP4, L4::Syn(80), 64, b"hello"),
            frame4("198.51.100.7", VIP4, L4::Udp(443), 64, b"hello"),
            frame6("2001:db8:9::7", VIP6, L4::Ack(80), 64, b"hello"),
        ] {
            let (reason, sent) = all_the_same(&mut rig, &frame);
            assert_eq!(reason, Reason::ForwardedTx, "{forwarding:?}");
            if forwarding != Forwarding::L2 {
                let (reason, got) = all_the_same(&mut receiver, &sent);
                assert_eq!((reason, &got[12..14]), (Reason::Decapsulated, &frame[12..14]));
            }
        }
    }
}

#[test]
fn what_the_second_program_does() {
    let mut rig = Rig::with(vec![web(Forwarding::Ipip, "10.0.1.11")], INGRESS, 1500);
    rig.apply(&[Op::Unserved(Unserved::Reject)]);
    let echo4 = |payload: &[u8]| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC)
            .ipv4(v4("198.51.100.7"), v4(VIP4), 64)
            .icmpv4_echo_request(7, 1)
            .write(&mut frame, payload)
            .unwrap();
        frame
    };
    let mut echo6 = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC)
        .ipv6(v6("2001:db8:9::7"), v6(VIP6), 64)
        .icmpv6_echo_request(7, 1)
        .write(&mut echo6, b"hello")
        .unwrap();
    // A router's word on a reply.
    let mut reply = Vec::new();
    PacketBuilder::ipv4(v4(VIP4), v4("198.51.100.7"), 60)
        .tcp(80, 40000, 1, 1000)
        .write(&mut reply, b"")
        .unwrap();
    let mut error = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC)
        .ipv4(v4("192.0.2.1"), v4(VIP4), 60)
        .icmpv4_raw(3, 1, [0; 4])
        .write(&mut error, &reply)
        .unwrap();
    let mut whole = frame4("198.51.100.7", VIP4, L4::Udp(443), 64, &[1; 64]);
    whole[20] = 0x20;
    let mut big4 = frame4("198.51.100.7", VIP4, L4::Ack(80), 64, &[0; 1455]);
    big4[20] = 0x40;
    let sum = {
        big4[24..26].fill(0);
        abi::checksum::full(&big4[14..34])
    };
    big4[24..26].copy_from_slice(&sum.to_ne_bytes());
    for (what, frame, reason) in [
        ("echo", echo4(b"hello"), Reason::EchoAnswered),
        ("echo, IPv6", echo6, Reason::EchoAnswered),
        ("an error", error, Reason::ForwardedTx),
        ("a fragment", whole, Reason::ForwardedTx),
        ("too big", big4, Reason::TooBigAnswered),
        (
            "too big, IPv6",
            frame6("2001:db8:9::7", VIP6, L4::Ack(80), 64, &[0; 1435]),
            Reason::TooBigAnswered,
        ),
        ("a reset", frame4("198.51.100.7", VIP4, L4::Syn(81), 64, b""), Reason::UnservedRejected),
        (
            "unreachable",
            frame6("2001:db8:9::7", VIP6, L4::Udp(81), 64, b"hello"),
            Reason::UnservedRejected,
        ),
        ("not ours", frame4("198.51.100.7", "203.0.113.99", L4::Syn(80), 64, b""), Reason::NotOurs),
    ] {
        assert_eq!(all_the_same(&mut rig, &frame).0, reason, "{what}");
    }
}

/// A third tag is nobody's: such packets pass as they came.
#[test]
fn three_tags() {
    let mut rig = Rig::with(vec![web(Forwarding::Ipip, "10.0.1.11")], INGRESS, 1500);
    let frame = frame4("198.51.100.7", VIP4, L4::Syn(80), 64, b"");
    let frame = tagged(&tagged(&frame, TAGS[0]), TAGS[2]);
    let got = rig.run(&frame);
    assert_eq!((got.action, got.reason, got.frame), (crate::packets::PASS, Reason::NotIp, frame));
}
