//! Decides from the results of probes whether a backend is healthy. No I/O, no clock.

use tokio::time::Instant;

use crate::view::Health;

/// The state of one check.
///
/// It begins as [`Health::Unknown`]. The first success makes it [`Health::Up`]; from then on `rise`
/// successes in a row are needed to come up and `fall` failures in a row to go down. One stray failure
/// after the start takes nobody out of service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    rise: u32,
    fall: u32,
    health: Health,
    since: Option<Instant>,
    successes: u32,
    failures: u32,
    reason: Option<String>,
}

impl Machine {
    /// A check without results. A `rise` or `fall` of 0 counts as 1.
    #[must_use]
    pub fn new(rise: u32, fall: u32) -> Self {
        Self {
            rise: rise.max(1),
            fall: fall.max(1),
            health: Health::Unknown,
            since: None,
            successes: 0,
            failures: 0,
            reason: None,
        }
    }

    /// Takes over what an earlier check of the same backend decided: a change of the check alone makes
    /// no backend healthy.
    #[must_use]
    pub fn resume(self, earlier: &Self) -> Self {
        let Self { health, since, reason, .. } = earlier.clone();
        Self { health, since, reason, ..self }
    }

    /// Takes the result of a probe: success, or why not. True if the health or the reason changed.
    pub fn feed(&mut self, now: Instant, result: Result<(), String>) -> bool {
        let before = (self.health, self.reason.clone());
        match result {
            Ok(()) => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                self.reason = None;
            }
            Err(reason) => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                self.reason = Some(reason);
            }
        }
        let health = match self.health {
            Health::Unknown | Health::Unchecked if self.successes > 0 => Health::Up,
            Health::Down if self.successes >= self.rise => Health::Up,
            _ if self.failures >= self.fall => Health::Down,
            unchanged => unchanged,
        };
        if health != self.health {
            self.health = health;
            self.since = Some(now);
        }
        before != (self.health, self.reason.clone())
    }

    /// What is decided.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// When that was decided; `None` while nothing is.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Why the last probe failed.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Feeds `+` as success and `-` as failure; returns the health after each as `?`, `u` or `d`.
    fn run(rise: u32, fall: u32, results: &str) -> String {
        let mut machine = Machine::new(rise, fall);
        results
            .chars()
            .map(|result| {
                let result = if result == '+' { Ok(()) } else { Err("no".to_owned()) };
                machine.feed(Instant::now(), result);
                match machine.health() {
                    Health::Unknown => '?',
                    Health::Up => 'u',
                    Health::Down => 'd',
                    Health::Unchecked => unreachable!("a machine is a check"),
                }
            })
            .collect()
    }

    #[test]
    fn table() {
        for (rise, fall, results, expected) in [
            (2, 3, "+", "u"),
            (2, 3, "-", "?"),
            (2, 3, "---", "??d"),
            (2, 3, "--+", "??u"),
            (2, 3, "+--+---", "uuuuuud"),
            (2, 3, "---+-++", "??ddddu"),
            (1, 1, "+-+-", "udud"),
            (1, 1, "-", "d"),
            (0, 0, "-+", "du"),
            (3, 1, "-++-+++", "ddddddu"),
        ] {
            assert_eq!(run(rise, fall, results), expected, "rise {rise}, fall {fall}, {results}");
        }
    }

    #[test]
    fn changes_of_the_reason_are_told() {
        let mut machine = Machine::new(2, 2);
        let now = Instant::now();
        let mut feed = |result: Result<(), &str>| machine.feed(now, result.map_err(str::to_owned));
        assert!(feed(Ok(())), "up");
        assert!(!feed(Ok(())));
        assert!(feed(Err("refused")), "still up, with a reason");
        assert!(feed(Err("refused")), "down");
        assert!(!feed(Err("refused")));
        assert!(feed(Err("timed out")), "another reason");
        assert!(feed(Ok(())), "no reason any more, not up yet");
        assert!(feed(Ok(())), "up");
    }

    #[test]
    fn a_changed_check_resumes_what_was_decided() {
        let mut old = Machine::new(1, 1);
        let now = Instant::now();
        old.feed(now, Err("refused".to_owned()));
        let mut new = Machine::new(2, 2).resume(&old);
        assert_eq!(
            (new.health(), new.reason(), new.since()),
            (Health::Down, Some("refused"), Some(now))
        );
        new.feed(now, Ok(()));
        assert_eq!(new.health(), Health::Down, "its own rise counts");
        new.feed(now, Ok(()));
        assert_eq!(new.health(), Health::Up);
    }

    proptest! {
        #[test]
        fn decides_as_the_last_results_say(rise in 1u32..5, fall in 1u32..5, results in vec(any::<bool>(), 1..60)) {
            let mut machine = Machine::new(rise, fall);
            for end in 1..=results.len() {
                let before = machine.health();
                let success = results[end - 1];
                machine.feed(Instant::now(), if success { Ok(()) } else { Err("no".to_owned()) });
                let run = results[..end].iter().rev().take_while(|&&result| result == success).count() as u32;
                match (before, machine.health()) {
                    (Health::Unknown, Health::Up) => prop_assert!(success),
                    (Health::Down, Health::Up) => prop_assert!(success && run >= rise),
                    (_, Health::Down) if before != Health::Down => prop_assert!(!success && run >= fall),
                    (before, after) => prop_assert_eq!(before, after),
                }
                // And it does decide.
                if success && run >= rise { prop_assert_eq!(machine.health(), Health::Up); }
                if !success && run >= fall { prop_assert_eq!(machine.health(), Health::Down); }
                prop_assert_eq!(machine.reason().is_none(), success);
            }
        }
    }
}
