//! A provider's own words about an error, without the document's. Providers like to quote what they refuse, whole, cut, escaped
//! or spelt otherwise, and a reason that is stored and logged must not hold a text of a document. So only words known to be the
//! trade's are kept, and what looks like the beginning of a text ends the message.

/// Longest message that is passed on, in characters.
const LONGEST: usize = 200;
/// So many words in a row that stand in a text as well are a quotation, however common they are.
const QUOTED: usize = 4;
/// A shorter piece of a word stands in some text by chance; it is left out, but quotes nothing.
const SHORTEST: usize = 3;
/// Longer numbers are somebody's, not a limit.
const LONGEST_NUMBER: usize = 7;

/// What providers say of requests, inputs, recordings, models, keys and limits, and the small words between.
const KNOWN: &str = "\
    a about above access account active after again all allow allowed already also an and another any api are \
    argument array at attempt audio authentication authorized available bad balance base64 batch be because been \
    before below between billing blocked body busy but by can cannot capacity change character characters chars check \
    client code completion config configured contact contain contains content context corrupt corrupted could count \
    credential credentials credits current currently decode decoded deployment deprecated detail details did \
    dimension dimensions disabled do document does due duration during each element elements embed embedding \
    embeddings empty enabled encoding engine ensure entity error errors exceed exceeded exceeds exist existing exists \
    expected expects expired extra failed failure field fields file files filter filtered find first float following \
    for forbidden format found free from gateway get given greater had has have header hour however if in incorrect \
    increase index input inputs installed instead integer internal invalid ioprocessor is issue it item items its \
    json key large larger least length less limit limited limits list load loaded loading long longer management many \
    match max maximum may message messages method million min minimum minute minutes missing model models more most \
    must name need new no non none not null number object of off on one only open or org organization our out output \
    over overloaded parameter parameters parse payment per permission permitted physical plan platform playable please plugin \
    policy pooler pooling positive processed processing project prompt prompts property provide provided pulling \
    quota range rate reach reached received recording reduce reference refused reject rejected remove request \
    requested requests require required requires resource response result resulted retry return returned s safety \
    schema second seconds see sent server service set shorter should size slow small sound specified specify \
    specifying split start status string strings such support supported switching system t task temporarily term text \
    texts than that the their them then there these they this time timed times to token tokenization tokens too total \
    tpm transcription triggering try trying type types unable unauthorized unavailable unexpected unknown \
    unprocessable unsupported up upgrade upload uploaded uploading upstream url usage use used user using valid validate validation value \
    values vector version violates violation was we were when which while with within words wrong you your zero";

/// The known words of the message up to where it begins to quote, no longer than a line.
pub(super) fn without_echo(message: &str, secrets: &[&str]) -> String {
    let inputs = Inputs::of(secrets);
    let beginning: String = message.chars().take(3 * LONGEST).collect();
    let unquoted = without_quotations(&beginning);
    let pieces: Vec<&str> = unquoted.split_inclusive(|letter: char| !letter.is_alphanumeric()).collect();
    let words: Vec<String> = pieces.iter().map(|piece| word_of(piece).to_lowercase()).collect();
    let mut clean = String::new();
    for (nth, (piece, word)) in pieces.iter().zip(&words).enumerate() {
        if inputs.are_quoted(&words[nth..]) {
            clean.push('…');
            break;
        }
        clean.push_str(if word.is_empty() || inputs.may_say(word) { word_of(piece) } else { "…" });
        clean.extend(piece[word_of(piece).len()..].chars().filter(|&letter| letter.is_ascii() || letter == '…'));
    }
    shorten(&clean)
}

/// Whether a provider's identifier, like `invalid_request_error` or `input[3]`, says nothing of a text.
pub(super) fn is_harmless(identifier: &str, secrets: &[&str]) -> bool {
    let inputs = Inputs::of(secrets);
    let mut words = identifier.split(|letter: char| !letter.is_ascii_alphanumeric()).map(str::to_lowercase);
    words.all(|word| word.is_empty() || is_known(&word) || !inputs.hold(&word))
}

/// The texts and the key that were sent, made comparable.
struct Inputs {
    /// In lower case.
    whole: Vec<String>,
    /// Their words with one blank before, between and behind them.
    words: Vec<String>,
}

impl Inputs {
    fn of(secrets: &[&str]) -> Self {
        let whole: Vec<String> = secrets.iter().map(|secret| secret.to_lowercase()).collect();
        let words = whole.iter().map(|secret| {
            let words = secret.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
            format!(" {} ", words.collect::<Vec<_>>().join(" "))
        });
        Self { words: words.collect(), whole }
    }

    fn hold(&self, part: &str) -> bool {
        self.whole.iter().any(|secret| secret.contains(part))
    }

    /// The trade's words, and numbers that are in no text.
    fn may_say(&self, word: &str) -> bool {
        let number = word.len() <= LONGEST_NUMBER && word.bytes().all(|byte| byte.is_ascii_digit());
        is_known(word) || (number && !self.hold(word))
    }

    /// Whether what follows begins with a word that is a text's and not the trade's, or with several that stand so in a text.
    fn are_quoted(&self, following: &[String]) -> bool {
        let Some(first) = following.first().filter(|word| !word.is_empty()) else { return false };
        let number = first.bytes().all(|byte| byte.is_ascii_digit());
        if first.len() >= SHORTEST && !number && !is_known(first) && self.hold(first) {
            return true;
        }
        let run: Vec<&str> =
            following.iter().map(String::as_str).filter(|word| !word.is_empty()).take(QUOTED).collect();
        let run = (run.len() == QUOTED).then(|| format!(" {} ", run.join(" ")));
        run.is_some_and(|run| self.words.iter().any(|text| text.contains(&run)))
    }
}

fn is_known(word: &str) -> bool {
    KNOWN.split_ascii_whitespace().any(|known| known == word)
}

fn word_of(piece: &str) -> &str {
    piece.trim_end_matches(|letter: char| !letter.is_alphanumeric())
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
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(message: &str, inputs: &[&str], want: &str) {
        assert_eq!(without_echo(message, inputs), want);
    }

    #[test]
    fn a_message_about_nothing_in_particular_stays() {
        for message in [
            "This model's maximum context length is 8192 tokens, however you requested 10000 tokens.",
            "You exceeded your current quota, please check your plan and billing details.",
            "batch size 40 > maximum allowed batch size 32",
            "Input should be a valid list; Field required",
            "File upload is corrupted. Please ensure it is playable audio.",
        ] {
            check(message, &["Ada Lovelace wrote the first program."], message);
        }
    }

    #[test]
    fn quotations_go() {
        check(r#"Invalid input "Ada's secret" at 'input[3]': rejected"#, &["…"], "Invalid input … at …: rejected");
        check("Refused: \"Ada never closed", &[""], "Refused: …");
    }

    #[test]
    fn the_message_ends_where_a_text_begins() {
        check("Refused: Ada Lovelace, born 1815 (policy)", &["ADA LOVELACE, BORN 1815"], "Refused: …");
        check("Cannot embed Ada Lovel", &["Ada Lovelace"], "Cannot embed …");
        check("The input was: in the case of Ada", &["Well, in the case of Ada"], "The input was: …");
    }

    #[test]
    fn words_that_nobody_knows_go_wherever_they_come_from() {
        // Escaped, split or spelt otherwise, a text's word is not found in the text; but neither is it one of ours.
        check(r"Invalid input: \nLovelace\u00e9", &["Ada\nLovelaceé"], r"Invalid input: \…\…");
        check("Invalid: Love ##lace", &["Lovelace"], "Invalid: …");
        check("Invalid: L0velace was rejected", &["Lovelace"], "Invalid: … was rejected");
        check("The request failed: call 004915112345678", &["+49 151 12345678"], "The request failed: …");
    }

    #[test]
    fn common_words_in_a_row_are_a_quotation_too() {
        let text = "Their balance is below zero since their account was blocked.";
        check("Rejected: their balance is below zero", &[text], "Rejected: …");
        check("Your account was blocked", &["Is the account blocked?"], "Your account was blocked");
    }

    #[test]
    fn numbers_that_a_text_has_go() {
        check("expected 384, got 1815", &["born 1815"], "expected 384, …");
    }

    #[test]
    fn other_scripts_go() {
        check("无效的输入: 机密 token", &["机密文本"], "…: …");
    }

    #[test]
    fn a_long_message_is_cut() {
        let clean = without_echo(&"value ".repeat(100), &[]);
        assert_eq!(clean.chars().count(), LONGEST);
        let exact = "1 ".repeat(LONGEST / 2);
        assert_eq!(without_echo(&exact, &[]), exact.trim());
    }

    #[test]
    fn an_identifier_must_not_be_made_of_a_text() {
        assert!(is_harmless("invalid_request_error", &["Ada Lovelace's error"]));
        assert!(is_harmless("$.input[3]", &["Ada Lovelace"]));
        assert!(!is_harmless("lovelace_ada", &["Ada Lovelace"]));
    }

    proptest! {
        /// Whatever surrounds it and however much is cut off, a word that is only a document's never comes through.
        #[test]
        fn no_canary_ever_sings(before in "[ -~]{0,40}", after in "[ -~]{0,40}", cut in 0_usize..8, text in "[ -~]{0,30}") {
            let canary = "Quixotequartz";
            let input = format!("{text} {canary} {text}");
            let message = format!("{before}{}{after}", &input[..input.len() - cut]);
            let clean = without_echo(&message, &[&input]).to_lowercase();
            prop_assert!(!clean.contains("quixo") && !clean.contains("quartz"), "{message:?} became {clean:?}");
        }
    }
}
