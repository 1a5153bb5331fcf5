//! Sources on blocklists.

use abi::{
    limits::feature,
    prefix::{Bitmap, Entry, Filter6, ListRow, Net6, One, Place6},
    reason::Reason,
    table::Control,
};
use config::model::Forwarding;
use lb_daemon::datapath::{Op, Tables as _};
use lb_tests::rig::{self, Rig};

use super::{
    packets::{L4, VIP4, VIP6, frame4, frame6},
    rig,
};

/// Puts an IPv6 prefix into the table as the daemon does.
fn put6(rig: &mut Rig, net: Net6, list: u8) {
    let rows = rig::capacity();
    let at = net.buckets()[0] & (rows.buckets6 - 1);
    let mut bucket = rig.bpf.bucket6(at);
    let way = (0..3).rev().find(|&way| bucket.get(way).is_none()).unwrap();
    bucket.set(way, Some((net, list)));
    rig.apply(&[Op::Bucket6(at, bucket)]);
    if let Place6::Filter { row, word, bit } = net.place() {
        let row = row & (rows.filter6 - 1);
        let mut words = rig.bpf.filter6(row);
        words[word] |= bit;
        rig.apply(&[Op::Filter6(row, Filter6::new(words))]);
    }
}

#[test]
fn blocked_sources_are_dropped_audited_ones_counted() {
    let mut rig = rig(Forwarding::Ipip, "10.0.1.11");
    let mut block = Box::new([0u8; 256]);
    block[7] = 2;
    block[9] = 1;
    rig.apply(&[
        Op::List(1, ListRow { drop: 1, id: 1, ..ListRow::default() }),
        Op::List(2, ListRow { drop: 0, id: 2, ..ListRow::default() }),
        Op::Block(3, block),
        // 192.0.2.0/24 in list 1; of 198.51.100.0/24 only .7, in list 2, and .9, in list 1.
        Op::Line(0xc0_0002, Entry::List(1)),
        Op::Line(0xc6_3364, Entry::Block(3)),
        // Of 203.0.113.0/24 .64 to .127 in list 1, the rest in list 2.
        Op::Line(0xcb_0071, Entry::One(One { base: 64, host_bits: 6, inside: 1, outside: 2 })),
        // Of 203.0.114.0/24 .0, .64 and .255 in list 1.
        Op::Bitmap(5, Bitmap::new([1, 1, 0, 1 << 63])),
        Op::Line(0xcb_0072, Entry::Bitmap { row: 5, list: 1 }),
    ]);
    // Longest first: 2001:db8:bad::/48 in list 1, but 2001:db8:bad:1::/64 in none; 2a00::/12, of a
    // length that is told once for all, in list 2.
    put6(&mut rig, Net6::new(0x2001_0db8_0bad_0000, 0, 48), 1);
    put6(&mut rig, Net6::new(0x2001_0db8_0bad_0001, 0, 64), 0);
    put6(&mut rig, Net6::new(0x2a00 << 48, 0, 12), 2);
    rig.apply(&[Op::Flags(Control::PREFIXES_V6 | Control::shorts(1 << (31 - 12)))]);
    let mut see = |frame: &[u8]| rig.run(frame).reason;
    assert_eq!(see(&frame4("192.0.2.200", VIP4, L4::Syn(80), 64, b"")), Reason::Blocked);
    assert_eq!(see(&frame4("192.0.3.200", VIP4, L4::Syn(80), 64, b"")), Reason::ForwardedTx);
    assert_eq!(see(&frame4("198.51.100.7", VIP4, L4::Syn(80), 64, b"")), Reason::ForwardedTx);
    assert_eq!(see(&frame4("198.51.100.8", VIP4, L4::Syn(80), 64, b"")), Reason::ForwardedTx);
    assert_eq!(see(&frame6("2001:db8:bad::1", VIP6, L4::Syn(80), 64, b"")), Reason::Blocked);
    for (source, want) in [
        ("2001:db8:9::1", Reason::ForwardedTx),
        ("2001:db8:bad:1::1", Reason::ForwardedTx),
        ("2001:db8:bad:2::1", Reason::Blocked),
        ("2a0f::1", Reason::ForwardedTx),
        ("2a10::1", Reason::ForwardedTx),
    ] {
        assert_eq!(see(&frame6(source, VIP6, L4::Syn(80), 64, b"")), want, "{source}");
    }
    assert_eq!(see(&frame4("198.51.100.9", VIP4, L4::Syn(80), 64, b"")), Reason::Blocked);
    for low in [0, 64, 255] {
        let source = format!("203.0.114.{low}");
        assert_eq!(see(&frame4(&source, VIP4, L4::Syn(80), 64, b"")), Reason::Blocked, "{source}");
    }
    assert_eq!(see(&frame4("203.0.114.1", VIP4, L4::Syn(80), 64, b"")), Reason::ForwardedTx);
    for (low, want) in [
        (63, Reason::ForwardedTx),
        (64, Reason::Blocked),
        (127, Reason::Blocked),
        (128, Reason::ForwardedTx),
    ] {
        let source = format!("203.0.113.{low}");
        assert_eq!(see(&frame4(&source, VIP4, L4::Syn(80), 64, b"")), want, "{source}");
    }
    assert_eq!((rig.list_hits(1), rig.list_hits(2)), (9, 4));
    // The hits of a list that does something else now go on; another list begins at 0.
    let own = ListRow { drop: 1, id: 2, ..ListRow::default() };
    for (row, hits) in [(own, 4), (ListRow::default(), 4), (ListRow { id: 3, ..own }, 0)] {
        rig.apply(&[Op::List(2, row)]);
        assert_eq!((rig.list_hits(1), rig.list_hits(2)), (9, hits), "{row:?}");
    }
}

#[test]
fn the_kernel_blocks_what_the_lists_say() {
    use config::model::{ListAction, Prefilter, PrefixList, Source};
    use lb_daemon::plan::prefixes::{Prefixes, lookup};

    // Numbers that look random, the same in every run.
    let mut state = 7u64;
    let mut next = |below: u32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u32 % below
    };
    let mut rig = Rig::new(feature::PREFILTER);
    let mut prefixes = Prefixes::default();
    for round in 0..4 {
        let mut some = |count: u32| -> config::PrefixSet {
            (0..count)
                .map(|_| match next(3) {
                    0 => format!("2001:db8::{:x}/{}", next(1 << 12), 112 + next(17)),
                    _ => format!("203.0.{}.{}/{}", 112 + next(8), next(256), 20 + next(13)),
                })
                .map(|text| text.parse::<ipnet::IpNet>().expect("a prefix").trunc())
                .collect()
        };
        let list = |name: &str, action, prefixes| {
            let (name, source) = (name.to_owned(), Source::Api);
            let (skipped, skipped_lines) = (Vec::new(), 0);
            let list = PrefixList {
                name,
                source,
                action,
                prefixes,
                skipped,
                skipped_lines,
                remote: None,
                force: false,
                scope: config::model::Scope::default(),
            };
            std::sync::Arc::new(list)
        };
        let lists = vec![
            list("watch", ListAction::Audit, some(8)),
            list("first", ListAction::Drop, some(10)),
            list("second", ListAction::Drop, some(10)),
        ];
        let wanted = Prefilter { allow: some(4), lists, ..Prefilter::default() };
        let ops = prefixes.plan(&wanted, &rig.bpf).expect("room");
        rig.apply(&ops);
        prefixes.release();
        let names = wanted.lists.iter().map(|l| l.name.as_str());
        let mut adopted = Prefixes::adopt(&rig.bpf, names);
        let again = adopted.plan(&wanted, &rig.bpf).expect("room");
        assert_eq!(again, [], "what stands is what is wanted");
        for _ in 0..500 {
            let (source, frame) = match next(3) {
                0 => {
                    let source = format!("2001:db8::{:x}", next(1 << 12));
                    let frame = frame6(&source, VIP6, L4::Syn(80), 64, b"");
                    (source, frame)
                }
                _ => {
                    let source = format!("203.0.{}.{}", 112 + next(8), next(256));
                    let frame = frame4(&source, VIP4, L4::Syn(80), 64, b"");
                    (source, frame)
                }
            };
            let verdict = lookup(&wanted, source.parse().expect("an address"));
            let number = verdict.decides.and_then(|name| prefixes.number_of(name));
            let before = number.map(|n| rig.list_hits(n.into()));
            let action =
                verdict.hits.iter().find(|h| Some(h.list) == verdict.decides).map(|h| h.action);
            let want = match action {
                Some(ListAction::Drop) => Reason::Blocked,
                Some(ListAction::Audit) | None => Reason::NotOurs,
            };
            assert_eq!(rig.run(&frame).reason, want, "round {round}: {source}: {verdict:?}");
            let after = number.map(|n| rig.list_hits(n.into()));
            assert_eq!(after, before.map(|n| n + 1), "round {round}: {source}: {verdict:?}");
        }
    }
}

#[test]
fn lists_with_scopes_have_what_they_are_about() {
    use abi::scope::{ICMP, Scope};

    let mut rig = Rig::new(feature::PREFILTER);
    let mut udp53 = Scope::new(false, 17);
    udp53.only_ports([(53, 53), (8000, 8099)]);
    let mut elsewhere = Scope::default();
    elsewhere.only_interfaces([99]);
    let mut here = Scope::new(false, 6);
    here.only_interfaces([99, rig::INGRESS]);
    rig.apply(&[
        Op::Scope(1, udp53),
        Op::Scope(2, elsewhere),
        Op::Scope(3, here),
        Op::Scope(4, Scope::new(true, 0)),
        Op::Scope(5, Scope::new(false, ICMP)),
    ]);
    for number in 1..=5u8 {
        let row = ListRow { drop: 1, id: number.into(), ..ListRow::of(&[number]) };
        rig.apply(&[Op::List(number.into(), row)]);
    }
    rig.apply(&[
        // Counted, whatever it is.
        Op::List(6, ListRow { drop: 0, id: 6, ..ListRow::default() }),
        Op::List(7, ListRow { id: 7, ..ListRow::of(&[1, 2, 6]) }),
        Op::Line(0xc0_0001, Entry::List(1)),
        Op::Line(0xc0_0002, Entry::List(2)),
        Op::Line(0xc0_0003, Entry::List(3)),
        Op::Line(0xc0_0004, Entry::List(4)),
        Op::Line(0xc0_0005, Entry::List(5)),
        Op::Line(0xc0_0007, Entry::List(7)),
    ]);
    put6(&mut rig, Net6::new(0x2001_0db8_0001_0000, 0, 48), 1);
    put6(&mut rig, Net6::new(0x2001_0db8_0004_0000, 0, 48), 4);
    rig.apply(&[Op::Flags(Control::PREFIXES_V6)]);
    let v4 = |third: u8, l4| frame4(&format!("192.0.{third}.9"), "203.0.113.10", l4, 64, b"four");
    for (frame, want) in [
        (v4(1, L4::Udp(53)), Reason::Blocked),
        (v4(1, L4::Udp(54)), Reason::NotOurs),
        (v4(1, L4::Udp(8099)), Reason::Blocked),
        (v4(1, L4::Syn(53)), Reason::NotOurs),
        (v4(2, L4::Syn(80)), Reason::NotOurs),
        (v4(3, L4::Syn(80)), Reason::Blocked),
        (v4(3, L4::Udp(80)), Reason::NotOurs),
        (v4(4, L4::Udp(80)), Reason::NotOurs),
        (v4(5, L4::Udp(80)), Reason::NotOurs),
        (v4(7, L4::Udp(53)), Reason::Blocked),
        (v4(7, L4::Udp(54)), Reason::NotOurs),
        (frame6("2001:db8:1::9", VIP6, L4::Udp(53), 64, b""), Reason::Blocked),
        (frame6("2001:db8:1::9", VIP6, L4::Udp(54), 64, b""), Reason::NotOurs),
    ] {
        assert_eq!(rig.run(&frame).reason, want, "{:02x?}", &frame[14..]);
    }
    assert_eq!((rig.list_hits(1), rig.list_hits(6), rig.list_hits(7)), (4, 1, 0));

    // Behind IP options; a first fragment has ports, a later one has none.
    let mut options = v4(1, L4::Udp(53));
    options[14] = 0x46;
    options.splice(34..34, [1, 1, 1, 1]);
    assert_eq!(rig.run(&options).reason, Reason::Blocked);
    for (field, want) in [([0x20, 0], Reason::Blocked), ([0, 1], Reason::NotOurs)] {
        let mut frame = v4(1, L4::Udp(53));
        frame[20..22].copy_from_slice(&field);
        assert_eq!(rig.run(&frame).reason, want);
    }
    let mut echo = v4(5, L4::Udp(80));
    echo[23] = 1;
    assert_eq!(rig.run(&echo).reason, Reason::Blocked);
    // Behind a hop-by-hop header, and with a VLAN tag.
    let mut hops = frame6("2001:db8:1::9", VIP6, L4::Udp(53), 64, b"");
    hops[20] = 0;
    hops.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
    assert_eq!(rig.run(&hops).reason, Reason::Blocked);
    let mut tagged = v4(1, L4::Udp(53));
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    assert_eq!(rig.run(&tagged).reason, Reason::Blocked);

    // Destinations are looked at when the flag says so.
    let to = |dst: &str| frame4("198.51.100.1", dst, L4::Syn(80), 64, b"");
    let to6 = |dst: &str| frame6("2001:db8:9::1", dst, L4::Syn(80), 64, b"");
    assert_eq!(rig.run(&to("192.0.4.1")).reason, Reason::NotOurs);
    rig.apply(&[Op::Flags(Control::PREFIXES_V6 | Control::DESTINATIONS)]);
    assert_eq!(rig.run(&to("192.0.4.1")).reason, Reason::Blocked);
    assert_eq!(rig.run(&to("192.0.3.1")).reason, Reason::NotOurs, "that one is about sources");
    assert_eq!(rig.run(&to6("2001:db8:4::1")).reason, Reason::Blocked);
    assert_eq!(rig.run(&to6("2001:db8:1::1")).reason, Reason::NotOurs);
    assert_eq!(rig.list_hits(4), 2);
}
