//! What the service manager is told (sd_notify(3)): ready, reloading, stopping, and that we are alive.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// In force and attached.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A change is being put in force.
pub(super) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// On the way out.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Beats while the owner task does: twice within the watchdog's time.
pub(super) struct Heart(Option<Interval>);

/// A heart that beats as often as the service manager wants, if it does.
pub(super) fn heartbeat() -> Heart {
    let every =
        sd_notify::watchdog_enabled().map(|limit| (limit / 2).max(Duration::from_millis(1)));
    Heart(every.map(|every| {
        let mut interval = interval(every);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    }))
}

impl Heart {
    /// Waits for the time of the next beat, and beats.
    pub(super) async fn beat(&mut self) {
        match &mut self.0 {
            Some(interval) => {
                interval.tick().await;
                tell(&[NotifyState::Watchdog]);
            }
            None => std::future::pending().await,
        }
    }
}
