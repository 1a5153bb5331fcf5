//! The task that reads samples and grants more.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use abi::event::Stream;
use config::model::Samples as Rates;
use nix::time::{ClockId, clock_gettime};
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{Samples, decode};
use crate::{datapath::bpf::Events, view::View};

/// How often: a listener hears of a packet that much later at most.
const TICK: Duration = Duration::from_millis(100);
/// Samples that are taken in before other tasks have a turn.
const BATCH: usize = 256;

/// Reads until `cancel`. Programs then use up what is granted, and sample no more.
pub async fn run(
    mut events: Events,
    samples: Samples,
    view: watch::Receiver<Arc<View>>,
    cancel: CancellationToken,
) {
    let _end = samples.ended().drop_guard();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = BTreeMap::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        grant(&events, samples.rates(), &mut seen);
        let view = Arc::clone(&view.borrow());
        let (boot, now) = clocks();
        let mut in_batch = 0;
        while let Some(event) = events.take() {
            let time = boot + Duration::from_nanos(event.head.time);
            if let Some(sample) = decode::sample(&event, time, &view) {
                samples.add(sample, now);
            }
            in_batch += 1;
            if in_batch == BATCH {
                in_batch = 0;
                tokio::task::yield_now().await;
            }
        }
        samples.expire(now);
        samples.set_lost(lost(&events));
    }
}

/// As many samples as are allowed until the next tick, and gaps as wide as the last one would have needed.
fn grant(events: &Events, rates: Rates, seen: &mut BTreeMap<(u32, u32), u64>) {
    for (stream, rate) in [(Stream::Dropped, rates.dropped), (Stream::Passed, rates.passed)] {
        if rate == 0 {
            continue;
        }
        let ticks = (Duration::from_secs(1).as_millis() / TICK.as_millis()) as u64;
        let each = (rate / ticks / u64::from(events.cpus())).max(1);
        for cpu in 0..events.cpus() {
            let now = events.sampler(cpu, stream).seen();
            let before = seen.insert((cpu, stream as u32), now).unwrap_or(now);
            let stride = now.saturating_sub(before).div_ceil(each).max(1);
            events.grant(cpu, stream, each, stride);
        }
    }
}

fn lost(events: &Events) -> u64 {
    let of = |cpu, stream| events.sampler(cpu, stream).lost();
    (0..events.cpus()).map(|cpu| of(cpu, Stream::Dropped) + of(cpu, Stream::Passed)).sum()
}

/// When the monotonic clock was 0, by the clock on the wall; and what it shows now.
fn clocks() -> (SystemTime, Duration) {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (UNIX_EPOCH + wall.saturating_sub(now), now)
}
