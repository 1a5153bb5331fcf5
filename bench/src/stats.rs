//! Medians and percentiles.

use serde::Serialize;

/// What a series of measurements comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Half of them are below.
    pub median: f64,
    /// A tenth of them are below.
    pub p10: f64,
    /// Nine tenths of them are below.
    pub p90: f64,
}

impl Summary {
    /// Of a series; all zero for an empty one.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = sorted.len().saturating_sub(1);
            sorted.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
        };
        Self { median: at(0.5), p10: at(0.1), p90: at(0.9) }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.median.abs() < 100.0 { 2 } else { 0 };
        let Self { median, p10, p90 } = self;
        write!(f, "{median:.digits$} ({p10:.digits$}-{p90:.digits$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_of_the_series() {
        let values: Vec<f64> = (0..=10).rev().map(f64::from).collect();
        assert_eq!(Summary::of(&values), Summary { median: 5.0, p10: 1.0, p90: 9.0 });
        assert_eq!(Summary::of(&[3.0]).p90, 3.0);
        assert_eq!(Summary::of(&[]), Summary::default());
    }
}
