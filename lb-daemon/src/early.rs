//! Fragments that came before their first one wait here for it: at most [`MOST`] of them, and none longer than
//! [`PATIENCE`]. What waits in vain is dropped, unless it may be this machine's own: then its stack gets it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use abi::flow::FragmentKey;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::datapath::bpf::{Early, EarlyFrame, Programs, awaited};

/// Fragments that wait at a time; others are left in the kernel's buffer, and dropped where that is full.
const MOST: usize = 256;
/// How long one waits. The first fragment, if it has only been overtaken, is there within a few milliseconds.
const PATIENCE: Duration = Duration::from_millis(200);
/// When it is first looked whether the first one has come; then after twice that, and so on.
const SOON: Duration = Duration::from_millis(1);

/// What became of those that waited since the daemon started. Clones are of the same.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<[AtomicU64; 4]>);

/// What becomes of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its first fragment came, and it followed.
    Followed = 0,
    /// That one did not come in time.
    Expired = 1,
    /// It could not be given to the program again.
    Failed = 2,
    /// As expired, and this machine's own for all that is known: passed on to its stack.
    Passed = 3,
}

impl Outcome {
    /// All.
    pub const ALL: [Self; 4] = [Self::Followed, Self::Expired, Self::Failed, Self::Passed];

    /// Label in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Followed => "followed",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Passed => "passed",
        }
    }
}

impl Counts {
    /// How many had this outcome.
    #[must_use]
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize].load(Relaxed)
    }

    fn note(&self, outcome: Outcome) {
        self.0[outcome as usize].fetch_add(1, Relaxed);
    }
}

struct Waiting {
    frame: EarlyFrame,
    since: Instant,
    due: Instant,
}

/// Runs until `stop`. `root`: below it are the pins, and `link` says where the one of an interface's link is.
///
/// # Errors
/// The ring buffer cannot be awaited.
pub async fn run(
    early: Early,
    root: PathBuf,
    link: impl Fn(u32) -> PathBuf,
    counts: Counts,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut early = awaited(early)?;
    let mut programs = Programs::default();
    let mut waiting: Vec<Waiting> = Vec::new();
    let mut complained = false;
    loop {
        let next = waiting.iter().map(|one| one.due).min();
        let due = async {
            match next {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => {
                // What may be the host's own is not lost with us.
                for Waiting { frame, .. } in waiting.iter().filter(|one| one.frame.host) {
                    let _ = pass(early.get_mut(), &mut programs, frame, &link(frame.ifindex), &root);
                }
                return Ok(());
            }
            () = due => {}
            guard = early.readable_mut(), if waiting.len() < MOST => {
                let mut guard = guard?;
                let now = Instant::now();
                while waiting.len() < MOST {
                    let Some(frame) = guard.get_inner_mut().take() else {
                        guard.clear_ready();
                        break;
                    };
                    waiting.push(Waiting { frame, since: now, due: now + SOON });
                }
            }
        }
        let now = Instant::now();
        waiting.retain_mut(|one| {
            let again = |frame: &EarlyFrame| programs.again(frame, &link(frame.ifindex), &root);
            let is_known = |datagram: &FragmentKey| early.get_ref().is_known(datagram);
            let mut outcome = one.outcome(now, is_known, again);
            if let Ok(Some(Outcome::Expired)) = outcome
                && one.frame.host
            {
                let frame = &one.frame;
                let passed =
                    pass(early.get_mut(), &mut programs, frame, &link(frame.ifindex), &root);
                outcome = passed.map(|()| Some(Outcome::Passed));
            }
            let outcome = outcome.unwrap_or_else(|error| {
                complain(&mut complained, &error);
                Some(Outcome::Failed)
            });
            outcome.inspect(|outcome| counts.note(*outcome)).is_none()
        });
    }
}

/// Has the program pass a fragment on to this machine's stack, and those of its datagram that follow.
fn pass(
    early: &mut Early,
    programs: &mut Programs,
    frame: &EarlyFrame,
    link: &Path,
    root: &Path,
) -> io::Result<()> {
    early.note_own(&frame.datagram)?;
    programs.again(frame, link, root)
}

impl Waiting {
    /// What becomes of it now; `None`: it waits on.
    fn outcome(
        &mut self,
        now: Instant,
        is_known: impl FnOnce(&FragmentKey) -> io::Result<bool>,
        again: impl FnOnce(&EarlyFrame) -> io::Result<()>,
    ) -> io::Result<Option<Outcome>> {
        if self.due > now {
            return Ok(None);
        }
        if is_known(&self.frame.datagram)? {
            return again(&self.frame).map(|()| Some(Outcome::Followed));
        }
        let waited = now - self.since;
        if waited >= PATIENCE {
            return Ok(Some(Outcome::Expired));
        }
        self.due = (now + waited.max(SOON)).min(self.since + PATIENCE);
        Ok(None)
    }
}

/// Once: the metric counts the others.
fn complain(complained: &mut bool, error: &io::Error) {
    if !std::mem::replace(complained, true) {
        tracing::warn!(
            %error,
            "a fragment that came before its first one is dropped; others are not told of, \
             `lb_fragments_early_total` counts them"
        );
    }
}

#[cfg(test)]
mod tests {
    use abi::addr::Addr;

    use super::*;

    fn waiting(since: Instant) -> Waiting {
        let datagram = FragmentKey::new(Addr::default(), Addr::default(), 7, 17);
        let frame = EarlyFrame { ifindex: 3, bytes: vec![1, 2], datagram, host: false };
        Waiting { frame, since, due: since + SOON }
    }

    #[test]
    fn one_waits_ever_longer_and_not_for_ever() {
        let start = Instant::now();
        let mut one = waiting(start);
        let never = |_: &EarlyFrame| -> io::Result<()> { panic!("its first one is not there") };
        let mut asked = Vec::new();
        let ended = (0..400u64).find(|&ms| {
            let is_known = |_: &FragmentKey| {
                asked.push(ms);
                Ok(false)
            };
            let now = start + Duration::from_millis(ms);
            one.outcome(now, is_known, never).unwrap() == Some(Outcome::Expired)
        });
        assert_eq!(asked, [1, 2, 4, 8, 16, 32, 64, 128, 200]);
        assert_eq!(ended, Some(200));
    }

    #[test]
    fn one_follows_or_fails() {
        let start = Instant::now();
        let due = start + SOON;
        let (known, none) = (|_: &FragmentKey| Ok(true), |_: &EarlyFrame| Ok(()));
        assert_eq!(waiting(start).outcome(start, known, none).unwrap(), None, "not yet");
        let done = waiting(start).outcome(due, known, |frame| {
            assert_eq!((frame.ifindex, &frame.bytes[..]), (3, &[1, 2][..]));
            Ok(())
        });
        assert_eq!(done.unwrap(), Some(Outcome::Followed));
        let no = || io::Error::other("no");
        assert!(waiting(start).outcome(due, known, |_| Err(no())).is_err());
        assert!(waiting(start).outcome(due, |_| Err(no()), none).is_err());
    }
}
