//! Tables for people, and the words for times and amounts.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use rust_decimal::Decimal;
use time::OffsetDateTime;

use crate::db::backlog::Left;
use crate::db::outbox;

use super::failure::Failure;

/// Prints to standard output; a reader that has gone away (`| head`) is no failure.
pub(super) fn out(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// A table; `numbers` names the columns that are aligned to the right.
pub(super) fn table(header: &[&str], numbers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header.to_vec()).add_rows(rows);
    if io::stdout().is_terminal() {
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns.unwrap_or(120));
    }
    for (nth, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(nth).filter(|_| numbers.contains(name)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// A value, or nothing.
pub(super) fn maybe(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// Money, exact; where a price was not known, that is said and never 0.
pub(super) fn usd(cost: Option<Decimal>) -> String {
    cost.map_or_else(|| "unknown".to_owned(), |cost| format!("{} USD", cost.normalize()))
}

/// `2026-01-01 12:00:00`, UTC.
pub(super) fn moment(at: OffsetDateTime) -> String {
    let (date, clock) = (at.date(), at.time());
    format!("{date} {:02}:{:02}:{:02}", clock.hour(), clock.minute(), clock.second())
}

/// How long, in words of one unit.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        few if few < 120.0 => format!("{few:.0} s"),
        some if some < 7_200.0 => format!("{:.0} min", some / 60.0),
        many if many < 172_800.0 => format!("{:.0} h", many / 3_600.0),
        long => format!("{:.0} d", long / 86_400.0),
    }
}

/// "1 token", "2.5 seconds"
pub(super) fn count_of(amount: Decimal, noun: &str) -> String {
    if amount == Decimal::ONE { format!("1 {noun}") } else { format!("{} {noun}s", amount.normalize()) }
}

/// "1 job", "2 jobs"
pub(super) fn count(number: impl Into<i128>, noun: &str) -> String {
    let number = number.into();
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Jobs that wait for one reason, as a line.
pub(super) fn left(left: &Left) -> String {
    let pipeline = &left.pipeline;
    let jobs = count(left.jobs, "job");
    let verb = if left.jobs == 1 { "waits" } else { "wait" };
    let why = match (left.why.as_str(), left.due) {
        ("unaccepted", _) => format!("for a word: `gristmill accept {pipeline}` says what it would cost"),
        ("paused", _) => format!("because it is paused: `gristmill resume {pipeline}`"),
        ("pending", _) => "for a worker".to_owned(),
        (why, due) => {
            let until = due.map(|due| format!(", until {}", moment(due))).unwrap_or_default();
            let reason = left.reason.as_ref().map(|reason| format!(": {}", line(reason, 200))).unwrap_or_default();
            format!("({why}{until}){reason}")
        }
    };
    format!("{pipeline}: {jobs} {verb} {why}")
}

/// Webhooks that wait for another try, as a line.
pub(super) fn webhooks_left(left: &outbox::Left) -> String {
    let outbox::Left { pipeline, webhooks, due, reason, .. } = left;
    let verb = if *webhooks == 1 { "waits" } else { "wait" };
    let reason = reason.as_ref().map(|reason| format!(": {}", line(reason, 200))).unwrap_or_default();
    format!("{pipeline}: {} {verb} (until {}){reason}", count(*webhooks, "webhook"), moment(*due))
}

/// A text of one line, cut to a length in characters.
pub(super) fn line(text: &str, longest: usize) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.chars().count() <= longest {
        return flat;
    }
    let cut: String = flat.chars().take(longest.saturating_sub(1)).collect();
    format!("{}…", cut.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_have_one_unit() {
        assert_eq!([5.0, 300.0, 10_000.0, 400_000.0].map(seconds), ["5 s", "5 min", "3 h", "5 d"]);
    }

    #[test]
    fn a_long_text_becomes_one_short_line() {
        assert_eq!(line("a\n b  c", 9), "a b c");
        assert_eq!(line("häuser am see", 8), "häuser…");
    }

    #[test]
    fn an_unknown_cost_is_never_zero() {
        assert_eq!(usd(None), "unknown");
        assert_eq!(usd(Some("0.000020".parse().unwrap())), "0.00002 USD");
    }
}
