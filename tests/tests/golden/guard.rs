//! What sources may not send: filters and rate limits.

use abi::{guard::Limit, limits::feature, reason::Reason, table::Control};
use lb_daemon::{datapath::Op, view::Counters as _};
use lb_tests::rig::Rig;

use super::packets::{L4, VIP4, VIP6, frame4, frame6};

/// Offset of the TCP flags in a frame over IPv4, and over IPv6.
const FLAGS4: usize = 14 + 20 + 13;
const FLAGS6: usize = 14 + 40 + 13;

fn rig(flags: u64) -> Rig {
    let mut rig = Rig::new(feature::PREFILTER);
    rig.apply(&[Op::Flags(flags)]);
    rig
}

#[test]
fn tcp_flags_that_cannot_be_are_dropped() {
    let mut rig = rig(Control::FILTER_TCP_FLAGS);
    for (flags, want) in [
        (0x02, Reason::NotOurs),
        (0x10, Reason::NotOurs),
        (0x11, Reason::NotOurs),
        (0x14, Reason::NotOurs),
        (0x00, Reason::BadTcpFlags),
        (0x03, Reason::BadTcpFlags),
        (0x29, Reason::BadTcpFlags),
        (0x06, Reason::BadTcpFlags),
    ] {
        let mut frame = frame4("192.0.2.1", VIP4, L4::Syn(80), 64, b"");
        frame[FLAGS4] = flags;
        assert_eq!(rig.run(&frame).reason, want, "{flags:#x}");
        let mut frame = frame6("2001:db8::1", VIP6, L4::Syn(80), 64, b"");
        frame[FLAGS6] = flags;
        assert_eq!(rig.run(&frame).reason, want, "{flags:#x}");
    }
    // UDP has none, and of a later fragment nothing is known.
    let frame = frame4("192.0.2.1", VIP4, L4::Udp(53), 64, &[0; 20]);
    assert_eq!(rig.run(&frame).reason, Reason::NotOurs);
    let mut frame = frame4("192.0.2.1", VIP4, L4::Syn(80), 64, b"");
    frame[FLAGS4] = 0;
    frame[14 + 7] = 1;
    assert_eq!(rig.run(&frame).reason, Reason::NotOurs);
}

#[test]
fn answers_of_amplifiers_are_dropped() {
    let mut rig = rig(Control::FILTER_AMPLIFICATION);
    for (port, want) in [
        (11211u16, Reason::Amplification),
        (1900, Reason::Amplification),
        (53, Reason::NotOurs),
        (123, Reason::NotOurs),
        (40000, Reason::NotOurs),
    ] {
        for v4 in [true, false] {
            let (mut frame, l4) = match v4 {
                true => (frame4("192.0.2.1", VIP4, L4::Udp(4000), 64, b""), 34),
                false => (frame6("2001:db8::1", VIP6, L4::Udp(4000), 64, b""), 54),
            };
            frame[l4..l4 + 2].copy_from_slice(&port.to_be_bytes());
            assert_eq!(rig.run(&frame).reason, want, "{port}");
        }
    }
}

/// `burst` packets at once, and hardly any later.
fn limit(burst: u64, port: u16, audit: u8) -> Limit {
    let (interval, tolerance) = Limit::rate(1, burst);
    let (protocol, id) = (if port == 0 { 0 } else { 17 }, 1);
    Limit { interval, tolerance, id, port, protocol, bits4: 24, bits6: 64, audit, reserved: [0; 2] }
}

#[test]
fn packets_beyond_a_limit_are_dropped_for_each_source() {
    let mut rig = rig(Control::LIMITS);
    rig.apply(&[Op::Limit(3, limit(5, 53, 0))]);
    let mut passed = |frame: &[u8]| {
        let reasons: Vec<Reason> = (0..8).map(|_| rig.run(frame).reason).collect();
        let count = reasons.iter().take_while(|r| **r == Reason::NotOurs).count();
        assert!(reasons[count..].iter().all(|r| *r == Reason::RateLimited), "{reasons:?}");
        count
    };
    assert_eq!(passed(&frame4("192.0.2.1", VIP4, L4::Udp(53), 64, b"")), 5);
    assert_eq!(passed(&frame4("192.0.2.99", VIP4, L4::Udp(53), 64, b"")), 0, "the same /24");
    assert_eq!(passed(&frame4("192.0.3.1", VIP4, L4::Udp(53), 64, b"")), 5);
    assert_eq!(passed(&frame6("2001:db8::1", VIP6, L4::Udp(53), 64, b"")), 5);
    assert_eq!(passed(&frame6("2001:db8::2", VIP6, L4::Udp(53), 64, b"")), 0, "the same /64");
    assert_eq!(passed(&frame6("2001:db8:0:1::2", VIP6, L4::Udp(53), 64, b"")), 5);
    for other in [L4::Udp(54), L4::Syn(53)] {
        assert_eq!(passed(&frame4("192.0.2.1", VIP4, other, 64, b"")), 8);
    }
    let counters = rig.bpf.counters().unwrap();
    assert_eq!((counters.limit(3).packets, counters.limit(2).packets), (3 + 8 + 3 + 3 + 8 + 3, 0));
}

#[test]
fn a_limit_that_audits_counts_and_lets_pass() {
    let mut rig = rig(Control::LIMITS);
    rig.apply(&[Op::Limit(0, limit(2, 0, 1)), Op::Limit(1, limit(6, 0, 0))]);
    let frame = frame4("192.0.2.1", VIP4, L4::Syn(80), 64, b"");
    let reasons: Vec<Reason> = (0..8).map(|_| rig.run(&frame).reason).collect();
    assert!(reasons[..6].iter().all(|r| *r == Reason::NotOurs), "{reasons:?}");
    assert!(reasons[6..].iter().all(|r| *r == Reason::RateLimited), "{reasons:?}");
    let counters = rig.bpf.counters().unwrap();
    assert_eq!((counters.limit(0).packets, counters.limit(1).packets), (6, 2));
}
