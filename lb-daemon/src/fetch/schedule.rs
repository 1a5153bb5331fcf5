//! When a list is fetched next. Pure: given what is known of it and a random number.

use std::time::Duration;

/// Nobody's server is asked again sooner than this, whatever happens and whoever asks.
pub(crate) const LEAST: Duration = Duration::from_secs(10);
/// The pause after a first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(30);

/// What came of the attempts so far. Times are seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Past {
    /// The last attempt.
    pub(crate) attempt: Option<u64>,
    /// Failures since the last success.
    pub(crate) failures: u32,
    /// How long the server asked to be left alone, the last time.
    pub(crate) retry_after: Option<u64>,
}

/// When to try next, in seconds since 1970. `chance` spreads lists and machines: 0 to 1.
///
/// After a success: `refresh`, and up to a tenth more. After failures: 30 s, doubling up to `refresh`, and up to
/// half more; not before the server asked for.
pub(crate) fn next(past: Past, refresh: Duration, now: u64, chance: f64) -> u64 {
    let Past { attempt, failures, retry_after } = past;
    // The clock was set back: when that was is not known.
    let Some(attempt) = attempt.filter(|attempt| *attempt <= now) else { return now };
    let pause = match failures {
        0 => refresh.mul_f64(1.0 + chance / 10.0),
        n => {
            let doubled = FIRST_PAUSE.saturating_mul(1 << (n - 1).min(20));
            doubled.min(refresh).mul_f64(1.0 + chance / 2.0)
        }
    };
    attempt + pause.as_secs().max(retry_after.unwrap_or(0)).max(LEAST.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses() {
        let hour = Duration::from_secs(3600);
        let past = |failures, retry_after| Past { attempt: Some(1000), failures, retry_after };
        assert_eq!(next(Past::default(), hour, 77, 0.5), 77);
        assert_eq!(next(past(0, None), hour, 1000, 0.0), 4600);
        assert_eq!(next(past(0, None), hour, 1000, 1.0), 4960);
        assert_eq!(next(past(1, None), hour, 1000, 0.0), 1030);
        assert_eq!(next(past(1, None), hour, 1000, 1.0), 1045);
        assert_eq!(next(past(3, None), hour, 1000, 0.0), 1120);
        assert_eq!(next(past(60, None), hour, 1000, 0.0), 4600);
        assert_eq!(next(past(1, Some(600)), hour, 1000, 0.0), 1600);
        assert_eq!(next(past(0, None), hour, 999, 0.0), 999, "the clock was set back");
        assert_eq!(next(past(0, None), Duration::from_secs(1), 1000, 0.0), 1010);
    }
}
