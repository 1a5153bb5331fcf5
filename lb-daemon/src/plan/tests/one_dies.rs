//! One of a hundred backends is removed: its own flows move, and almost no others.

use super::*;

const BACKENDS: u8 = 100;
const DEAD: u8 = 37;
/// As a fleet may choose them; the size that is chosen for so many backends is 16,381.
const SLOTS: u32 = 65_521;
/// Sources of 100 flows each.
const CLIENTS: u32 = 1000;
const FLOWS: usize = 100_000;

impl Rig {
    /// Where each of [`FLOWS`] goes.
    fn all(&self, phase: Phase) -> Vec<IpAddr> {
        let view = self.fake.view();
        let key = FrontendKey::new(vip(1).into(), 80, 6);
        let (_, frontend) = pick::frontend(&view, &key).unwrap();
        let mut reached = Vec::with_capacity(FLOWS);
        for client in 0..CLIENTS {
            for port in 40_000u16..40_100 {
                let tuple = Tuple {
                    src: IpAddr::from((0xc612_0000 + client).to_be_bytes()).into(),
                    dst: vip(1).into(),
                    ports: u32::from(port.to_be()) | u32::from(80u16.to_be()) << 16,
                    protocol: 6,
                };
                let hash = hash::flow(&tuple, SEED);
                let (_, backend) = pick::backend(&view, frontend, hash, || {
                    pick::unsettled(&view, frontend, &tuple, hash, phase)
                })
                .unwrap();
                reached.push(backend.addr().into());
            }
        }
        reached
    }
}

fn state(backends: impl Iterator<Item = u8>) -> DesiredState {
    let backends: Vec<u8> = backends.collect();
    let mut state = wanted([service("web", 1, &[80], &backends)]);
    state.maglev.table_size = Some(SLOTS);
    state
}

#[test]
fn one_of_a_hundred_is_taken_out_of_a_large_ring() {
    let mut rig = Rig::with_slots(2 * SLOTS);
    rig.plan(&state(1..=BACKENDS), 0);
    let before = rig.all(Phase::Opening);
    rig.plan(&state((1..=BACKENDS).filter(|&n| n != DEAD)), 1);
    assert_eq!(rig.all(Phase::Established), before, "who is connected stays until the drain ends");
    // Those just asked about have entries now: what a client gets that comes after the change.
    rig.fake.flows.borrow_mut().clear();
    let after = rig.all(Phase::Opening);
    assert!(!after.contains(&ip(DEAD)));
    let (own, others): (Vec<_>, Vec<_>) =
        before.iter().zip(after).partition(|(old, _)| **old == ip(DEAD));
    assert!((FLOWS / 150..FLOWS / 70).contains(&own.len()), "{} are its own", own.len());
    let moved = others.iter().filter(|(old, new)| *old != new).count();
    println!("{} of its own moved, {moved} of {} others", own.len(), others.len());
    assert!(moved * 100 <= others.len(), "{moved} of {} others moved", others.len());
}
