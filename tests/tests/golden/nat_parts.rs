//! NAT: fragments of either side, IPv4 options, IPv6 extension headers.

use abi::reason::Reason;
use etherparse::Ipv4Header;
use lb_tests::rig::{CLIENT_MAC, HOP_MAC, INGRESS, OUR_MAC, Rig};

use crate::{
    nat::{Says, behind, client_frame, from_backend, says},
    odd::fragments,
    packets::{DROP, L4, PASS, TX, VIP4, VIP6, frame4, macs},
};

/// VIP, backend, NAT address, client.
const SAME: [[&str; 4]; 2] = [
    [VIP4, "10.0.1.11", "10.0.0.1", "198.51.100.7"],
    [VIP6, "2001:db8:2::11", "2001:db8:f::1", "2001:db8:9::7"],
];

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
        (field & 0x1fff | field << 2 & 0x8000, u32::from(h.identification))
    } else {
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
    for [vip, web, nat, client] in SAME {
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
    let [vip, web, nat, _] = SAME[0];
    let mut rig = rig(vip, web);
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..100 {
        let datagram = frame4(&format!("198.51.100.{n}"), vip, L4::Udp(443), 64, &[5; 2000]);
        let (forth, id) = run_all(&mut rig, &fragments(&datagram, 7, 800), HOP_MAC);
        assert_eq!(forth.payload.len(), 2000);
        assert!(seen.insert(id), "{id} twice");
        let reply = from_backend(web, 443, nat, forth.ports.0, true, &[5; 2000]);
        let (back, _) = run_all(&mut rig, &fragments(&reply, 7, 800), CLIENT_MAC);
        assert_eq!(back.dst, format!("198.51.100.{n}"));
    }
}

#[test]
fn before_the_first_one() {
    for [vip, web, nat, _] in SAME {
        let mut rig = rig(vip, web);
        let parts = fragments(&client_frame(vip, L4::Udp(443), &[5; 2000]), 7, 800);
        let got = rig.run(&parts[1]);
        assert_eq!((got.action, got.reason), (DROP, Reason::FragmentKept));
        let port = says(&rig.run(&client_frame(vip, L4::Udp(443), b"")).frame).ports.0;
        let reply = from_backend(web, 443, nat, port, true, &[5; 2000]);
        for part in &fragments(&reply, 7, 800)[1..] {
            let got = rig.run(part);
            assert_eq!((got.action, got.reason, &got.frame), (PASS, Reason::NatPassed, part));
        }
        // The host's own.
        let other = from_backend(web, 444, nat, port, true, &[5; 2000]);
        for part in &fragments(&other, 8, 800) {
            let got = rig.run(part);
            assert_eq!((got.action, got.reason, &got.frame), (PASS, Reason::NatPassed, part));
        }
    }
}

/// Four bytes of IPv4 options, or IPv6 extension headers: of hop-by-hop options, destination options, and a routing
/// header with nothing left to go.
fn with_options(frame: &[u8], kinds: &[u8], left: u8) -> Vec<u8> {
    let mut out = frame.to_vec();
    if frame[14] >> 4 == 4 {
        out.splice(34..34, [1, 1, 1, 0]);
        let mut h = Ipv4Header::from_slice(&frame[14..]).unwrap().0;
        h.options = [1, 1, 1, 0].into();
        h.total_len += 4;
        h.header_checksum = h.calc_header_checksum();
        out[14..38].copy_from_slice(&h.to_bytes());
        return out;
    }
    let mut next = frame[20];
    for &kind in kinds.iter().rev() {
        let header = match kind {
            43 => [next, 0, 4, left, 0, 0, 0, 0],
            // Authentication: three words, of which the length has one.
            51 => [next, 0, 0, 0, 0, 0, 0, 0],
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
    for [vip, web, nat, _] in SAME {
        // The other family, and a first fragment without its checksum.
        let mut rig = self::rig(vip, if vip == VIP4 { SAME[1][1] } else { SAME[0][1] });
        let parts = fragments(&client_frame(vip, L4::Udp(443), &[5; 2000]), 7, 800);
        let got = rig.run(&parts[0]);
        assert_eq!((got.action, got.reason, &got.frame), (DROP, Reason::NatRefused, &parts[0]));
        let got = rig.run(&with_options(&client_frame(vip, L4::Syn(80), b""), &[60], 0));
        assert_eq!((got.action, got.reason), (DROP, Reason::NatRefused));

        let mut rig = self::rig(vip, web);
        let parts = fragments(&client_frame(vip, L4::Syn(80), &[5; 200]), 7, 16);
        let got = rig.run(&parts[0]);
        assert_eq!((got.action, got.reason), (DROP, Reason::Truncated));
        let mut late = client_frame(vip, L4::Udp(443), &[5; 2000]);
        late[if vip == VIP4 { 22 } else { 21 }] = 1;
        assert_eq!(rig.run(&fragments(&late, 7, 800)[0]).reason, Reason::TtlExpired);
        assert!(!nat.is_empty());
    }
}
