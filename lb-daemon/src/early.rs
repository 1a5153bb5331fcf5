//! Fragments that came before their first one wait here for it: at most [`MOST`] of them, and none longer than
//! [`PATIENCE`]. What waits in vain is dropped.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::datapath::bpf::{Early, EarlyFrame};

/// Fragments that wait at a time; others are left in the kernel's buffer, and dropped where that is full.
const MOST: usize = 256;
/// How long one waits. The first fragment, if it has only been overtaken, is there within a few milliseconds.
const PATIENCE: Duration = Duration::from_millis(200);
/// When it is first looked whether the first one has come; then after twice that, and so on.
const SOON: Duration = Duration::from_millis(1);

/// What became of those that waited since the daemon started. Clones are of the same.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<[AtomicU64; 3]>);

/// What becomes of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its first fragment came, and it followed.
    Followed = 0,
    /// That one did not come in time.
    Expired = 1,
    /// It could not be given to the program again.
    Failed = 2,
}

impl Outcome {
    /// All.
    pub const ALL: [Self; 3] = [Self::Followed, Self::Expired, Self::Failed];

    /// Label in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Followed => "followed",
            Self::Expired => "expired",
            Self::Failed => "failed",
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
    // SAFETY: the ring buffer holds its descriptor open, the same one, for as long as it is there.
    let early = unsafe { AsyncFd::register_with_interest(early, Interest::READABLE) };
    let mut early = early.map_err(std::io::Error::from)?;
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
            () = stop.cancelled() => return Ok(()),
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
            if one.due > now {
                return true;
            }
            let outcome = match early.get_ref().is_known(&one.frame.datagram) {
                Ok(false) if now - one.since < PATIENCE => {
                    one.due = now + (now - one.since).max(SOON);
                    return true;
                }
                Ok(false) => Outcome::Expired,
                Ok(true) => {
                    let link = link(one.frame.ifindex);
                    match Early::again(&one.frame, &link, &root) {
                        Ok(()) => Outcome::Followed,
                        Err(error) => {
                            complain(&mut complained, &error);
                            Outcome::Failed
                        }
                    }
                }
                Err(error) => {
                    complain(&mut complained, &error);
                    Outcome::Failed
                }
            };
            counts.note(outcome);
            false
        });
    }
}

/// Once: the metric counts the others.
fn complain(complained: &mut bool, error: &std::io::Error) {
    if !std::mem::replace(complained, true) {
        tracing::warn!(
            %error,
            "a fragment that came before its first one is dropped; others are not told of, \
             `lb_fragments_early_total` counts them"
        );
    }
}
