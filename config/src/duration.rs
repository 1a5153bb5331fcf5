//! Durations as users write them: `500ms`, `1s`, `5m`, `1h30m`.

use std::time::Duration;

const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1000),
];
const MICROSECOND: &str = "us";
/// Longer than anything that makes sense, short enough that no sum of two overflows anything.
const MAX: Duration = Duration::from_secs(366 * 86_400);

/// What a duration looks like, for messages.
pub(crate) const ALLOWED: &str =
    "allowed: whole numbers with a unit (us, ms, s, m, h, d), such as 500ms, 1s, 5m or 1h30m";

/// Parses a duration such as `500ms`, `5m` or `1h30m`.
///
/// # Errors
/// Says what is wrong and what is allowed.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse(text).map_err(|what| format!("{what}; {ALLOWED}"))
}

pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let shown = || crate::fault::show(text);
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut micros: u64 = 0;
    let mut rest = text;
    if rest.is_empty() {
        return Err("an empty text is not a duration".to_owned());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        if number.is_empty() {
            return Err(format!("{} is not a duration", shown()));
        }
        if unit.is_empty() {
            return Err(if tail.is_empty() {
                format!("the duration {} has no unit", shown())
            } else {
                format!("{} is not a duration", shown())
            });
        }
        let Some(scale) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, scale)| *scale)
            .or((unit == MICROSECOND).then_some(1))
        else {
            return Err(format!("{} is not a unit of time", crate::fault::show(unit)));
        };
        micros = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(scale))
            .and_then(|more| micros.checked_add(more))
            .filter(|micros| Duration::from_micros(*micros) <= MAX)
            .ok_or_else(|| format!("the duration {} is longer than 366d", shown()))?;
        rest = tail;
    }
    Ok(Duration::from_micros(micros))
}

/// Writes a duration as [`parse_duration`] reads it; anything below a microsecond is cut off.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    if micros == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, scale) in UNITS.into_iter().chain([(MICROSECOND, 1)]) {
        let number = micros / scale;
        micros %= scale;
        if number > 0 {
            text.push_str(&format!("{number}{unit}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for (text, micros) in [
            ("500ms", 500_000),
            ("1s", 1_000_000),
            ("5m", 300_000_000),
            ("3h", 10_800_000_000),
            ("1h30m", 5_400_000_000),
            ("2d1us", 172_800_000_001),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(micros)));
            assert_eq!(format_duration(Duration::from_micros(micros)), text);
        }
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert_eq!(parse_duration(&format_duration(Duration::ZERO)), Ok(Duration::ZERO));
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, wanted) in [
            ("", "empty"),
            ("5", "no unit"),
            ("s", "not a duration"),
            ("1.5s", "not a duration"),
            ("-1s", "not a duration"),
            ("5min", "`min` is not a unit"),
            ("999999d", "longer than 366d"),
            ("99999999999999999999s", "longer than 366d"),
        ] {
            let error = parse_duration(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
            assert!(error.contains("500ms"), "{text}: {error}");
        }
    }
}
