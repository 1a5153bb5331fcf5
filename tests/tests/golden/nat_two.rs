//! Two CPUs that open a connection behind NAT at once: each has one entry, and no port is given twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::spin_loop,
    sync::{
        Mutex,
        atomic::{AtomicIsize, AtomicUsize, Ordering},
    },
    thread,
};

use abi::reason::Reason;
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use config::model::NatPorts;
use lb_daemon::{conntrack::Visit, datapath::Capacity, view::Counters as _};
use lb_tests::rig::{EVERYTHING, INGRESS, Rig, cpus, nat_capacity, pin_to};

use crate::{
    nat::{behind, says},
    packets::{DROP, L4, TX, VIP4, frame4},
};

const WEB4: &str = "10.0.1.11";

/// What came of a packet.
struct Sent {
    action: u32,
    frame: Vec<u8>,
}

fn send(program: &Xdp, frame: &[u8]) -> Sent {
    let mut out = vec![0; frame.len() + 256];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).unwrap();
    out.truncate(result.data_size_out as usize);
    Sent { action: result.return_value, frame: out }
}

/// Lets the other thread go on when this one ends, if need be by a panic.
struct Ends<'w>(&'w AtomicUsize);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(usize::MAX, Ordering::Release);
    }
}

/// Sends two packets at once in each round, from two CPUs; `after` sees what came of them, and says how much later the first
/// one is sent in the next round (negative: the other).
fn at_once(
    program: &Xdp,
    rounds: usize,
    frames: impl Fn(usize) -> [Vec<u8>; 2] + Sync,
    mut after: impl FnMut(usize, [Sent; 2]) -> isize + Send,
) {
    let [first, second, ..] = cpus()[..] else { panic!("this test needs two CPUs") };
    let (go, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (other, later) = (Mutex::new(None), AtomicIsize::new(0));
    let wait = |turns: isize| (0..turns).for_each(|_| spin_loop());
    let until = |word: &AtomicUsize, round| {
        let mut looks = 0u32;
        while word.load(Ordering::Acquire) < round {
            looks += 1;
            // Somebody else may need the CPU.
            if looks.is_multiple_of(4096) { thread::yield_now() } else { spin_loop() }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ends = Ends(&done);
            pin_to(second);
            for round in 0..rounds {
                let [_, frame] = frames(round);
                done.store(2 * round + 1, Ordering::Release);
                until(&go, round + 1);
                wait(-later.load(Ordering::Relaxed));
                *other.lock().unwrap() = Some(send(program, &frame));
                done.store(2 * round + 2, Ordering::Release);
            }
        });
        scope.spawn(|| {
            let _ends = Ends(&go);
            pin_to(first);
            for round in 0..rounds {
                let [frame, _] = frames(round);
                until(&done, 2 * round + 1);
                go.store(round + 1, Ordering::Release);
                wait(later.load(Ordering::Relaxed));
                let own = send(program, &frame);
                until(&done, 2 * round + 2);
                let sent = [own, other.lock().unwrap().take().unwrap()];
                later.store(after(round, sent), Ordering::Relaxed);
            }
        });
    });
}

/// A SYN of the `n`th client.
fn syn(n: usize) -> Vec<u8> {
    frame4(&format!("198.51.{}.{}", n >> 8 & 255, n & 255), VIP4, L4::Syn(80), 64, b"")
}

fn rig(ports: NatPorts, nat: u32) -> Rig {
    let capacity = Capacity { nat, nat_ports: ports.to_word(), ..nat_capacity() };
    let mut rig = Rig::sized(capacity, EVERYTHING);
    rig.fill(vec![behind(VIP4, WEB4)], INGRESS, 1500);
    rig
}

/// How often each reason was counted since.
fn moved(rig: &Rig, before: &BTreeMap<Reason, u64>) -> BTreeMap<Reason, u64> {
    let moved = rig.reasons().into_iter().map(|(reason, n)| (reason, n - before[&reason]));
    moved.filter(|&(_, n)| n != 0).collect()
}

#[test]
fn one_connection() {
    const ROUNDS: usize = 4_000;
    // Rounds after which entries are looked at: one that nobody answers lives ten seconds, and emulated machines are slow.
    const AT_ONCE: usize = 50;
    let mut rig = rig(NatPorts::default(), 1 << 12);
    let (counters, before) = (rig.bpf.counters().unwrap(), rig.reasons());
    let (mut given, mut refused) = (BTreeMap::new(), 0);
    at_once(
        rig.program(),
        ROUNDS,
        |round| [syn(round), syn(round)],
        |round, [one, other]| {
            // One may come while the other's CPU has left off in the midst of the entry.
            let [one, other] = if one.action == TX { [one, other] } else { [other, one] };
            assert_eq!(one.action, TX, "{round}");
            if other.action == TX {
                assert_eq!(one.frame, other.frame, "one port, in round {round}");
            } else {
                refused += 1;
            }
            given.insert(says(&syn(round)).src, says(&one.frame).ports.0);
            // A little later in each round, until it is as late as the other can be.
            let later = ((round + 1) % 64 * 2) as isize;
            if !(round + 1).is_multiple_of(AT_ONCE) {
                return later;
            }
            let mut entries = Vec::new();
            counters.connections(&mut |connection| {
                entries.push((connection.client.ip().to_string(), connection.nat.unwrap().port()));
                Visit::Remove
            });
            assert_eq!(entries.len(), AT_ONCE, "one entry for each connection");
            let ports: BTreeSet<u16> = entries.iter().map(|&(_, port)| port).collect();
            assert_eq!(ports.len(), AT_ONCE);
            assert_eq!(entries.into_iter().collect::<BTreeMap<_, _>>(), std::mem::take(&mut given));
            later
        },
    );
    println!("{refused} of {ROUNDS} were refused");
    assert!(refused < ROUNDS as u64 / 2, "{refused}");
    let packets = 2 * ROUNDS as u64 - refused;
    let want = [(Reason::ForwardedTx, packets), (Reason::NatNoEntry, refused)];
    let want = BTreeMap::from_iter(want.into_iter().filter(|&(_, n)| n > 0));
    assert_eq!(moved(&rig, &before), want);
    let (front, back) = rig.counts("web");
    assert_eq!((front.packets, back.packets, front.new_connections), (packets, packets, packets));
}

#[test]
fn the_last_port() {
    const ROUNDS: usize = 4_000;
    let mut rig = rig(NatPorts { first: 2000, last: 2000 }, 64);
    let (counters, before) = (rig.bpf.counters().unwrap(), rig.reasons());
    // Turns of a loop: how much later the first one is, and how much of that the last round made.
    const MOST: isize = 1 << 12;
    let (mut won, mut later, mut step) = ([0; 2], 0, 0isize);
    at_once(
        rig.program(),
        ROUNDS,
        |round| [syn(2 * round), syn(2 * round + 1)],
        |round, sent| {
            let forwarded = sent.each_ref().map(|sent| sent.action == TX);
            assert!(forwarded[0] != forwarded[1], "{forwarded:?} in round {round}");
            let winner = usize::from(forwarded[1]);
            won[winner] += 1;
            assert_eq!(sent[1 - winner].action, DROP);
            assert_eq!(says(&sent[winner].frame).ports.0, 2000);
            let mut clients = Vec::new();
            counters.connections(&mut |connection| {
                clients.push(connection.client.ip().to_string());
                Visit::Remove
            });
            assert_eq!(clients, [says(&syn(2 * round + winner)).src], "in round {round}");
            // Whoever wins is later in the next round, and more so whenever it has won before: so both do, by and by,
            // however late the other is.
            let own: isize = if winner == 0 { 4 } else { -4 };
            step = if step.signum() == own.signum() { (2 * step).clamp(-MOST, MOST) } else { own };
            later += step;
            later
        },
    );
    println!("won by either CPU: {won:?}");
    assert!(won[0] > 0 && won[1] > 0, "not once at the same time: {won:?}");
    let rounds = ROUNDS as u64;
    // For all that the other knows, an entry that is being written may become its own.
    let mut moved = moved(&rig, &before);
    let unsure = moved.remove(&Reason::NatNoEntry).unwrap_or(0);
    assert!(unsure < rounds, "{unsure}");
    println!("{unsure} of {ROUNDS} were not sure");
    let want = [(Reason::ForwardedTx, rounds), (Reason::NatExhausted, rounds - unsure)];
    assert_eq!(moved, BTreeMap::from(want));
    let (front, back) = rig.counts("web");
    assert_eq!((front.packets, back.packets), (rounds, rounds));
}
