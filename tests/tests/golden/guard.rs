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
    Limit {
        interval,
        tolerance,
        id,
        port,
        protocol,
        bits4: 24,
        bits6: 64,
        audit,
        ..Limit::default()
    }
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

#[test]
fn bytes_are_counted_and_tcp_flags_matched() {
    let mut rig = rig(Control::LIMITS);
    let (interval, tolerance) = Limit::byte_rate(1000, 3000);
    let of_bytes = Limit { interval, tolerance, bytes: 1, protocol: 17, ..limit(1, 0, 0) };
    // Segments that open a connection.
    let opening = Limit { protocol: 6, mask: 0x12, flags: 0x02, ..limit(2, 0, 0) };
    rig.apply(&[Op::Limit(0, of_bytes), Op::Limit(1, opening)]);
    let mut passed = |frame: &[u8]| {
        let reasons: Vec<Reason> = (0..100).map(|_| rig.run(frame).reason).collect();
        reasons.iter().take_while(|r| **r == Reason::NotOurs).count()
    };
    // 1042 bytes each: two are 2084, and the third begins within the 3000.
    assert_eq!(passed(&frame4("192.0.2.1", VIP4, L4::Udp(53), 64, &[0; 1000])), 3);
    // 142 bytes each.
    let small = passed(&frame4("192.0.3.1", VIP4, L4::Udp(53), 64, &[0; 100]));
    assert!((21..=23).contains(&small), "{small}");
    assert_eq!(passed(&frame4("192.0.2.1", VIP4, L4::Syn(80), 64, b"")), 2);
    assert_eq!(passed(&frame6("2001:db8::1", VIP6, L4::Syn(80), 64, b"")), 2);
    assert_eq!(passed(&frame4("192.0.2.1", VIP4, L4::Ack(80), 64, b"")), 100);
}

#[test]
fn fragments_are_dropped() {
    let mut rig = rig(Control::FILTER_FRAGMENTS);
    let whole = frame4("192.0.2.1", VIP4, L4::Udp(53), 64, &[0; 20]);
    assert_eq!(rig.run(&whole).reason, Reason::NotOurs);
    // More fragments follow; a later one; don't fragment.
    for (field, want) in [
        ([0x20, 0], Reason::FragmentRefused),
        ([0, 1], Reason::FragmentRefused),
        ([0x40, 0], Reason::NotOurs),
    ] {
        let mut frame = whole.clone();
        frame[14 + 6..14 + 8].copy_from_slice(&field);
        assert_eq!(rig.run(&frame).reason, want, "{field:02x?}");
    }
    let mut frame = frame6("2001:db8::1", VIP6, L4::Udp(53), 64, &[0; 20]);
    assert_eq!(rig.run(&frame).reason, Reason::NotOurs);
    frame[14 + 6] = 44;
    assert_eq!(rig.run(&frame).reason, Reason::FragmentRefused);
}

#[test]
fn a_limit_that_audits_is_sampled() {
    use abi::event::{Outcome, Stream};
    let mut rig = Rig::new(feature::PREFILTER | feature::EVENTS);
    rig.apply(&[Op::Flags(Control::LIMITS), Op::Limit(0, limit(1, 0, 1))]);
    let mut events = rig.bpf.events().unwrap();
    for cpu in 0..events.cpus() {
        events.grant(cpu, Stream::Dropped, 99, 1);
    }
    let frame = frame4("192.0.2.1", VIP4, L4::Syn(80), 64, b"");
    assert!((0..3).all(|_| rig.run(&frame).reason == Reason::NotOurs));
    let seen: Vec<_> = std::iter::from_fn(|| events.take()).collect();
    let told = |e: &abi::event::Event| (e.head.reason, e.head.outcome, e.head.number);
    let want = (Reason::RateLimited as u16, Outcome::Audited as u8, 1);
    assert_eq!(seen.iter().map(told).collect::<Vec<_>>(), [want, want]);

    // The first of those that drop; once, with its row.
    rig.apply(&[Op::Limit(2, limit(4, 0, 0)), Op::Limit(3, limit(4, 0, 0))]);
    let frame = frame4("192.0.9.1", VIP4, L4::Syn(80), 64, b"");
    let reasons: Vec<Reason> = (0..6).map(|_| rig.run(&frame).reason).collect();
    assert_eq!(reasons[4..], [Reason::RateLimited; 2], "{reasons:?}");
    let seen: Vec<_> = std::iter::from_fn(|| events.take()).map(|e| told(&e)).collect();
    let (audited, dropped) = (Outcome::Audited as u8, Outcome::Dropped as u8);
    let count = |outcome, row| {
        seen.iter().filter(|told| **told == (Reason::RateLimited as u16, outcome, row)).count()
    };
    assert_eq!((count(audited, 1), count(dropped, 3), seen.len()), (5, 2, 7), "{seen:?}");
}
