//! What headers say about limits, and how long to wait.

use std::time::Duration;

use reqwest::header::HeaderMap;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::RateLimits;

/// What is left of the budget, where the headers say so.
pub(super) fn limits(headers: &HeaderMap) -> Option<RateLimits> {
    let limits = RateLimits {
        requests: number(headers, "x-ratelimit-limit-requests"),
        tokens: number(headers, "x-ratelimit-limit-tokens"),
        remaining_requests: number(headers, "x-ratelimit-remaining-requests"),
        remaining_tokens: number(headers, "x-ratelimit-remaining-tokens"),
        reset_requests: text(headers, "x-ratelimit-reset-requests").and_then(go_duration),
        reset_tokens: text(headers, "x-ratelimit-reset-tokens").and_then(go_duration),
    };
    (limits != RateLimits::default()).then_some(limits)
}

/// How long a 429 asks us to wait.
pub(super) fn after(headers: &HeaderMap) -> Option<Duration> {
    let milliseconds = || text(headers, "retry-after-ms")?.parse::<f64>().ok().and_then(|ms| seconds(ms / 1000.0));
    let said = || text(headers, "retry-after").and_then(|said| seconds_or_date(said, text(headers, "date")));
    milliseconds().or_else(said).or_else(|| reset(&limits(headers)?))
}

/// The reset of what has run out; where nothing has, the later of the two: asking too early is refused again.
fn reset(limits: &RateLimits) -> Option<Duration> {
    limits.exhausted().or(limits.reset_requests.max(limits.reset_tokens))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

/// A date is held against that of the answer itself: the vendor's clock, not ours, says how far away it is.
fn seconds_or_date(text: &str, now: Option<&str>) -> Option<Duration> {
    if let Ok(number) = text.parse() {
        return seconds(number);
    }
    let date = |text| OffsetDateTime::parse(text, &Rfc2822).ok();
    Some(Duration::try_from(date(text)? - date(now?)?).unwrap_or(Duration::ZERO))
}

fn seconds(number: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(number).ok()
}

/// `6m0s`, `12ms`, `1h2m3.5s`; a bare number is seconds, as Azure writes it.
fn go_duration(text: &str) -> Option<Duration> {
    if let Ok(number) = text.parse() {
        return seconds(number);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|letter: char| letter != '.' && !letter.is_ascii_digit())?);
        let (unit, after) = after.split_at(after.find(|letter: char| letter.is_ascii_digit()).unwrap_or(after.len()));
        total = total.checked_add(seconds(number.parse::<f64>().ok()? * seconds_of(unit)?)?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

fn seconds_of(unit: &str) -> Option<f64> {
    match unit {
        "h" => Some(3600.0),
        "m" => Some(60.0),
        "s" => Some(1.0),
        "ms" => Some(1e-3),
        "us" | "µs" | "μs" => Some(1e-6),
        "ns" => Some(1e-9),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[track_caller]
    fn check(pairs: &[(&'static str, &'static str)], want_ms: Option<u64>) {
        let after = after(&headers(pairs));
        assert_eq!(after, want_ms.map(Duration::from_millis), "{pairs:?}");
    }

    #[test]
    fn the_most_exact_header_wins() {
        check(&[("retry-after-ms", "1500"), ("retry-after", "7"), ("x-ratelimit-reset-requests", "1s")], Some(1_500));
        check(&[("retry-after", "7"), ("x-ratelimit-reset-requests", "1s")], Some(7_000));
        check(&[("retry-after", "0.25")], Some(250));
        check(&[("x-ratelimit-reset-requests", "1s")], Some(1_000));
        check(&[], None);
    }

    #[test]
    fn a_date_is_counted_from_that_of_the_answer() {
        let now = ("date", "Sun, 06 Nov 1994 08:49:00 GMT");
        check(&[now, ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], Some(37_000));
        check(&[now, ("retry-after", "Sun, 06 Nov 1994 08:48:00 GMT")], Some(0));
        check(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], None);
    }

    #[test]
    fn what_has_run_out_decides() {
        let both = [("x-ratelimit-reset-requests", "12ms"), ("x-ratelimit-reset-tokens", "6m0s")];
        check(&both, Some(360_000));
        check(
            &[both[0], both[1], ("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-remaining-tokens", "9")],
            Some(12),
        );
        check(&[both[0], both[1], ("x-ratelimit-remaining-tokens", "0")], Some(360_000));
    }

    #[test]
    fn nonsense_is_no_answer() {
        for value in ["soon", "-3", "NaN", "1e400", "", "s", "5 parsecs", "1.2.3s"] {
            check(&[("retry-after-ms", value), ("retry-after", value), ("x-ratelimit-reset-tokens", value)], None);
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, want) in
            [("6m0s", 360.0), ("1h2m3.5s", 3723.5), ("12ms", 0.012), ("500µs", 0.0005), ("2", 2.0), ("0s", 0.0)]
        {
            assert_eq!(go_duration(text), Some(Duration::from_secs_f64(want)), "{text}");
        }
    }

    #[test]
    fn limits_are_read_where_they_are_told() {
        assert_eq!(limits(&headers(&[("x-request-id", "r")])), None);
        let told = [
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-reset-tokens", "1s"),
        ];
        let want = RateLimits {
            requests: Some(60),
            remaining_requests: Some(59),
            reset_tokens: Some(Duration::from_secs(1)),
            ..RateLimits::default()
        };
        assert_eq!(limits(&headers(&told)), Some(want));
    }
}
