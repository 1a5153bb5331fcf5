//! NAT: fragments of either side, IPv4 options, IPv6 extension headers, within a family and between both.

use abi::reason::Reason;
use etherparse::Ipv4Header;
use lb_tests::rig::{CLIENT_MAC, HOP_MAC, INGRESS, OUR_MAC, Rig};

use crate::{
    nat::{Says, behind, client_frame, from_backend, says},
    nat_icmp,
    odd::fragments,
    packets::{DROP, L4, PASS, TX, VIP4, VIP6, frame4, frame6, macs},
    vlan::{TAGS, tagged},
};

/// VIP, backend, NAT address, client.
const SAME: [[&str; 4]; 2] = [
    [VIP4, "10.0.1.11", "10.0.0.1", "198.51.100.7"],
    [VIP6, "2001:db8:2::11", "2001:db8:f::1", "2001:db8:9::7"],
];

/// The same, where the backend is of the other family.
const CROSSED: [[&str; 4]; 2] =
    [[VIP6, SAME[0][1], SAME[0][2], SAME[1][3]], [VIP4, SAME[1][1], SAME[1][2], SAME[0][3]]];

fn all() -> impl Iterator<Item = [&'static str; 4]> {
    SAME.into_iter().chain(CROSSED)
}

fn rig(vip: &str, backend: &str) -> Rig {
    Rig::with(vec![behind(vip, backend)], INGRESS, 1500)
}

/// Where a fragment of a header's size begins in its datagram, whether others follow, and its identification.
fn piece(frame: &[u8]) -> (usize, bool, u32) {
    let l3 = &frame[14..];
    let (field, id) = if l3[0] >> 4 == 4 {
        let (h, _) = Ipv4Header::from_slice(l3).unwrap();
        assert_eq!(h.header_checksum, h.calc_header_checksum());
        let field = u16::from_be_bytes([l3[6], l3[7]]);
        assert_eq!(field & 0xc000, 0, "it may be fragmented further");
        (field & 0x1fff | field << 2 & 0x8000, u32::from(h.identification))
    } else {
        assert_eq!((l3[6], l3[41], l3[43] & 6), (44, 0, 0));
        let field = u16::from_be_bytes([l3[42], l3[43]]);
        let id = u32::from_be_bytes([l3[44], l3[45], l3[46], l3[47]]);
        (field >> 3 | field << 15, id)
    };
    (usize::from(field & 0x1fff) * 8, field >> 15 != 0, id)
}

/// The datagram that fragments make.
fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    let four = parts[0][14] >> 4 == 4;
    let (head, above) = if four { (34, 34) } else { (54, 62) };
    let mut whole = parts[0][..head].to_vec();
    let (_, _, id) = piece(&parts[0]);
    for (n, part) in parts.iter().enumerate() {
        let (at, more, of) = piece(part);
        assert_eq!((at, more, of), (whole.len() - head, n + 1 < parts.len(), id));
        let addresses = if four { 26..34 } else { 22..54 };
        assert_eq!(part[addresses.clone()], whole[addresses], "addresses");
        whole.extend(&part[above..]);
    }
    let total = whole.len() - 14;
    if four {
        whole[16..18].copy_from_slice(&(total as u16).to_be_bytes());
        whole[20..22].fill(0);
        let mut h = Ipv4Header::from_slice(&whole[14..]).unwrap().0;
        h.header_checksum = h.calc_header_checksum();
        whole[14..34].copy_from_slice(&h.to_bytes());
    } else {
        whole[18..20].copy_from_slice(&(total as u16 - 40).to_be_bytes());
        whole[20] = parts[0][54];
    }
    whole
}

/// Runs fragments, and puts together what they have become.
fn run_all(rig: &mut Rig, parts: &[Vec<u8>], to: [u8; 6]) -> (Says, u32) {
    let mut out = Vec::new();
    for part in parts {
        let got = rig.run(part);
        assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
        assert_eq!(macs(&got.frame), (to, OUR_MAC));
        out.push(got.frame);
    }
    (says(&joined(&out)), piece(&out[0]).2)
}

#[test]
fn datagrams_in_fragments() {
    for [vip, web, nat, client] in all() {
        let mut rig = rig(vip, web);
        for (l4, target, udp) in [(L4::Udp(443), 443, true), (L4::Syn(80), 8080, false)] {
            let payload: Vec<u8> = (0..2001).map(|n| n as u8).collect();
            let parts = fragments(&client_frame(vip, l4, &payload), 7, 800);
            let (forth, _) = run_all(&mut rig, &parts, HOP_MAC);
            assert_eq!((&*forth.src, &*forth.dst, forth.ttl), (nat, web, 63));
            assert_eq!((forth.ports.1, &forth.payload), (target, &payload));

            let reply = from_backend(web, target, nat, forth.ports.0, udp, &payload);
            let (back, _) = run_all(&mut rig, &fragments(&reply, 8, 800), CLIENT_MAC);
            assert_eq!((&*back.src, &*back.dst, back.ttl), (vip, client, 59));
            let port = if udp { 443 } else { 80 };
            assert_eq!((back.ports, back.payload), ((port, 40000), payload.clone()));
            // In another order, once the first one has come.
            for part in [&parts[0], &parts[2], &parts[1]] {
                assert_eq!(rig.run(part).reason, Reason::ForwardedTx);
            }
        }
        let (front, back) = rig.counts("web");
        assert_eq!((front, front.packets), (back, 12));
    }
}

/// Datagrams of several clients with one identification leave with several.
#[test]
fn identifications() {
    for [vip, web, nat, _] in [SAME[0], CROSSED[0], CROSSED[1]] {
        let mut rig = rig(vip, web);
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..100 {
            let (client, datagram) = if vip == VIP4 {
                let client = format!("198.51.100.{n}");
                let datagram = frame4(&client, vip, L4::Udp(443), 64, &[5; 2000]);
                (client, datagram)
            } else {
                let client = format!("2001:db8:9::{:x}", n + 1);
                let datagram = frame6(&client, vip, L4::Udp(443), 64, &[5; 2000]);
                (client, datagram)
            };
            let (forth, id) = run_all(&mut rig, &fragments(&datagram, 7, 800), HOP_MAC);
            assert_eq!(forth.payload.len(), 2000);
            assert!(seen.insert(id), "{id} twice");
            assert!(id < 1 << 16);
            let reply = from_backend(web, 443, nat, forth.ports.0, true, &[5; 2000]);
            let (back, _) = run_all(&mut rig, &fragments(&reply, 7, 800), CLIENT_MAC);
            assert_eq!(back.dst, client);
        }
    }
}

#[test]
fn before_the_first_one() {
    for [vip, web, nat, _] in all() {
        let mut rig = rig(vip, web);
        let parts = fragments(&client_frame(vip, L4::Udp(443), &[5; 2000]), 7, 800);
        let got = rig.run(&parts[1]);
        assert_eq!((got.action, got.reason), (DROP, Reason::FragmentKept));
        let port = says(&rig.run(&client_frame(vip, L4::Udp(443), b"")).frame).ports.0;
        let reply = from_backend(web, 443, nat, port, true, &[5; 2000]);
        for part in &fragments(&reply, 7, 800)[1..] {
            assert_eq!(rig.run(part).reason, Reason::FragmentKept);
        }
        // The host's own.
        let other = from_backend(web, 444, nat, port, true, &[5; 2000]);
        for part in &fragments(&other, 8, 800) {
            let got = rig.run(part);
            assert_eq!((got.action, got.reason, &got.frame), (PASS, Reason::NatPassed, part));
        }
    }
}

/// A few wait for the daemon; without it they are the host's, as they came.
#[test]
fn what_may_be_the_hosts_own_is_not_lost() {
    for [vip, web, nat, _] in SAME {
        let mut rig = rig(vip, web);
        let datagram = from_backend(web, 443, nat, 2000, true, &[5; 2000]);
        for tags in std::iter::once(&[][..]).chain(TAGS) {
            let part = tagged(&fragments(&datagram, 7, 800)[1], tags);
            let mut kept = 0;
            let got = loop {
                let got = rig.run(&part);
                if got.reason != Reason::FragmentKept {
                    break got;
                }
                assert_eq!(got.action, DROP);
                kept += 1;
            };
            assert_eq!(kept, if tags.is_empty() { 17 } else { 0 });
            assert_eq!((got.action, got.reason, got.frame), (PASS, Reason::NatPassed, part));
        }
        // Larger than what waits.
        let mut rig = self::rig(vip, web);
        let large = from_backend(web, 443, nat, 2000, true, &[5; 5000]);
        let part = &fragments(&large, 7, 2400)[1];
        let got = rig.run(part);
        assert_eq!((got.action, got.reason, &got.frame), (PASS, Reason::NatPassed, part));
        // The first one has come: nobody waits for anything.
        for tags in TAGS {
            for part in fragments(&datagram, 7, 800) {
                let part = tagged(&part, tags);
                let got = rig.run(&part);
                assert_eq!((got.action, got.reason, got.frame), (PASS, Reason::NatPassed, part));
            }
        }
    }
}

/// With these IPv4 options, of so many words.
pub(crate) fn with_v4_options<const N: usize>(frame: &[u8], options: [u8; N]) -> Vec<u8> {
    let mut out = frame.to_vec();
    let mut h = Ipv4Header::from_slice(&frame[14..]).unwrap().0;
    h.options = options.as_slice().try_into().unwrap();
    h.total_len += N as u16;
    h.header_checksum = h.calc_header_checksum();
    out.splice(14..34, h.to_bytes());
    out
}

/// Four bytes of IPv4 options, or IPv6 extension headers: of hop-by-hop options, destination options, and a routing
/// header with nothing left to go.
fn with_options(frame: &[u8], kinds: &[u8], left: u8) -> Vec<u8> {
    if frame[14] >> 4 == 4 {
        return with_v4_options(frame, [1, 1, 1, 0]);
    }
    let mut out = frame.to_vec();
    let mut next = frame[20];
    for &kind in kinds.iter().rev() {
        let header = match kind {
            43 => [next, 0, 4, left, 0, 0, 0, 0],
            // Authentication: three words, of which the length has one.
            51 => [next, 0, 0, 0, 0, 0, 0, 0],
            44 => [next, 0, 0, 0, 0, 0, 0, 7],
            _ => [next, 0, 1, 4, 0, 0, 0, 0],
        };
        out.splice(54..54, header);
        next = kind;
    }
    out[20] = next;
    let payload = out.len() as u16 - 54;
    out[18..20].copy_from_slice(&payload.to_be_bytes());
    out
}

#[test]
fn options_and_extension_headers() {
    for [vip, web, nat, client] in SAME {
        let mut rig = rig(vip, web);
        for (l4, port, target, udp) in
            [(L4::Syn(80), 80, 8080, false), (L4::Udp(443), 443, 443, true)]
        {
            for kinds in [&[0u8][..], &[60], &[0, 60, 43, 60]] {
                let frame = with_options(&client_frame(vip, l4, b"hello"), kinds, 0);
                let got = rig.run(&frame);
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx), "{kinds:?}");
                assert_eq!(got.frame.len(), frame.len());
                let forth = says(&got.frame);
                assert_eq!((&*forth.src, &*forth.dst, forth.ttl), (nat, web, 63));
                assert_eq!((forth.ports.1, &*forth.payload), (target, &b"hello"[..]));

                let reply = from_backend(web, target, nat, forth.ports.0, udp, b"hi");
                let got = rig.run(&with_options(&reply, kinds, 0));
                assert_eq!((got.action, got.reason), (TX, Reason::ForwardedTx));
                let back = says(&got.frame);
                assert_eq!((&*back.src, &*back.dst, back.ttl), (vip, client, 59));
                assert_eq!((back.ports, &*back.payload), ((port, 40000), &b"hi"[..]));
            }
        }
    }
}

#[test]
fn what_is_refused() {
    let [vip, web, nat, _] = SAME[1];
    let mut rig = rig(vip, web);
    let syn = client_frame(vip, L4::Syn(80), b"hello");
    let port = says(&rig.run(&syn).frame).ports.0;
    // Addresses that others are about: a routing header that is not at its end, authentication.
    for (kinds, left) in [(&[43u8][..], 1), (&[51], 0)] {
        let frame = with_options(&syn, kinds, left);
        let got = rig.run(&frame);
        assert_eq!((got.action, got.reason, got.frame), (DROP, Reason::NatRefused, frame));
        let reply = from_backend(web, 8080, nat, port, false, b"hi");
        let reply = with_options(&reply, kinds, left);
        let got = rig.run(&reply);
        assert_eq!((got.action, got.reason, got.frame), (PASS, Reason::NatPassed, reply));
    }
    for [vip, web, ..] in all() {
        let mut rig = self::rig(vip, web);
        let parts = fragments(&client_frame(vip, L4::Syn(80), &[5; 200]), 7, 16);
        let got = rig.run(&parts[0]);
        assert_eq!((got.action, got.reason), (DROP, Reason::Truncated));
        let mut late = client_frame(vip, L4::Udp(443), &[5; 2000]);
        late[if vip == VIP4 { 22 } else { 21 }] = 1;
        assert_eq!(rig.run(&fragments(&late, 7, 800)[0]).reason, Reason::TtlExpired);
    }
}

/// A packet without the identification of its IPv4 header, which is chosen by chance, and the checksum over that.
fn without_id(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[14] >> 4 == 4 {
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    }
    frame
}

/// Options and extension headers do not go along: the packet becomes what it would be without.
#[test]
fn options_between_families() {
    for [vip, web, nat, client] in CROSSED {
        let mut rig = rig(vip, web);
        for (l4, target, udp) in [(L4::Syn(80), 8080, false), (L4::Udp(443), 443, true)] {
            for payload in [&b"hello"[..], &[9; 1400]] {
                let plain = client_frame(vip, l4, payload);
                let there = rig.run(&plain);
                let reply =
                    from_backend(web, target, nat, says(&there.frame).ports.0, udp, payload);
                let back = rig.run(&reply);
                assert_eq!((there.reason, back.reason), (Reason::ForwardedTx, Reason::ForwardedTx));
                assert_eq!(says(&back.frame).dst, client);
                // A fragment that is all of its datagram, last.
                for kinds in [&[0u8][..], &[60], &[0, 60, 43, 60], &[44], &[60, 44, 60]] {
                    for (frame, wanted) in [(&plain, &there), (&reply, &back)] {
                        let got = rig.run(&with_options(frame, kinds, 0));
                        assert_eq!(
                            (got.action, got.reason),
                            (TX, Reason::ForwardedTx),
                            "{kinds:?}"
                        );
                        assert_eq!(
                            without_id(got.frame),
                            without_id(wanted.frame.clone()),
                            "{kinds:?}"
                        );
                    }
                }
            }
        }
        let (front, back) = rig.counts("web");
        assert_eq!((front, front.packets), (back, 4 * 6));
    }
}

#[test]
fn source_routes_end_at_the_other_family() {
    let [vip, web, ..] = CROSSED[1];
    let left = [131, 7, 4, 10, 0, 0, 1, 0];
    let used = [131, 7, 8, 10, 0, 0, 1, 0];
    for (web, options, reason) in [
        (web, left, Reason::NatRefused),
        (web, used, Reason::ForwardedTx),
        (SAME[0][1], left, Reason::ForwardedTx),
    ] {
        let mut rig = rig(vip, web);
        let got = rig.run(&with_v4_options(&client_frame(vip, L4::Syn(80), b""), options));
        assert_eq!(got.reason, reason, "{options:?}");
        assert_eq!(rig.counts("web").0.packets > 0, reason == Reason::ForwardedTx);
    }
    // From a backend, and a later fragment.
    let [vip, web, nat, _] = CROSSED[0];
    let mut rig = rig(vip, web);
    let port = says(&rig.run(&client_frame(vip, L4::Udp(443), b"")).frame).ports.0;
    let parts = fragments(&from_backend(web, 443, nat, port, true, &[5; 2000]), 7, 800);
    let routed = with_v4_options(&parts[0], left);
    let got = rig.run(&routed);
    assert_eq!((got.action, got.reason, got.frame), (DROP, Reason::NatRefused, routed));
    assert_eq!(rig.run(&parts[0]).reason, Reason::ForwardedTx);
    assert_eq!(rig.run(&with_v4_options(&parts[1], left)).reason, Reason::NatRefused);
    assert_eq!(rig.run(&with_v4_options(&parts[1], used)).reason, Reason::ForwardedTx);
}

/// Over IPv6 there has to be one, and to make it takes all of the datagram.
#[test]
fn fragments_without_a_checksum() {
    let [vip, web, ..] = CROSSED[1];
    let mut rig = rig(vip, web);
    let mut datagram = client_frame(vip, L4::Udp(443), &[5; 2000]);
    datagram[40..42].fill(0);
    let parts = fragments(&datagram, 7, 800);
    let got = rig.run(&parts[0]);
    assert_eq!((got.action, got.reason, &got.frame), (DROP, Reason::NatNoChecksum, &parts[0]));
    assert_eq!(rig.run(&parts[1]).reason, Reason::FragmentKept);
    // Its length says that it is all there.
    let mut lie = parts[0].clone();
    lie[38..40].copy_from_slice(&[1, 0]);
    assert_eq!(rig.run(&lie).reason, Reason::NatNoChecksum);
    assert_eq!(rig.counts("web").0.packets, 0);
    // What is whole gets one, behind options too.
    let mut whole = client_frame(vip, L4::Udp(443), b"hello");
    whole[40..42].fill(0);
    let got = rig.run(&with_options(&whole, &[], 0));
    assert_eq!(got.reason, Reason::ForwardedTx);
    assert_eq!(says(&got.frame).payload, b"hello", "with the right one");
    // Within IPv4 none is needed.
    let mut rig = self::rig(vip, SAME[0][1]);
    let got = rig.run(&parts[0]);
    assert_eq!((got.reason, &got.frame[40..42]), (Reason::ForwardedTx, &[0, 0][..]));
}

#[test]
fn what_is_refused_between_families() {
    let [vip, web, nat, _] = CROSSED[0];
    let mut rig = rig(vip, web);
    let syn = client_frame(vip, L4::Syn(80), b"hello");
    for (kinds, left) in [(&[43u8][..], 1), (&[51], 0)] {
        let got = rig.run(&with_options(&syn, kinds, left));
        assert_eq!((got.action, got.reason), (DROP, Reason::NatRefused));
    }
    // Destination options that are cut with the datagram: offsets would be others.
    let datagram = with_options(&client_frame(vip, L4::Udp(443), &[5; 2000]), &[60], 0);
    let got = rig.run(&fragments(&datagram, 7, 800)[0]);
    assert_eq!((got.action, got.reason), (DROP, Reason::NatRefused));
    assert_eq!(rig.counts("web").0.packets, 0);
    // A datagram that the client's first fragment was not of.
    let reply = from_backend(web, 443, nat, 2000, true, &[5; 2000]);
    for part in fragments(&reply, 7, 800) {
        let got = rig.run(&part);
        assert_eq!((got.action, got.reason, got.frame), (PASS, Reason::NatPassed, part));
    }
}

/// A fragment grows by 28 bytes from IPv4 to IPv6; the other way it shrinks by as much.
#[test]
fn fragments_that_are_too_large() {
    // Bytes of the datagram that fit: of IPv6 less its headers, of IPv4 less its own.
    const ROOM: [usize; 2] = [1448, 1480];
    for [vip, web, nat, client] in CROSSED {
        let mut rig = rig(vip, web);
        let port = says(&rig.run(&client_frame(vip, L4::Udp(443), b"")).frame).ports.0;
        let datagram = client_frame(vip, L4::Udp(443), &[5; 4000]);
        let reply = from_backend(web, 443, nat, port, true, &[5; 4000]);
        for (datagram, to_v6, from, to) in
            [(datagram, vip == VIP4, vip, client), (reply, vip == VIP6, nat, web)]
        {
            let room = ROOM[usize::from(!to_v6)];
            for (n, part) in fragments(&datagram, 7, room).iter().enumerate() {
                let got = rig.run(part);
                assert_eq!(got.reason, Reason::ForwardedTx, "{n}");
                assert!(got.frame.len() <= 14 + 1500);
                if n < 2 {
                    assert_eq!(got.frame.len(), 14 + if to_v6 { 1496 } else { 1500 });
                }
            }
            for (n, part) in fragments(&datagram, 7, room + 8)[..2].iter().enumerate() {
                let got = rig.run(part);
                if !to_v6 {
                    assert_eq!((got.action, got.reason), (TX, Reason::TooBigAnswered));
                    let said = nat_icmp::says(&got.frame);
                    assert_eq!((&*said.src, &*said.dst), (from, to));
                    assert_eq!(said.message, (2, 0, 1520));
                    continue;
                }
                // The first one is told what fits although it may be fragmented, which nobody does here.
                if n == 0 {
                    assert_eq!((got.action, got.reason), (TX, Reason::TooBigAnswered));
                    assert_eq!(nat_icmp::says(&got.frame).message, (3, 4, 1472));
                } else {
                    assert_eq!((got.action, got.reason), (DROP, Reason::TooBig));
                }
                // Who asks is told in any case.
                let mut part = part.clone();
                part[20] |= 0x40;
                let (h, _) = Ipv4Header::from_slice(&part[14..]).unwrap();
                part[24..26].copy_from_slice(&h.calc_header_checksum().to_be_bytes());
                let got = rig.run(&part);
                assert_eq!((got.action, got.reason), (TX, Reason::TooBigAnswered));
                assert_eq!(nat_icmp::says(&got.frame).message, (3, 4, 1472));
            }
        }
    }
}
