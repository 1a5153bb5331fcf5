use super::*;

fn bytes<T: Copy, const N: usize>(value: T) -> [u8; N] {
    assert_eq!(size_of::<T>(), N);
    // SAFETY: equal sizes (asserted), and the structs here have no padding (`shared!`).
    unsafe { core::mem::transmute_copy(&value) }
}

#[test]
fn words_round_trip() {
    for resizing in [false, true] {
        let ring = Ring { offset: 0xfff_ffff, size: 1_048_573, resizing };
        assert_eq!(Ring::from_word(ring.to_word()), ring);
    }
    for slot in [
        Slot { current: 7, previous: Slot::NONE },
        Slot { current: 0, previous: 7 },
        Slot { current: Slot::NONE, previous: 7 },
        Slot::EMPTY,
    ] {
        assert_eq!(Slot::from_word(slot.to_word()), slot);
    }
    assert_eq!(Slot { current: 7, previous: 7 }.to_word(), 7);
    assert!(Slot { current: 7, previous: 6 }.to_word() > u64::from(Slot::NONE));
    for heir in [None, Some(0), Some((1 << 31) - 2)] {
        let state =
            State { down: true, keeps: heir.is_none(), recovering: false, weight: 300, heir };
        assert_eq!(State::from_word(state.to_word()), state);
    }
    let hop = HopWord::new([2, 0, 0, 1, 2, 3], 255, false);
    assert_eq!(hop.egress(), Some(255));
    assert_eq!(hop.mac(), [2, 0, 0, 1, 2, 3]);
    assert_eq!(hop.place() & 0x1ff, 256, "at 0 is nobody's");
    assert_eq!((HopWord::UNRESOLVED.egress(), HopWord::LOCAL.place()), (None, 0));
    assert_eq!(HopWord::new([0; 6], 0, true).egress(), Some(0));
}

#[test]
fn a_bucket_finds_its_entries_and_only_those() {
    let last = Bucket::with_overflow(Bucket::entry(9, 0), true);
    let b = Bucket::from_words([Bucket::entry(5, 41), 0, Bucket::entry(0, 3), last]);
    assert_eq!(b.find(5), Some(41));
    assert_eq!(b.find(0), Some(3), "an empty entry is not the tag 0");
    assert_eq!(b.find(9), Some(0));
    assert_eq!(b.find(1), None);
    assert!(b.overflows());
    assert!(!Bucket::default().overflows());
}

/// One bit of the ring's word says whether the ring alone decides, whatever was set last.
#[test]
fn what_makes_a_ring_plain() {
    let key = FrontendKey::new(Addr::v4(1), 443, 6);
    let ring = Ring { offset: 5, size: 251, resizing: false };
    for (mode, plain) in [
        (Mode::L2, true),
        (Mode::Ipip, true),
        (Mode::Gue, true),
        (Mode::Geneve, true),
        (Mode::Nat, false),
        (Mode::GueTwice, false),
    ] {
        assert_eq!(Frontend::service(key, mode, ring, 1).plain_ring().is_some(), plain, "{mode:?}");
    }
    let mut row = Frontend::service(key, Mode::Ipip, ring, 1);
    assert_eq!(row.plain_ring().map(|ring| ring.slot(u64::MAX)), Some(5 + 250));
    assert!(Frontend::vip(key.addr, None, None).plain_ring().is_none());
    for (other, usual) in
        [(Ring { resizing: true, ..ring }, ring), (Ring { size: 0, ..ring }, ring)]
    {
        row.set_ring(other);
        assert!(row.plain_ring().is_none() && row.ring() == other);
        row.set_ring(usual);
        assert!(row.plain_ring().is_some() && row.ring() == usual);
    }
    row.set_ranges(7);
    row.set_any(8);
    row.set_ring(ring);
    assert!(row.plain_ring().is_none() && row.is_special());
    row.set_any(0);
    assert!(row.plain_ring().is_none());
    row.set_ranges(0);
    assert!(row.plain_ring().is_some() && row.ring() == ring);
}

/// A key of one family is not a row's of the other, although what is compared of them is the same.
#[test]
fn families_are_told_apart() {
    let v4 = Addr::v4(0x0a0b_0c0d);
    let v6 = Addr::from_halves(0x1122, v4.lo());
    let row =
        |addr| Frontend::service(FrontendKey::new(addr, 443, 6), Mode::L2, Ring::default(), 1);
    for (addr, other) in [(v4, v6), (v6, v4)] {
        assert!(row(addr).is(&FrontendKey::new(addr, 443, 6)));
        assert!(!row(addr).is(&FrontendKey::new(other, 443, 6)));
        assert!(!row(addr).is(&FrontendKey::new(addr, 444, 6)));
        assert!(Frontend::vip(addr, None, None).is(&FrontendKey::vip(addr)));
        assert!(!Frontend::vip(addr, None, None).is(&FrontendKey::vip(other)));
        assert_eq!(FrontendKey::new(addr, 443, 17).port_and_protocol(), (443u16.to_be(), 17));
    }
    assert!(
        row(v6).is(&row(v6).key())
            && !row(v6).is(&FrontendKey::new(Addr::from_halves(1, v4.lo()), 443, 6))
    );
}

/// One byte image of each struct: what a pinned table of this version holds.
#[test]
fn frozen_images() {
    let key = FrontendKey::new(Addr::v4(u32::from_ne_bytes([203, 0, 113, 10])), 443, 6);
    let ring = Ring { offset: 0x0102_0304, size: 0x3fd, resizing: false };
    let f: [u8; 64] = bytes(Frontend::service(key, Mode::Ipip, ring, 0x1122_3344_5566_7788));
    assert_eq!(f[..16], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 10]);
    assert_eq!(f[16..24], [0x01, 0xbb, 6, 0, 1, 0, 0, 0]);
    assert_eq!(f[24..32], [4, 3, 2, 1, 0xfd, 3, 0, 0]);
    let target = Frontend::service(key, Mode::Ipip, ring, 1).with_target_port(8443);
    assert_eq!(bytes::<_, 64>(target)[20..24], [1, 0, 0x20, 0xfb]);
    assert_eq!((target.target_port(), target.mode()), (8443u16.to_be(), Mode::Ipip));
    assert_eq!(f[48..56], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);

    let hop = HopWord::new([2, 0, 0, 0, 0, 9], 1, true);
    let state = State { down: true, keeps: true, recovering: false, weight: 0x0201, heir: Some(4) };
    let b: [u8; 64] = bytes(Backend::new(key.addr, hop, state, 0x99, 0x0a0b_0c0d));
    assert_eq!(b[16..24], [2, 0, 0, 0, 0, 9, 2, 0]);
    assert_eq!(b[24..32], [5, 0, 1, 2, 5, 0, 0, 0x80]);
    assert_eq!(b[32..44], [0x99, 0, 0, 0, 0, 0, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a]);

    let e: [u8; 64] =
        bytes(Egress::new(3, [2, 0, 0, 0, 0, 1], 1500, Some(([10, 0, 0, 1], 8)), None));
    assert_eq!(e[16..24], [3, 0, 0, 0, 0xdc, 5, 0, 0]);
    assert_eq!(e[24..32], [10, 0, 0, 0, 0, 0, 0, 255], "entropy bits are cleared from the base");
    assert_eq!(e[36..48], [0xc8, 5, 0, 0, 2, 0, 0, 0, 0, 1, 8, 0]);
    assert_eq!(e[52..56], [0; 4], "no source, no room");

    let c: [u8; 64] = bytes(Control::new(3, 4, 5, 6));
    assert_eq!(c[..8], [0xa7, 0, 0x70, 0x64, 0x78, 0x2d, 0x62, 0x6c]);
    assert_eq!(
        c[24..56],
        [
            26, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0,
            0, 0, 0
        ]
    );
    let k: [u8; 32] = bytes(Bucket::from_words([Bucket::entry(1, 2), 0, 0, 0]));
    assert_eq!(k[..8], [1, 0, 0, 0, 6, 0, 0, 0]);
    let n: [u8; 32] = bytes(Counter { packets: 1, bytes: 2, new_connections: 3, reserved: 0 });
    assert_eq!((n[0], n[8], n[16]), (1, 2, 3));
    let r: [u8; 16] = bytes(ReasonCounter { packets: 1, bytes: 2 });
    assert_eq!((r[0], r[8]), (1, 2));
}
