//! Services of a range of ports.

use std::collections::BTreeSet;

use abi::{
    reason::Reason,
    table::{Kind, Unserved},
};
use config::model::{Forwarding, Port, Protocol, Service};
use lb_daemon::datapath::{Op, Tables as _};
use lb_tests::rig::{INGRESS, Rig, service};

use crate::packets::{DROP, L4, TX, VIP4, VIP6, frame4, frame6};

fn port(protocol: Protocol, first: u16, last: u16) -> Port {
    Port {
        name: format!("{}-{first}", protocol.as_str()),
        port: first,
        last,
        protocol,
        target_port: first,
        quic: false,
    }
}

fn ranges(name: &str, backend: &str, ports: &[(Protocol, u16, u16)]) -> Service {
    let mut service = service(name, &[VIP4, VIP6], Forwarding::Ipip, &[backend]);
    service.ports = ports.iter().map(|&(p, first, last)| port(p, first, last)).collect();
    service
}

/// What the packet is for: the last byte of the only backend's address, or nothing.
fn taken(rig: &mut Rig, frame: &[u8]) -> Option<u8> {
    let got = rig.run(frame);
    match got.reason {
        Reason::ForwardedTx => {
            assert_eq!(got.action, TX);
            Some(got.frame[33])
        }
        Reason::NoService => {
            assert_eq!(got.action, DROP);
            None
        }
        other => panic!("{other:?}"),
    }
}

fn syn(port: u16) -> Vec<u8> {
    frame4("198.51.100.7", VIP4, L4::Syn(port), 64, b"hello")
}

fn udp(port: u16) -> Vec<u8> {
    frame6("2001:db8:9::7", VIP6, L4::Udp(port), 64, b"hello")
}

#[test]
fn a_range_takes_its_ports_and_no_others() {
    use Protocol::{Tcp, Udp};
    let game = || ranges("game", "10.0.1.1", &[(Tcp, 8000, 8999), (Udp, 20000, 30000)]);
    let voice = || ranges("voice", "10.0.1.2", &[(Udp, 30001, 65535), (Tcp, 9000, 9000)]);
    let rest = || ranges("rest", "10.0.1.3", &[(Tcp, 0, 0)]);
    let mut rig = Rig::with(vec![game(), voice()], INGRESS, 1500);
    for (port, owner) in [
        (7999, None),
        (8000, Some(1)),
        (8500, Some(1)),
        (8999, Some(1)),
        (9000, Some(2)),
        (9001, None),
    ] {
        assert_eq!(taken(&mut rig, &syn(port)), owner, "tcp {port}");
    }
    for (port, owner) in [
        (19999, None),
        (20000, Some(1)),
        (30000, Some(1)),
        (30001, Some(2)),
        (65535, Some(2)),
        (8500, None),
        (9000, None),
    ] {
        assert_eq!(taken(&mut rig, &udp(port)), owner, "udp {port}");
    }
    let (front, back) = rig.counts("game");
    assert_eq!((front.packets, front.new_connections), (5, 3));
    assert_eq!(front, back);

    // Its first fragment and the others; what nobody takes, answered.
    let whole = frame4("198.51.100.7", VIP4, L4::Udp(20000), 64, &[7; 40]);
    for (field, from, to) in [([0x20, 0], 34, 58), ([0, 3], 58, 82)] {
        let mut part = [&whole[..34], &whole[from..to]].concat();
        part[16..18].copy_from_slice(&44u16.to_be_bytes());
        part[20..22].copy_from_slice(&field);
        assert_eq!(taken(&mut rig, &part), Some(1));
    }
    rig.apply(&[Op::Unserved(Unserved::Reject)]);
    assert_eq!(rig.run(&syn(7999)).reason, Reason::UnservedRejected);
    rig.apply(&[Op::Unserved(Unserved::Drop)]);

    // Port 0 is behind ranges; a range that is not there any more falls to it, and wider ones take more.
    rig.fill(vec![game(), voice(), rest()], INGRESS, 1500);
    assert_eq!(taken(&mut rig, &syn(7999)), Some(3));
    assert_eq!(taken(&mut rig, &syn(8000)), Some(1));
    let wider = ranges("game", "10.0.1.1", &[(Tcp, 8000, 8998), (Udp, 19999, 30000)]);
    rig.fill(vec![wider, voice(), rest()], INGRESS, 1500);
    assert_eq!(taken(&mut rig, &syn(8999)), Some(3));
    assert_eq!(taken(&mut rig, &udp(19999)), Some(1));
    rig.fill(vec![voice(), rest()], INGRESS, 1500);
    assert_eq!(taken(&mut rig, &syn(8000)), Some(3));
    assert_eq!(taken(&mut rig, &udp(20000)), None);
    rig.put(vec![]);
    rig.planner.release();
    assert_eq!(rig.planner.used(), (0, 0, 0));
}

/// The program in the kernel, against the ranges one by one; ranges made from a seed.
#[test]
fn the_kernel_finds_what_is_there() {
    let mut rig = Rig::with(vec![ranges("x", "10.0.1.1", &[])], INGRESS, 1500);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut number = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as u16
    };
    for case in 0..40u16 {
        let bounds: BTreeSet<u16> = (0..4 + case).map(|_| number().max(2)).collect();
        let bounds: Vec<u16> = bounds.into_iter().collect();
        let all: Vec<(u16, u16)> = bounds.chunks_exact(2).map(|b| (b[0], b[1])).collect();
        let protocol = |n: u8| if n.is_multiple_of(2) { Protocol::Udp } else { Protocol::Tcp };
        let services = all.iter().zip(1..).map(|(&(first, last), n)| {
            ranges(&format!("s{n}"), &format!("10.0.1.{n}"), &[(protocol(n), first, last)])
        });
        rig.fill(services.collect(), INGRESS, 1500);
        rig.planner.release();
        let edge = all[usize::from(number()) % all.len()];
        let edges = [edge.0 - 1, edge.0, edge.1, edge.1.saturating_add(1)];
        for port in (0..4).map(|_| number()).chain(edges).collect::<Vec<u16>>() {
            for (frame, of) in [(syn(port), Protocol::Tcp), (udp(port), Protocol::Udp)] {
                let naive = all.iter().zip(1u8..).find_map(|(&(first, last), n)| {
                    (protocol(n) == of && (first..=last).contains(&port)).then_some(n)
                });
                let found = taken(&mut rig, &frame);
                assert_eq!(found, naive, "{} {port} of {all:?}", of.as_str());
            }
        }
    }
}

/// A service of one port is found by the first program, beside ranges too.
#[test]
fn a_port_of_its_own_does_not_search() {
    let game = ranges("game", "10.0.1.1", &[(Protocol::Tcp, 8000, 8999)]);
    let web = ranges("web", "10.0.1.2", &[(Protocol::Tcp, 443, 443)]);
    let mut rig = Rig::with(vec![game, web], INGRESS, 1500);
    // A list that cannot be read stops nobody who does not read it.
    for row in 0..64 {
        if rig.bpf.frontend(row).kind() == Kind::Vip {
            rig.apply(&[Op::FrontendRanges(row, 0xffff_ffff | 1 << 32 | 1 << 63)]);
        }
    }
    assert_eq!(taken(&mut rig, &syn(443)), Some(2));
    assert_eq!(taken(&mut rig, &syn(8000)), None);
}
