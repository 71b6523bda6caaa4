//! Small words of the configuration: durations, sizes, amounts, moments, and what somebody may have meant.

use std::collections::BTreeSet;
use std::time::Duration;

use rust_decimal::Decimal;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const DURATIONS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

const SIZES: [(&str, u64); 7] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// `"500ms"`, `"60s"`, `"5m"`, `"2h"`, `"30d"`.
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with the text.
pub fn duration(text: &str) -> Result<Duration, String> {
    measure(text, &DURATIONS, "60s").map(Duration::from_millis)
}

/// `"10 MB"` or `"512 MiB"`, in bytes.
pub fn size(text: &str) -> Result<u64, String> {
    measure(text, &SIZES, "512 MiB")
}

/// A whole number and its unit; the error completes `"… "`.
fn measure(text: &str, units: &[(&str, u64)], example: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit = text[digits.len()..].trim();
    let number: u64 = digits.parse().map_err(|_| format!("is not a whole number with a unit, like \"{example}\""))?;
    if unit.is_empty() {
        return Err(format!("has no unit; write for example \"{example}\""));
    }
    let Some((_, factor)) = units.iter().find(|(word, _)| *word == unit) else {
        return Err(format!("has an unknown unit; {}", suggestion(unit, units.iter().map(|(word, _)| *word))));
    };
    number.checked_mul(*factor).ok_or_else(|| "is too large".to_owned())
}

/// An exact amount of money, read from its digits and never through a float.
pub(super) fn amount(text: &str) -> Result<Decimal, String> {
    let parsed = if text.contains(['e', 'E']) { Decimal::from_scientific(text) } else { Decimal::from_str_exact(text) };
    let amount = parsed.map_err(|_| "is not an amount like \"0.00000002\"".to_owned())?;
    if amount.is_sign_negative() && !amount.is_zero() { Err("is below zero".to_owned()) } else { Ok(amount) }
}

/// A date, or a date and time; UTC where nothing else is said.
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with the text.
pub fn moment(text: &str) -> Result<OffsetDateTime, String> {
    let date_alone = text.len() == "2026-01-01".len();
    let offset = text.ends_with(['Z', 'z'])
        || text.len() > 6 && text[text.floor_char_boundary(text.len() - 6)..].starts_with(['+', '-']);
    let full = match (date_alone, offset) {
        (true, _) => format!("{text}T00:00:00Z"),
        (false, true) => text.to_owned(),
        (false, false) => format!("{text}Z"),
    };
    OffsetDateTime::parse(&full, &Rfc3339)
        .map_err(|_| "is not a date like 2026-01-01 or 2026-01-01T12:00:00Z".to_owned())
}

/// What somebody who wrote `word` may have meant: the nearest of the known ones, or all of them.
pub fn suggestion<'w>(word: &str, known: impl Iterator<Item = &'w str>) -> String {
    let known: BTreeSet<&str> = known.collect();
    let distance = |known: &str| strsim::damerau_levenshtein(&known.to_lowercase(), &word.to_lowercase());
    let near = 1.max(word.chars().count() / 3);
    let nearest = known.iter().map(|known| distance(known)).min().filter(|&nearest| nearest <= near);
    match nearest {
        Some(nearest) => {
            let best = known.iter().filter(|known| distance(known) == nearest);
            format!("did you mean {}?", best.map(|known| format!("`{known}`")).collect::<Vec<_>>().join(" or "))
        }
        None => format!("known are {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let check = |text, expected: Result<u64, &str>| {
            let millis = duration(text).map(|duration| u64::try_from(duration.as_millis()).unwrap());
            assert_eq!(millis, expected.map_err(str::to_owned), "{text}");
        };
        check("500ms", Ok(500));
        check("60s", Ok(60_000));
        check("5 m", Ok(300_000));
        check("2h", Ok(7_200_000));
        check("30d", Ok(2_592_000_000));
        check("0s", Ok(0));
        check("30", Err("has no unit; write for example \"60s\""));
        check("5min", Err("has an unknown unit; known are d, h, m, ms, s"));
        check("1.5h", Err("is not a whole number with a unit, like \"60s\""));
        check("-5s", Err("is not a whole number with a unit, like \"60s\""));
        check("", Err("is not a whole number with a unit, like \"60s\""));
        check("300000000000000d", Err("is too large"));
    }

    #[test]
    fn sizes_are_binary_or_decimal() {
        let check = |text, expected: Result<u64, &str>| {
            assert_eq!(size(text), expected.map_err(str::to_owned), "{text}");
        };
        check("10 MB", Ok(10_000_000));
        check("512MiB", Ok(536_870_912));
        check("1 GiB", Ok(1_073_741_824));
        check("7 B", Ok(7));
        check("3 kB", Ok(3_000));
        check("3 KiB", Ok(3_072));
        check("2 GB", Ok(2_000_000_000));
        check("10 mb", Err("has an unknown unit; did you mean `MB`?"));
        check("10 parsecs", Err("has an unknown unit; known are B, GB, GiB, KiB, MB, MiB, kB"));
    }

    #[test]
    fn amounts_are_exact() {
        let check = |text, expected: Result<&str, &str>| {
            let amount = amount(text).map(|amount| amount.normalize().to_string());
            assert_eq!(amount.as_deref().map_err(String::as_str), expected, "{text}");
        };
        check("0.00000002", Ok("0.00000002"));
        check("2e-8", Ok("0.00000002"));
        check("0.1", Ok("0.1"));
        check("0", Ok("0"));
        check("-1", Err("is below zero"));
        check("0.00000000000000000000000000000001", Err("is not an amount like \"0.00000002\""));
        check("two", Err("is not an amount like \"0.00000002\""));
    }

    #[test]
    fn moments_are_utc_unless_they_say() {
        let check = |text, expected: &str| assert_eq!(moment(text).unwrap().to_string(), expected, "{text}");
        check("2026-01-01", "2026-01-01 0:00:00.0 +00:00:00");
        check("2026-01-01T10:00:00", "2026-01-01 10:00:00.0 +00:00:00");
        check("2026-01-01T10:00:00Z", "2026-01-01 10:00:00.0 +00:00:00");
        check("2026-01-01T10:00:00+02:00", "2026-01-01 10:00:00.0 +02:00:00");
        for wrong in ["", "soon", "2026-13-01", "2026-01-01T", "äääääää"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_was_meant_is_found() {
        let check = |word, expected| {
            assert_eq!(suggestion(word, ["slots", "lease", "sweep", "sweep_rows"].into_iter()), expected, "{word}");
        };
        check("slot", "did you mean `slots`?");
        check("laese", "did you mean `lease`?");
        check("sweeprows", "did you mean `sweep_rows`?");
        check("threads", "known are lease, slots, sweep, sweep_rows");
    }
}
