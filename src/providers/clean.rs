//! A provider's own words about an error, without the document's. Providers like to quote what they refuse, and a reason that
//! is stored and logged must not hold a text of a document.

/// Longest message that is passed on, in characters.
const LONGEST: usize = 200;

/// Words that are the provider's even where a document has them too; without them little would be left of a message.
const OURS: &str = " a above allowed an and any are array at batch be below between but by can cannot characters content context \
    contains could count dimension dimensions does during each element elements embedding embeddings empty encoding error exceed \
    exceeds expected failed field filter following for format found from given greater had has have in input inputs integer \
    invalid is item items it its language large least length less limit list long longer maximum message minimum missing model \
    most must no not null number object of on one only or our per please policy prompt provide provided range reached \
    received reduce refused rejected request requested requests required resulted result returned s safety should size string \
    strings support supported system t than that the their there they this to token tokens too total type types unable \
    unexpected unsupported upon use used valid value values violates was we were which with you your ";

/// The message without quotations, without words that a secret holds, and no longer than a line.
///
/// What is not plain ASCII goes too: in a script without spaces a quotation cannot be told from what surrounds it.
pub(super) fn without_echo(message: &str, secrets: &[&str]) -> String {
    let secrets: Vec<String> = secrets.iter().map(|secret| secret.to_lowercase()).collect();
    let mut clean = String::new();
    let beginning: String = message.chars().take(10 * LONGEST).collect();
    for piece in without_quotations(&beginning).split_inclusive(|letter: char| !letter.is_alphanumeric()) {
        let word = piece.trim_end_matches(|letter: char| !letter.is_alphanumeric());
        clean.push_str(if is_the_providers(word, &secrets) { word } else { "…" });
        clean.extend(piece[word.len()..].chars().filter(|&letter| letter.is_ascii() || letter == '…'));
    }
    shorten(&clean)
}

fn is_the_providers(word: &str, secrets: &[String]) -> bool {
    if word.is_empty() {
        return true;
    }
    let word = word.to_lowercase();
    let ours = OURS.split_ascii_whitespace().any(|ours| ours == word);
    word.is_ascii() && (ours || !secrets.iter().any(|secret| secret.contains(&word)))
}

/// Replaces what stands between quotation marks; an apostrophe inside a word is none. A quotation that never ends takes the rest.
fn without_quotations(message: &str) -> String {
    let mut kept = String::new();
    let mut closing = None;
    let mut before = ' ';
    for letter in message.chars() {
        match closing {
            Some(mark) if mark == letter => closing = None,
            Some(_) => {}
            None => {
                closing = closing_mark(letter, before);
                kept.push(if closing.is_some() { '…' } else { letter });
            }
        }
        before = letter;
    }
    kept
}

fn closing_mark(letter: char, before: char) -> Option<char> {
    match letter {
        '"' | '`' => Some(letter),
        '\'' if !before.is_alphanumeric() => Some('\''),
        '“' | '„' => Some('”'),
        '«' => Some('»'),
        '‘' => Some('’'),
        _ => None,
    }
}

/// One line, its omissions merged, cut at [`LONGEST`].
fn shorten(message: &str) -> String {
    let mut words: Vec<&str> = message.split_whitespace().collect();
    words.dedup_by(|word, before| *word == "…" && *before == "…");
    let line = words.join(" ");
    match line.char_indices().nth(LONGEST - 1) {
        Some((cut, last)) if cut + last.len_utf8() < line.len() => format!("{}…", &line[..cut]),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(message: &str, inputs: &[&str], want: &str) {
        assert_eq!(without_echo(message, inputs), want);
    }

    #[test]
    fn a_message_about_nothing_in_particular_stays() {
        let message = "This model's maximum context length is 8192 tokens.";
        check(message, &["Ada Lovelace wrote the first program."], message);
    }

    #[test]
    fn quotations_go() {
        check(r#"Invalid input "Ada's secret" at 'input[3]': rejected"#, &["…"], "Invalid input … at …: rejected");
        check("Refused: \"Ada never closed", &[""], "Refused: …");
    }

    #[test]
    fn words_of_the_inputs_go_even_unquoted_and_cut() {
        check("Refused: Ada Lovelace, born 1815 (policy)", &["ADA LOVELACE, BORN 1815"], "Refused: … …, … (policy)");
        check("Cannot embed Ada Lovel", &["Ada Lovelace"], "Cannot embed …");
    }

    #[test]
    fn the_providers_own_words_stay_though_the_input_has_them() {
        check("the input is too long", &["the input is too long for Ada"], "the input is too long");
    }

    #[test]
    fn other_scripts_go() {
        check("无效的输入: 机密 token", &["机密文本"], "…: … token");
    }

    #[test]
    fn a_long_message_is_cut() {
        let clean = without_echo(&"x".repeat(500), &[]);
        assert_eq!(clean.chars().count(), LONGEST);
        let exact = "x".repeat(LONGEST);
        assert_eq!(without_echo(&exact, &[]), exact);
    }
}
