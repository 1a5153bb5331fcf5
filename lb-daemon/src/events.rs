//! Samples of packets: read from the kernel, given a name to each number, kept for a minute and handed to
//! whoever listens.
//!
//! [`Samples`] is what others see: [`Samples::subscribe`] for a stream, [`Samples::top`] and
//! [`Samples::would_match`] for the last minute. [`run()`] is the task that fills it. Memory is bounded
//! everywhere; what does not fit is counted as lost.

mod decode;
mod run;
mod window;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use config::{PrefixSet, model::Scope};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

pub use decode::{Flow, Sample};
pub use run::run;
use window::Window;
pub use window::{Share, Top, WINDOW, WouldMatch};

/// Samples that a listener may be behind; older ones it loses.
const BEHIND: usize = 1024;
/// Listeners at a time.
pub const LISTENERS: usize = 32;

/// Samples of the last minute, and a stream of those to come. Clones are of the same.
#[derive(Clone)]
pub struct Samples(Arc<Inner>);

struct Inner {
    window: Mutex<Window>,
    stream: broadcast::Sender<Arc<Sample>>,
    taken: AtomicU64,
    lost: AtomicU64,
    unheard: AtomicU64,
    rates: Mutex<config::model::Samples>,
    ended: CancellationToken,
}

/// How many samples there were since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Read from the kernel.
    pub taken: u64,
    /// That found no room in the ring buffer, since its tables were made.
    pub lost: u64,
    /// That a listener was too slow for.
    pub unheard: u64,
}

impl Default for Samples {
    fn default() -> Self {
        Self(Arc::new(Inner {
            window: Mutex::default(),
            stream: broadcast::Sender::new(BEHIND),
            taken: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            unheard: AtomicU64::new(0),
            rates: Mutex::default(),
            ended: CancellationToken::new(),
        }))
    }
}

impl fmt::Debug for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Samples").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Samples {
    /// What is sampled from now on. `None`: too many listen already.
    #[must_use]
    pub fn subscribe(&self) -> Option<broadcast::Receiver<Arc<Sample>>> {
        (self.0.stream.receiver_count() < LISTENERS).then(|| self.0.stream.subscribe())
    }

    /// Cancelled when no more samples will come.
    #[must_use]
    pub fn ended(&self) -> CancellationToken {
        self.0.ended.clone()
    }

    /// What a list of `prefixes` and this scope would have dropped of the traffic of the last minute that nothing
    /// dropped; addresses in `allowed` left out.
    #[must_use]
    pub fn would_match(
        &self,
        prefixes: &PrefixSet,
        scope: &Scope,
        allowed: &PrefixSet,
    ) -> WouldMatch {
        self.window().would_match(prefixes, scope, allowed)
    }

    /// Who was dropped most in the last minute, at most `most` of each kind.
    #[must_use]
    pub fn top(&self, most: usize) -> Top {
        self.window().top(most)
    }

    /// Totals.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let Inner { taken, lost, unheard, .. } = &*self.0;
        Counts {
            taken: taken.load(Relaxed),
            lost: lost.load(Relaxed),
            unheard: unheard.load(Relaxed),
        }
    }

    /// How many are taken in a second.
    #[must_use]
    pub fn rates(&self) -> config::model::Samples {
        *self.0.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has as many taken in a second from now on.
    pub fn set_rates(&self, rates: config::model::Samples) {
        *self.0.rates.lock().unwrap_or_else(PoisonError::into_inner) = rates;
    }

    /// Notes that a listener was too slow for so many.
    pub fn not_heard(&self, samples: u64) {
        self.0.unheard.fetch_add(samples, Relaxed);
    }

    /// Takes a sample in; `now` is time since boot.
    pub(crate) fn add(&self, sample: Sample, now: Duration) {
        self.0.taken.fetch_add(1, Relaxed);
        self.window().add(&sample, now);
        // Nobody may be listening.
        let _ = self.0.stream.send(Arc::new(sample));
    }

    fn set_lost(&self, lost: u64) {
        self.0.lost.store(lost, Relaxed);
    }

    fn expire(&self, now: Duration) {
        self.window().expire(now);
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        // Nothing that holds it leaves it half done.
        self.0.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
