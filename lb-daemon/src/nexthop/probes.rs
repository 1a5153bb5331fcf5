//! When which neighbour is probed. No I/O, no clock.
//!
//! A neighbour without a MAC is probed at once and then ever more rarely; one whose MAC has not been
//! confirmed for long is confirmed now and then, since the packets that the data path sends past the
//! kernel confirm nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash as _, Hasher as _},
    time::Duration,
};

use tokio::time::Instant;

use super::state::Key;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
const CONFIRM_EVERY: Duration = Duration::from_secs(30);
/// Neighbours that grow stale together are confirmed spread over this time.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);

/// What a neighbour needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The kernel knows it.
    Nothing,
    /// A confirmation that its MAC is still right.
    Confirm,
    /// Its MAC.
    Resolve,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    plans: BTreeMap<Key, Plan>,
    queue: BTreeSet<(Instant, Key)>,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    due: Instant,
    need: Need,
    retry: Duration,
}

impl Probes {
    /// Says what a neighbour needs from now on.
    pub(crate) fn want(&mut self, key: Key, need: Need, now: Instant) {
        if self.plans.get(&key).is_some_and(|plan| plan.need == need) {
            return;
        }
        self.forget(key);
        let due = match need {
            Need::Nothing => return,
            Need::Confirm => now + spread(key, CONFIRM_WITHIN),
            Need::Resolve => now,
        };
        self.plan(key, Plan { due, need, retry: FIRST_RETRY });
    }

    /// Nobody needs this neighbour any more.
    pub(crate) fn forget(&mut self, key: Key) {
        if let Some(plan) = self.plans.remove(&key) {
            self.queue.remove(&(plan.due, key));
        }
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|&(due, _)| due)
    }

    /// Takes those due, at most `limit`, and plans their next time.
    pub(crate) fn take(&mut self, now: Instant, limit: usize) -> Vec<Key> {
        let due: Vec<_> =
            self.queue.iter().take_while(|&&(due, _)| due <= now).take(limit).copied().collect();
        for &(_, key) in &due {
            let Some(&plan) = self.plans.get(&key) else { continue };
            self.forget(key);
            let wait = if plan.need == Need::Confirm { CONFIRM_EVERY } else { plan.retry };
            let retry = (plan.retry * 2).min(LAST_RETRY);
            self.plan(key, Plan { due: now + wait, retry, ..plan });
        }
        due.into_iter().map(|(_, key)| key).collect()
    }

    fn plan(&mut self, key: Key, plan: Plan) {
        self.plans.insert(key, plan);
        self.queue.insert((plan.due, key));
    }
}

/// A time within `limit` that is always the same for one neighbour.
fn spread(key: Key, limit: Duration) -> Duration {
    let mut hasher = siphasher::sip::SipHasher13::new();
    key.hash(&mut hasher);
    let share = (hasher.finish() >> 32) as u32;
    limit.mul_f64(f64::from(share) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = (1, std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)));

    /// Takes the next `count` probes, each when it is due, and returns the waits between them.
    fn waits(probes: &mut Probes, mut now: Instant, count: usize) -> Vec<Duration> {
        (0..count)
            .map(|_| {
                let next = probes.next().unwrap();
                let wait = next.saturating_duration_since(now);
                now = next;
                assert_eq!(probes.take(now, 10), [KEY]);
                assert!(probes.take(now, 10).is_empty(), "not twice");
                wait
            })
            .collect()
    }

    #[test]
    fn resolving_backs_off() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        probes.want(KEY, Need::Resolve, now);
        let waits: Vec<_> = waits(&mut probes, now, 9).iter().map(Duration::as_millis).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn asking_again_does_not_hurry() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        probes.want(KEY, Need::Resolve, now);
        probes.take(now, 1);
        probes.want(KEY, Need::Resolve, now);
        assert_eq!(probes.next(), Some(now + FIRST_RETRY));
    }

    #[test]
    fn stale_ones_are_confirmed_every_half_minute() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        probes.want(KEY, Need::Confirm, now);
        let waits = waits(&mut probes, now, 3);
        assert!(waits[0] <= CONFIRM_WITHIN);
        assert_eq!(waits[1..], [CONFIRM_EVERY; 2]);
    }

    #[test]
    fn nothing_is_planned_for_the_known_and_the_forgotten() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        probes.want(KEY, Need::Resolve, now);
        probes.want(KEY, Need::Nothing, now);
        assert_eq!(probes.next(), None);
        probes.want(KEY, Need::Resolve, now);
        probes.forget(KEY);
        assert_eq!(probes.next(), None);
    }

    #[test]
    fn a_burst_is_taken_in_pieces() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        for index in 0..10 {
            probes.want((index, KEY.1), Need::Resolve, now);
        }
        assert_eq!(probes.take(now, 4).len(), 4);
        assert_eq!(probes.take(now, 100).len(), 6);
    }
}
