//! The task that reads samples and grants more.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use abi::event::{RESERVE, Stream};
use config::model::Samples as Rates;
use nix::time::{ClockId, clock_gettime};
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{Sample, Samples, decode};
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
    let mut weights = [Weights::default(), Weights::default()];
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        grant(&events, samples.rates(), &mut seen, &mut weights);
        let view = Arc::clone(&view.borrow());
        let (boot, now) = clocks();
        // No more than what was granted to all CPUs, and their reserves.
        let mut taken = Vec::new();
        while let Some(event) = events.take() {
            let time = boot + Duration::from_nanos(event.head.time);
            taken.extend(decode::sample(&event, time, &view));
        }
        for (stream, weights) in [Stream::Dropped, Stream::Passed].into_iter().zip(&mut weights) {
            weights.share_out(taken.iter_mut().filter(|sample| sample.stream() == stream));
        }
        let mut in_batch = 0;
        for sample in taken {
            samples.add(sample, now);
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
fn grant(
    events: &Events,
    rates: Rates,
    seen: &mut BTreeMap<(u32, u32), u64>,
    weights: &mut [Weights; 2],
) {
    let streams = [(Stream::Dropped, rates.dropped), (Stream::Passed, rates.passed)];
    for ((stream, rate), weights) in streams.into_iter().zip(weights) {
        if rate == 0 {
            *weights = Weights::default();
            for cpu in 0..events.cpus() {
                seen.remove(&(cpu, stream as u32));
                // Hardly any packet looks for a sample that it is not granted.
                events.grant(cpu, stream, 0, u64::MAX);
            }
            continue;
        }
        let ticks = (Duration::from_secs(1).as_millis() / TICK.as_millis()) as u64;
        let each = (rate / ticks / u64::from(events.cpus())).max(1);
        let mut all = 0u64;
        for cpu in 0..events.cpus() {
            let now = events.sampler(cpu, stream).packets();
            all = all.wrapping_add(now);
            let (stride, more) = match seen.insert((cpu, stream as u32), now) {
                Some(before) => (now.saturating_sub(before).div_ceil(each).max(1), each),
                None => (1, each + RESERVE),
            };
            events.grant(cpu, stream, more, stride);
        }
        weights.note(all);
    }
}

/// Has the samples of a stream stand for as many packets as there were: what a sampler says of each is what it stands
/// for on average, and nobody stands for those that came when all was used up.
#[derive(Debug, Default)]
struct Weights {
    /// Packets ever, at the last tick.
    packets: Option<u64>,
    /// Packets since the first tick that no sample stands for yet. Below 0: the samples came before they were counted.
    owed: Option<i64>,
}

impl Weights {
    /// So many packets there were, ever.
    fn note(&mut self, packets: u64) {
        if let Some(before) = self.packets.replace(packets) {
            let more = packets.wrapping_sub(before) as i64;
            self.owed = Some(self.owed.unwrap_or_default().saturating_add(more));
        }
    }

    /// In proportion to what the sampler says; each stands for itself at least.
    fn share_out<'s>(&mut self, samples: impl Iterator<Item = &'s mut Sample>) {
        let mut samples: Vec<&mut Sample> = samples.collect();
        let Some(owed) = self.owed.as_mut().filter(|_| !samples.is_empty()) else { return };
        let all: u128 = samples.iter().map(|sample| u128::from(sample.weight)).sum();
        let due = u128::from((*owed).max(0).unsigned_abs());
        let (mut before, mut given) = (0, 0);
        for sample in &mut samples {
            before += u128::from(sample.weight);
            let until = due * before / all.max(1);
            let weight = until.saturating_sub(given).clamp(1, u128::from(u32::MAX));
            given += weight;
            sample.weight = weight as u32;
        }
        *owed = owed.saturating_sub(i64::try_from(given).unwrap_or(i64::MAX));
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shared_out(weights: &mut Weights, own: &[u32]) -> Vec<u32> {
        let of = |&weight: &u32| Sample { weight, ..Sample::passed_from("192.0.2.1") };
        let mut samples: Vec<Sample> = own.iter().map(of).collect();
        weights.share_out(samples.iter_mut());
        samples.iter().map(|sample| sample.weight).collect()
    }

    #[test]
    fn samples_stand_for_all_packets_that_there_were() {
        let mut weights = Weights::default();
        assert_eq!(shared_out(&mut weights, &[5]), [5], "nothing is known yet");
        weights.note(1000);
        assert_eq!(shared_out(&mut weights, &[5]), [5], "how many are of before is not known");
        // All of them, twice as many as the sampler could know of, fewer.
        weights.note(1003);
        assert_eq!(shared_out(&mut weights, &[1, 1, 1]), [1, 1, 1]);
        weights.note(1043);
        assert_eq!(shared_out(&mut weights, &[1, 1, 8, 10]), [2, 2, 16, 20]);
        weights.note(1053);
        assert_eq!(shared_out(&mut weights, &[15, 5]), [7, 3]);
        // None was sampled; and one before it was counted.
        weights.note(1060);
        assert!(shared_out(&mut weights, &[]).is_empty());
        weights.note(1063);
        assert_eq!(shared_out(&mut weights, &[1]), [10]);
        assert_eq!(shared_out(&mut weights, &[1]), [1]);
        weights.note(1064);
        assert!(shared_out(&mut weights, &[]).is_empty());
        weights.note(1066);
        assert_eq!(shared_out(&mut weights, &[1]), [2]);
    }

    proptest! {
        #[test]
        fn none_is_counted_twice(ticks in prop::collection::vec((0u64..5000, prop::collection::vec(1u32..100, 0..9)), 1..20)) {
            let mut weights = Weights::default();
            let (mut packets, mut given) = (0, 0);
            weights.note(0);
            for (more, own) in ticks {
                // A sample has its packet.
                packets += more + own.len() as u64;
                weights.note(packets);
                given += shared_out(&mut weights, &own).iter().map(|w| u64::from(*w)).sum::<u64>();
                // Those that would be none are one each, until the next samples.
                prop_assert!(given <= packets + 9 && (own.is_empty() || given >= packets));
            }
        }
    }
}
