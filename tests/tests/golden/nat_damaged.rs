//! Packets behind NAT that are damaged by chance, from a fixed seed: each is counted once, what passes is as it came,
//! and what is sent on has checksums as good as those that it came with.

use std::collections::BTreeMap;

use abi::reason::{Reason, Verdict};
use config::model::{Forwarding, Service};
use lb_tests::rig::{INGRESS, Rig, service};

use crate::{
    nat::{client_frame, from_backend, says},
    nat_icmp,
    odd::fragments,
    packets::{L4, VIP4, VIP6},
};

const CLIENT: [&str; 2] = ["198.51.100.7", "2001:db8:9::7"];
const NAT: [&str; 2] = ["10.0.0.1", "2001:db8:f::1"];
const WEB: [&str; 2] = ["10.0.1.11", "2001:db8:2::11"];

/// Backends of one family for all clients.
fn behind(web: &str) -> Service {
    service("web", &[VIP4, VIP6], Forwarding::Nat, &[web])
}

/// What the Internet checksum of everything above the IP header comes to, with the pseudo header that it has; 0 stands
/// for a right one. `None` where that cannot be told.
fn error_of(frame: &[u8]) -> Option<u16> {
    let mut at = 14;
    while frame
        .get(at - 2..at)
        .is_some_and(|kind| [[0x81, 0], [0x88, 0xa8]].contains(&[kind[0], kind[1]]))
    {
        at += 4;
    }
    let l3 = frame.get(at..)?;
    let (v4, plain) = match l3.first()? >> 4 {
        4 => (true, usize::from(l3[0] & 15) * 4),
        6 => (false, 40),
        _ => return None,
    };
    let field = |at: usize| Some(u16::from_be_bytes([*l3.get(at)?, *l3.get(at + 1)?]));
    let total = if v4 { usize::from(field(2)?) } else { usize::from(field(4)?) + 40 };
    if v4 && field(6)? & 0x3fff != 0 {
        // Of a part nobody can tell.
        return None;
    }
    if !v4 && matches!(l3[6], 0 | 43 | 44 | 60) {
        return None;
    }
    let above = l3.get(plain..total)?;
    let (protocol, addresses) = if v4 { (l3[9], l3.get(12..20)?) } else { (l3[6], l3.get(8..40)?) };
    let udp_without = protocol == 17 && above.get(6..8)? == [0, 0];
    if udp_without {
        return None;
    }
    let mut all = Vec::new();
    if protocol != 1 {
        all.extend(addresses);
        all.extend((above.len() as u32).to_be_bytes());
        all.extend([0, 0, 0, protocol]);
    }
    all.extend(above);
    Some(abi::checksum::full(&all))
}

#[test]
fn damaged_packets() {
    const EACH: u64 = 15_000;
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut next = move |below: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    };
    let mut reasons: BTreeMap<Reason, u64> = BTreeMap::new();
    for web in [0, 1] {
        let mut rig = Rig::with(vec![behind(WEB[web])], INGRESS, 1500);
        let mut frames = Vec::new();
        for (client, vip) in [(0, VIP4), (1, VIP6)] {
            for (l4, port, udp) in [(L4::Syn(80), 80, false), (L4::Udp(443), 443, true)] {
                let first = client_frame(vip, l4, b"hello");
                let nat = says(&rig.run(&first).frame).ports.0;
                frames.push(first);
                frames.push(client_frame(vip, l4, &[7; 1300]));
                frames.push(from_backend(WEB[web], port, NAT[web], nat, udp, b"hello"));
                if udp {
                    let large = client_frame(vip, l4, &[7; 1300]);
                    frames.extend(fragments(&large, client as u16, 600));
                    let large = from_backend(WEB[web], port, NAT[web], nat, udp, &[7; 1300]);
                    frames.extend(fragments(&large, 9, 600));
                }
                let seen = nat_icmp::sent(vip, CLIENT[client], (port, 40000), udp);
                let (kind, code) = [(3, 4), (2, 0)][client];
                frames.push(nat_icmp::error(CLIENT[client], &seen, kind, code, 1400, 60));
                let seen = nat_icmp::sent(NAT[web], WEB[web], (nat, port), udp);
                let (kind, code) = [(3, 3), (1, 4)][web];
                frames.push(nat_icmp::error(WEB[web], &seen, kind, code, 0, 8));
            }
        }
        for _ in 0..EACH {
            let mut frame = frames[next(frames.len())].clone();
            for _ in 0..next(3) {
                let at = 12 + next(frame.len().min(110) - 12);
                frame[at] = if next(2) == 0 { frame[at] ^ 1 << next(8) } else { next(256) as u8 };
            }
            if next(8) == 0 {
                frame.truncate(14 + next(frame.len() - 13));
            }
            let tags = crate::vlan::TAGS[next(4)];
            if next(3) == 0 && frame.len() > 12 {
                frame = crate::vlan::tagged(&frame, tags);
            }
            // The kernel runs no shorter ones.
            if frame.len() < 14 {
                continue;
            }
            let got = rig.run(&frame);
            *reasons.entry(got.reason).or_default() += 1;
            if got.reason.verdict() == Verdict::Pass {
                assert_eq!(got.frame, frame, "{:?} and changed", got.reason);
            } else if matches!(got.reason, Reason::ForwardedTx) && error_of(&frame) == Some(0) {
                assert!(matches!(error_of(&got.frame), None | Some(0)), "{frame:x?}\n{got:x?}");
            }
        }
    }
    for reason in [Reason::ForwardedTx, Reason::NatNoEntry, Reason::NatPassed, Reason::NatRefused] {
        assert!(reasons.get(&reason).is_some_and(|&n| n > 10), "{reasons:?}");
    }
}
