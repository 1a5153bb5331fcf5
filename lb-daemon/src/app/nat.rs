//! Says when NAT has no port for a connection: the counter alone is seen by nobody who does not look. And frees the numbers
//! of paths ([`abi::nat::quick`]) that no connection uses any longer.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use abi::reason::Reason;
use tokio_util::sync::CancellationToken;

use super::kernel::LiveCounters;
use crate::{conntrack::REMEDY, view::Counters as _};

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(5);

/// How often it looks for such paths, if many have a number.
const SWEEP: Duration = Duration::from_secs(60);

/// Runs until `stop`.
pub(super) async fn watch(counters: Arc<LiveCounters>, stop: CancellationToken) {
    let began = Instant::now();
    let mut swept = began;
    let mut tick = tokio::time::interval(INTERVAL);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        look(&counters, began.elapsed());
        if swept.elapsed() >= SWEEP {
            swept = Instant::now();
            sweep(Arc::clone(&counters)).await;
        }
    }
}

async fn sweep(counters: Arc<LiveCounters>) {
    // All rows are read, and running programs waited for.
    match tokio::task::spawn_blocking(move || counters.free_nat_paths()).await {
        Ok(0) => {}
        Ok(freed) => tracing::debug!(freed, "NAT: paths without connections"),
        Err(error) => tracing::warn!(%error, "NAT: the search for unused paths failed"),
    }
}

fn look(counters: &LiveCounters, now: Duration) {
    let reasons = counters.reasons();
    let refused = reasons.iter().find(|(reason, _)| *reason == Reason::NatExhausted);
    let refused = refused.map_or(0, |(_, count)| count.packets);
    let mut growth = counters.nat_refused.lock().unwrap_or_else(PoisonError::into_inner);
    // Once in a minute is enough while it lasts.
    let known = growth.lately() > 0;
    let more = growth.note(now, refused);
    if more > 0 && !known {
        tracing::warn!(packets = more, "NAT: connections get no port; {REMEDY}");
    }
}
