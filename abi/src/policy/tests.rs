use core::net::IpAddr;

use proptest::prelude::*;

use super::{nets::Told, *};
use crate::limits::policy as limits;

fn address(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

/// A packet of 10.0.0.1 for 10.0.0.2; `l4` follows the IPv4 header.
fn packet4(protocol: u8, fragment: u16, l4: &[u8]) -> [u8; 128] {
    let mut b = [0u8; 128];
    b[0] = 0x45;
    b[4..6].copy_from_slice(&[0xab, 0xcd]);
    b[6..8].copy_from_slice(&fragment.to_be_bytes());
    b[9] = protocol;
    b[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    b[20..20 + l4.len()].copy_from_slice(l4);
    b
}

fn syn(from: u16, to: u16) -> [u8; 20] {
    let mut l4 = [0u8; 20];
    l4[0..2].copy_from_slice(&from.to_be_bytes());
    l4[2..4].copy_from_slice(&to.to_be_bytes());
    l4[13] = 2;
    l4
}

#[test]
fn words_hold_what_they_are_made_of() {
    let entry = Entry {
        identity: 0x1ff_ffff,
        class: 0xffff,
        deny: true,
        audit: true,
        rule: limits::MAX_RULES,
    };
    assert_eq!(entry.to_word(), u64::MAX);
    // SAFETY: integers only, without padding (`shared!`).
    let row: [u64; 3] = unsafe { core::mem::transmute(RuleRow::new(1, [2, 3])) };
    assert_eq!(row, [1, 2, 3]);
    let entry = Entry { identity: 256, class: 3, deny: false, audit: false, rule: 0 };
    assert_eq!(entry.to_word(), 256 | 3 << 25 | 1 << 43);
    let interface = Interface { policy: 7, identity: 0x1ff_ffff, audit: true, host: true };
    assert_eq!(Interface::from_word(interface.to_word()), Some(interface));
    assert_eq!(Interface::from_word(0), None);
    let mut words = [0; WAYS];
    words[5] = entry.to_word();
    let bucket = Entries::new(words);
    assert_eq!(bucket.find(Entry::key(256, 3)), entry.to_word());
    assert_eq!(bucket.find(Entry::key(256, 4)), 0);
    assert_eq!(bucket.find(0), 0, "an empty word is no entry about everybody");
}

/// What pinned maps hold: a change here is a change of the ABI.
#[test]
fn frozen() {
    let b = packet4(6, 0, &syn(40000, 80));
    let head = head(&b[..], 0, true).unwrap();
    let out = ConnectionKey::new(&head, Way::Out, 5);
    assert_eq!(out.local, address("10.0.0.1"));
    assert_eq!(out.ports.to_ne_bytes(), [0x9c, 0x40, 0, 80]);
    assert_eq!(out.protocol_interface, 0x506);
    // The other end's interface sees it from the other side.
    let into = ConnectionKey::new(&head, Way::In, 5);
    assert_eq!((into.local, into.remote), (out.remote, out.local));
    assert_eq!(into.ports.to_ne_bytes(), [0, 80, 0x9c, 0x40]);
    let connection = Connection::new(Way::Out, 9).refreshed(true, 9).unwrap();
    assert_eq!((connection.seen(), connection.flags), (9, 3));
    assert_eq!(Entry::hash(256, 3), 0x609d_3e4c);
    let net = nets::key("10.1.0.0".parse().unwrap(), 16).unwrap();
    assert_eq!((net.hi, net.lo, net.len), (0xffff_0a01_0000_0000, 0, 32));
    assert_eq!(nets::NetBucket::meta(net.len, (1 << 24) + 7), 0x2100_0007);
    let Told::Row(row, 1, bit) = nets::told(net) else { panic!("{:?}", nets::told(net)) };
    assert_eq!((bit, row), (1 << 32, nets::rows(net.hi)[0]));
    let short = nets::key("::".parse().unwrap(), 0).unwrap();
    assert_eq!(nets::told(short), Told::Short(1 << 31));
    assert_eq!(nets::key("ffff::".parse().unwrap(), 16), None);
}

#[test]
fn heads() {
    let b = packet4(6, 0, &syn(40000, 80));
    let h = head(&b[..], 0, true).unwrap();
    assert_eq!((h.port(), h.port_back(), h.opening, h.at), (80, 40000, true, 20));
    let b = packet4(1, 0, &[8, 0, 0, 0, 0x12, 0x34, 0, 1]);
    let h = head(&b[..], 0, true).unwrap();
    assert_eq!((h.port(), h.port_back()), (8, 8));
    assert_eq!(h.ports, h.ports.rotate_left(16), "an identifier is the same from both ends");
    let first = head(&packet4(17, 0x2000, &[0, 7, 0, 9])[..], 0, true).unwrap();
    assert_eq!((first.part, first.port(), first.id), (Part::First, 9, 0xcdab));
    let later = head(&packet4(17, 1, &[0xff; 8])[..], 0, true).unwrap();
    assert_eq!((later.part, later.ports, later.id), (Part::Later, 0, 0xcdab));

    // Hop-by-hop, then a fragment header, then UDP.
    let mut b = [0u8; 96];
    b[0] = 0x60;
    b[6] = 0;
    b[40] = 44;
    (b[48], b[50], b[51]) = (17, 0, 1);
    b[56..60].copy_from_slice(&[0, 7, 0, 9]);
    let h = head(&b[..], 0, false).unwrap();
    assert_eq!((h.protocol, h.part, h.port(), h.at), (17, Part::First, 9, 56));
    b[40] = 0;
    (b[48], b[56], b[64], b[72]) = (0, 0, 0, 0);
    assert_eq!(head(&b[..], 0, false), None, "more extension headers than are walked over");
}

#[test]
fn an_error_is_about_the_packet_in_it() {
    let inner = packet4(6, 0, &[0x9c, 0x40, 0, 80, 1, 2, 3, 4]);
    let mut l4 = [0u8; 36];
    l4[0] = 3;
    l4[8..36].copy_from_slice(&inner[..28]);
    let b = packet4(1, 0, &l4);
    let error = head(&b[..], 0, true).unwrap();
    let about = embedded(&b[..], &error).unwrap();
    assert_eq!((about.protocol, about.port(), about.port_back()), (6, 80, 40000));
    assert_eq!(embedded(&b[..50], &error), None, "cut short");
    let echo = head(&packet4(1, 0, &[8; 8])[..], 0, true).unwrap();
    assert_eq!(embedded(&b[..], &echo), None);
}

proptest! {
    #[test]
    fn parsers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), at in 0usize..130, v4: bool) {
        if let Some(head) = head(&bytes[..], at, v4) {
            let _ = embedded(&bytes[..], &head);
        }
    }
}
