//! Says when NAT has no port for a connection: the counter alone is seen by nobody who does not look.

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

/// Runs until `stop`.
pub(super) async fn watch(counters: Arc<LiveCounters>, stop: CancellationToken) {
    let began = Instant::now();
    let mut tick = tokio::time::interval(INTERVAL);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        look(&counters, began.elapsed());
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
