//! Samples of packets: what is in them, and that there are as many as were granted.

use abi::{
    event::{Event, Hook, Outcome, RESERVE, Stream},
    prefix::{Entry, ListRow},
    reason::Reason,
};
use config::model::Forwarding;
use lb_daemon::datapath::{Op, bpf::Events};
use lb_tests::rig::Rig;

use super::{
    packets::{L4, VIP4, VIP6, frame4, frame6},
    rig,
};

fn listed() -> (Rig, Events) {
    let mut rig = rig(Forwarding::Ipip, "10.0.1.11");
    rig.apply(&[
        Op::List(1, ListRow { drop: 1, id: 1, ..ListRow::default() }),
        Op::List(2, ListRow { drop: 0, id: 2, ..ListRow::default() }),
        Op::Line(0xc0_0002, Entry::List(1)),
        Op::Line(0xc0_0003, Entry::List(2)),
    ]);
    let events = rig.bpf.events().unwrap();
    (rig, events)
}

fn grant(events: &Events, dropped: u64, passed: u64) {
    for cpu in 0..events.cpus() {
        events.grant(cpu, Stream::Dropped, dropped, 1);
        events.grant(cpu, Stream::Passed, passed, 1);
    }
}

fn all(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.take()).collect()
}

#[test]
fn nothing_is_sampled_without_a_grant() {
    let (mut rig, mut events) = listed();
    let frame = frame4("192.0.2.200", VIP4, L4::Syn(80), 64, b"");
    assert_eq!(rig.run(&frame).reason, Reason::Blocked);
    assert_eq!(all(&mut events), []);
    grant(&events, 1, 0);
    assert_eq!(rig.run(&frame).reason, Reason::Blocked);
    assert_eq!(all(&mut events).len(), 1);
}

#[test]
fn a_sample_says_why_and_has_the_packet() {
    let (mut rig, mut events) = listed();
    grant(&events, 100, 0);
    let long = frame4("192.0.2.7", VIP4, L4::Udp(443), 64, &[0xab; 300]);
    let audited = frame4("192.0.3.7", VIP4, L4::Syn(80), 64, b"");
    // Without a service at that port; the second program sees it last.
    let unserved = frame6("2001:db8:9::1", VIP6, L4::Syn(81), 64, b"");
    let good = frame4("198.51.100.1", VIP4, L4::Syn(80), 64, b"");
    let reasons = [&long, &audited, &unserved, &good].map(|frame| rig.run(frame).reason);
    let want = [Reason::Blocked, Reason::ForwardedTx, Reason::NoService, Reason::ForwardedTx];
    assert_eq!(reasons, want);
    let got = all(&mut events);
    let told = |event: &Event| {
        let head = event.head;
        (head.reason, head.outcome, head.number, head.length as usize, event.packet().to_vec())
    };
    let blocked = Reason::Blocked as u16;
    assert_eq!(
        got.iter().map(told).collect::<Vec<_>>(),
        [
            (blocked, Outcome::Dropped as u8, 1, long.len(), long[..128].to_vec()),
            (blocked, Outcome::Audited as u8, 2, audited.len(), audited),
            (Reason::NoService as u16, Outcome::Dropped as u8, 0, unserved.len(), unserved),
        ]
    );
    assert!(got.iter().all(|e| e.head.weight == 1 && e.head.hook == Hook::Xdp as u8));
    assert!(got.iter().all(|e| e.head.ifindex == lb_tests::rig::INGRESS && e.head.time > 0));
}

#[test]
fn what_passes_is_sampled_as_it_came() {
    let (mut rig, mut events) = listed();
    grant(&events, 0, 100);
    let forwarded = frame4("198.51.100.1", VIP4, L4::Syn(80), 64, b"");
    let other = frame4("198.51.100.2", "198.51.100.99", L4::Syn(80), 64, b"");
    let blocked = frame4("192.0.2.200", VIP4, L4::Syn(80), 64, b"");
    assert_eq!(rig.run(&forwarded).reason, Reason::ForwardedTx);
    assert_eq!(rig.run(&other).reason, Reason::NotOurs);
    assert_eq!(rig.run(&blocked).reason, Reason::Blocked);
    let got: Vec<_> =
        all(&mut events).iter().map(|e| (e.head.outcome, e.packet().to_vec())).collect();
    let passed = Outcome::Passed as u8;
    assert_eq!(got, [(passed, forwarded), (passed, other)]);
}

#[test]
fn a_full_buffer_loses_samples_and_counts_them() {
    let (mut rig, mut events) = listed();
    let room = u64::from(abi::event::RING_BYTES) / (size_of::<Event>() as u64 + 8);
    grant(&events, room + 50 + RESERVE, 0);
    let frame = frame4("192.0.2.200", VIP4, L4::Syn(80), 64, b"");
    rig.repeat(&frame, room as u32 + 50);
    let lost: u64 = (0..events.cpus()).map(|cpu| events.sampler(cpu, Stream::Dropped).lost()).sum();
    let got = all(&mut events).len() as u64;
    assert!(lost > 0 && got + lost == room + 50, "{got} + {lost}, room for {room}");
}

/// More than was granted comes at once: the samples are from all of it, and say how much.
#[test]
fn a_burst_is_sampled_from_its_beginning_to_its_end() {
    let (mut rig, mut events) = listed();
    grant(&events, 10 + RESERVE, 0);
    let bursts = [("192.0.2.200", 20_000), ("192.0.2.201", 20_000)];
    for (source, packets) in bursts {
        rig.repeat(&frame4(source, VIP4, L4::Syn(80), 64, b""), packets);
    }
    let count: u64 =
        (0..events.cpus()).map(|cpu| events.sampler(cpu, Stream::Dropped).packets()).sum();
    assert_eq!(count, 40_000);
    let got = all(&mut events);
    assert!(got.len() as u64 <= 10 + RESERVE, "{}", got.len());
    assert!(got[..10].iter().all(|event| event.head.weight == 1), "the first ones are all there");
    let of = |last: u8| -> u32 {
        let own = got.iter().filter(|event| event.packet()[29] == last);
        own.map(|event| event.head.weight).sum()
    };
    // A last sample of a burst stands for an eighth of it.
    for last in [200, 201] {
        assert!((12_000..28_000).contains(&of(last)), "{last}: {}", of(last));
    }
}
