/// What ends at a place in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Sentence,
    Clause,
}

/// What people write with a full stop in the middle of a sentence. Single letters and short numbers need no entry.
const ABBREVIATIONS: [&str; 52] = [
    "Abb", "Abs", "Art", "Aufl", "Bd", "Co", "Corp", "Dipl", "Dr", "Eq", "Fig", "Frl", "Gen", "Hr", "Hrsg", "Inc",
    "Jh", "Jr", "Lt", "Ltd", "Mme", "Mr", "Mrs", "Ms", "Mt", "No", "Nr", "Prof", "Rev", "Sec", "Sr", "St", "Str",
    "Tab", "Vol", "al", "approx", "bzw", "ca", "cf", "ebd", "eq", "etc", "evtl", "fig", "ggf", "inkl", "no", "sog",
    "vgl", "vol", "vs",
];

/// In bytes, of those with a full stop within, which no list has.
const LONGEST_ABBREVIATION: usize = 8;

/// What ends between `before` and `next`; `last` is the last character of `before`, `spaced` whether white space is between.
/// A sentence ends at its mark and the quotes and brackets that close after it; the marks of Chinese and Japanese need no
/// space. Looks back no further than the last word.
pub(super) fn stop(before: &str, last: char, next: char, spaced: bool) -> Option<Stop> {
    // Within a run of marks nothing ends yet. It also keeps runs from being looked at more than once.
    if !spaced && (is_closer(next) || is_mark(next)) {
        return None;
    }
    if is_clause_mark(last) {
        return (spaced || !last.is_ascii()).then_some(Stop::Clause);
    }
    if !is_closer(last) && !is_mark(last) {
        return None;
    }
    let core = before.trim_end_matches(is_closer);
    let mark = core.chars().next_back()?;
    let ends = match mark {
        '。' | '！' | '？' | '｡' | '．' => true,
        '.' => spaced && !next.is_lowercase() && !is_abbreviation(&core[..core.len() - 1]),
        '…' => spaced && !next.is_lowercase(),
        _ => spaced && is_mark(mark),
    };
    ends.then_some(Stop::Sentence)
}

pub(super) fn is_mark(character: char) -> bool {
    matches!(
        character,
        '.' | '!'
            | '?'
            | '…'
            | '。'
            | '！'
            | '？'
            | '｡'
            | '．'
            | '؟'
            | '۔'
            | '।'
            | '॥'
            | '։'
            | '።'
            | '‼'
            | '⁇'
            | '⁈'
            | '⁉'
    )
}

fn is_clause_mark(character: char) -> bool {
    matches!(character, ',' | ';' | ':' | '–' | '—' | '，' | '、' | '；' | '：' | '،' | '؛')
}

pub(super) fn is_closer(character: char) -> bool {
    matches!(
        character,
        '"' | '\''
            | ')'
            | ']'
            | '}'
            | '”'
            | '’'
            | '»'
            | '›'
            | '“'
            | '」'
            | '』'
            | '）'
            | '】'
            | '》'
            | '〉'
            | '〕'
            | '］'
    )
}

/// Whether the full stop after `before` belongs to its last word.
fn is_abbreviation(before: &str) -> bool {
    let word = before.rsplit(|c: char| !c.is_alphanumeric() && c != '.').next().unwrap_or_default();
    // As most are.
    if word.len() > LONGEST_ABBREVIATION {
        return false;
    }
    let is_letter = word.chars().nth(1).is_none() && word.chars().all(char::is_alphabetic) && !word.is_empty();
    let is_ordinal = word.len() <= 2 && !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let is_dotted = word.starts_with(char::is_alphabetic) && word.contains('.');
    is_letter || is_ordinal || is_dotted || ABBREVIATIONS.binary_search(&word).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sentences and clauses of a text, one cut each: `|` after a sentence, `/` after a clause.
    fn check(text: &str, expected: &str) {
        let mut marked = String::new();
        let mut end = 0;
        for (at, next) in text.char_indices().filter(|(_, character)| !character.is_whitespace()) {
            if at > 0 {
                let last = text[..end].chars().next_back().unwrap();
                match stop(&text[..end], last, next, end < at) {
                    Some(Stop::Sentence) => marked.push('|'),
                    Some(Stop::Clause) => marked.push('/'),
                    None => {}
                }
            }
            marked.push_str(&text[end.max(at.min(end))..at]);
            marked.push(next);
            end = at + next.len_utf8();
        }
        assert_eq!(marked, expected);
    }

    #[test]
    fn a_full_stop_before_a_capital_ends_a_sentence() {
        check("It rains. We stay in, and wait.", "It rains.| We stay in,/ and wait.");
        check("\u{201c}Go!\u{201d} she said. (Really?) Yes.", "\u{201c}Go!\u{201d}| she said.| (Really?)| Yes.");
    }

    #[test]
    fn abbreviations_initials_and_ordinals_do_not() {
        check("Dr. A. Weber met Mr. Cole, e.g. On Friday.", "Dr. A. Weber met Mr. Cole,/ e.g. On Friday.");
        check("Am 3. Mai kam Nr. 7. Danach nichts.", "Am 3. Mai kam Nr. 7. Danach nichts.");
        check("Version 1.5 of cf. Smith costs 3.50. Take it.", "Version 1.5 of cf. Smith costs 3.50.| Take it.");
        check("That was in 2019. Then it ended.", "That was in 2019.| Then it ended.");
    }

    #[test]
    fn full_stops_of_chinese_and_japanese_need_no_space() {
        check("你好。我是。", "你好。|我是。");
        check("「行く。」と言った、彼は！本当？はい", "「行く。」|と言った、/彼は！|本当？|はい");
    }

    #[test]
    fn abbreviations_are_sorted() {
        assert!(ABBREVIATIONS.is_sorted());
    }
}
