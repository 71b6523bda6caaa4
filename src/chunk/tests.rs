mod edits;
mod parts;

use std::collections::HashSet;

use proptest::prelude::*;

use super::tokens::tally;
use super::{Dress, Plan, Rules, Tokenizer, split};
use crate::config::{ChunkSize, Longer};
use crate::domain::{Chunk, Document, Heading};

const WORDS: &str = "the river of a town that we had seen before and which never again would carry its boats under old stone \
    bridges while market people sold bread fish apples linen to travellers from every valley between here sea mountains";

fn rules(size: ChunkSize, overlap: usize) -> Rules {
    Rules { size, overlap, whole: false, whole_up_to: 0, longer: Longer::Fail, longest: 8191 }
}

fn tokens(most: usize, overlap: usize) -> Rules {
    rules(ChunkSize::Tokens(most), overlap)
}

fn cut(document: &Document, rules: &Rules) -> Plan {
    split(document, rules, &Tokenizer::cl100k(), None).unwrap()
}

fn cut_text(text: &str, rules: &Rules) -> Vec<String> {
    cut(&Document::plain(text.to_owned()), rules).chunks.into_iter().map(|chunk| chunk.text).collect()
}

/// A BERT tokenizer of letters and digits, with the padding and truncation that real files carry.
fn bert() -> Tokenizer {
    let letters = "abcdefghijklmnopqrstuvwxyz0123456789".chars();
    let specials =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "river", "##er", ".", ",", "-", "好", "你"].map(str::to_owned);
    let vocabulary = specials.into_iter().chain(letters.flat_map(|letter| [letter.to_string(), format!("##{letter}")]));
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        vocabulary.enumerate().map(|(id, token)| (token, id.into())).collect();
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": { "direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0 },
        "padding": { "strategy": { "Fixed": 12 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "[PAD]" },
        "added_tokens": [],
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                        "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] },
        "decoder": null,
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100, "vocab": vocabulary }
    });
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

/// A tokenizer of the `SentencePiece` kind, as multilingual models have.
fn unigram() -> Tokenizer {
    let pieces = [
        "<s>",
        "</s>",
        "<unk>",
        "\u{2581}",
        "\u{2581}the",
        "\u{2581}a",
        "er",
        "ing",
        "好",
        "。",
        ".",
        ",",
        "\u{2581}-",
    ];
    let letters = ('a'..='z').map(String::from);
    let vocabulary: Vec<(String, f64)> =
        pieces.map(str::to_owned).into_iter().chain(letters).map(|piece| (piece, -3.0)).collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": { "type": "NFKC" },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "WhitespaceSplit" },
            { "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true } ] },
        "post_processor": { "type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0], "trim_offsets": true,
                            "add_prefix_space": true },
        "decoder": null,
        "model": { "type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": false }
    });
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

fn any_tokenizer() -> impl Strategy<Value = Tokenizer> {
    let make = [Tokenizer::cl100k, Tokenizer::o200k, bert, unigram];
    (0..make.len()).prop_map(move |index| make[index]())
}

/// A sequence of numbers that is the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn sentence(&mut self) -> String {
        let words: Vec<&str> = WORDS.split_whitespace().collect();
        let length = 6 + self.below(14);
        let mut sentence: Vec<&str> = (0..length).map(|_| words[self.below(words.len())]).collect();
        let first = format!("{}{}", sentence[0][..1].to_uppercase(), &sentence[0][1..]);
        sentence[0] = &first;
        format!("{}.", sentence.join(" "))
    }

    fn paragraph(&mut self, words: usize) -> String {
        let mut sentences = vec![self.sentence()];
        while sentences.iter().map(|sentence| sentence.split(' ').count()).sum::<usize>() < words {
            sentences.push(self.sentence());
        }
        sentences.join(" ")
    }

    fn paragraphs(&mut self, count: usize, least: usize, most: usize) -> Vec<String> {
        (0..count)
            .map(|_| {
                let words = least + self.below(most - least + 1);
                self.paragraph(words)
            })
            .collect()
    }
}

/// What holds for every plan: nothing lost, nothing too long, every fact true.
fn check(document: &Document, rules: &Rules, tokenizer: &Tokenizer, plan: &Plan) {
    let text: Vec<char> = document.text.chars().collect();
    let mut covered = vec![false; text.len()];
    for (index, chunk) in plan.chunks.iter().enumerate() {
        assert_eq!(chunk.index, index);
        assert_eq!(chunk.text, text[chunk.start..chunk.end].iter().collect::<String>());
        assert_eq!(chunk.text, chunk.text.trim());
        assert!(!chunk.text.is_empty());
        assert_eq!(chunk.tokens, tokenizer.count(chunk.embedded()), "in {:?}", chunk.embedded());
        assert!(chunk.tokens <= rules.longest);
        match rules.size {
            ChunkSize::Tokens(most) => assert!(tokenizer.count(&chunk.text) <= most),
            ChunkSize::Characters(most) => assert!(chunk.end - chunk.start <= most),
        }
        covered[chunk.start..chunk.end].fill(true);
    }
    assert!(text.iter().zip(covered).all(|(character, covered)| covered || character.is_whitespace()));
    assert!(plan.chunks.is_sorted_by_key(|chunk| chunk.end));
    assert_eq!(plan.tokens, if plan.chunks.is_empty() { 0 } else { tokenizer.count(&document.text) });
}

fn any_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        6 => "[a-zA-Z]{1,12} ",
        2 => "[a-z]{1,9}[.,;:!?)] ",
        2 => "\\. [A-Z]",
        1 => "[ \n\t]{1,5}",
        1 => "\n\n",
        1 => "\n- ",
        1 => "[0-9 |.]{1,12}",
        2 => "[你好世界一二三学校のはをカタ]{1,20}[。！？、」]{0,2}",
        1 => Just("👩‍👩‍👧‍👦🇩🇪e\u{301}\u{300}".to_owned()),
        1 => "[\u{e00}-\u{e4f}\u{900}-\u{960}\u{600}-\u{660} ]{1,12}",
        1 => "\\PC{1,9}",
        1 => ("[a-z=.\u{a0}]", 1_usize..400).prop_map(|(letter, times)| letter.repeat(times)),
    ];
    prop::collection::vec(part, 0..160).prop_map(|parts| parts.concat())
}

fn any_document() -> impl Strategy<Value = Document> {
    (any_text(), prop::collection::vec((0.0..1.0, 1_u8..7, "[A-Z][a-z ]{0,30}"), 0..5), 0_usize..4).prop_map(
        |(text, headings, pages)| {
            let length = f64::from(u32::try_from(text.len()).unwrap());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
            let place = |share: f64| text.floor_char_boundary((length * share) as usize);
            let mut headings: Vec<Heading> =
                headings.into_iter().map(|(share, level, title)| Heading { at: place(share), level, title }).collect();
            headings.sort_by_key(|heading| heading.at);
            let pages = (0..pages).map(|page| text.floor_char_boundary(page * 100)).collect();
            Document { pages, headings, ..Document::plain(text) }
        },
    )
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let size =
        prop_oneof![(16_usize..200).prop_map(ChunkSize::Tokens), (40_usize..900).prop_map(ChunkSize::Characters)];
    (size, 0_usize..60, 40_usize..300, 0_usize..80).prop_map(|(size, overlap, longest, whole_up_to)| Rules {
        longest,
        whole_up_to: if matches!(size, ChunkSize::Tokens(_)) { 0 } else { whole_up_to.min(9) },
        ..rules(size, overlap)
    })
}

fn dressed(chunk: &Chunk) -> String {
    format!("A title\n{}\n\n{} (end)", chunk.section.as_deref().unwrap_or(""), chunk.text)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_nothing_exceeds_the_limit(
        document in any_document(), rules in any_rules(), dress: bool, tokenizer in any_tokenizer(),
    ) {
        let dress: Dress<'_> = if dress { Some(&dressed) } else { None };
        let plan = split(&document, &rules, &tokenizer, dress).unwrap();
        check(&document, &rules, &tokenizer, &plan);
        prop_assert_eq!(split(&document, &rules, &tokenizer, dress).unwrap(), plan);
    }

    #[test]
    fn a_seam_parts_the_tokens(text in any_text(), tokenizer in any_tokenizer()) {
        let whole = tokenizer.encode(&text);
        let neighbours = text.chars().zip(text.char_indices().skip(1));
        for (before, (at, after)) in neighbours.filter(|&(before, (_, after))| tokenizer.is_seam(before, after)).take(8) {
            let left = tokenizer.count_plain(&text[..at]);
            prop_assert_eq!(left + tokenizer.count_plain(&text[at..]), whole.len(), "between {:?} and {:?}", before, after);
            prop_assert_eq!(left, whole.iter().filter(|span| span.start < at).count());
        }
    }
}

#[test]
fn nothing_visible_makes_no_chunks() {
    for text in ["", " ", "\n\n\t \u{3000}\n"] {
        assert_eq!(cut(&Document::plain(text.to_owned()), &tokens(100, 10)), Plan::default());
    }
}

#[test]
fn a_text_within_the_size_is_one_trimmed_chunk() {
    let plan = cut(&Document::plain("\n  Grüße aus Köln.\n\nBis bald! ".to_owned()), &tokens(20, 5));
    let [chunk] = &plan.chunks[..] else { panic!("{plan:?}") };
    assert_eq!((chunk.text.as_str(), chunk.start, chunk.end), ("Grüße aus Köln.\n\nBis bald!", 3, 29));
}

#[test]
fn a_transcript_without_blank_lines_is_cut_at_sentences() {
    let text = Dice(7).paragraph(3_000);
    let plan = cut(&Document::plain(text), &tokens(400, 40));
    let cut_at_sentences = plan.chunks.iter().filter(|chunk| chunk.text.ends_with('.')).count();
    assert_eq!(cut_at_sentences, plan.chunks.len());
    assert!(plan.chunks.iter().all(|chunk| chunk.text.starts_with(char::is_uppercase)));
}

#[test]
fn a_transcript_without_any_marks_is_cut_at_words() {
    let text = Dice(7).paragraph(2_000).replace('.', "").to_lowercase();
    let words: HashSet<&str> = text.split(' ').collect();
    let chunks = cut_text(&text, &tokens(100, 10));
    assert!(chunks.len() > 20);
    assert!(chunks.iter().flat_map(|chunk| chunk.split(' ')).all(|word| words.contains(word)));
}

#[test]
fn chinese_and_japanese_are_cut_at_their_full_stops() {
    let chinese = "春天来了，河边的柳树长出了新芽。孩子们在草地上放风筝，老人们坐在长椅上聊天！你听见鸟儿在唱歌吗？";
    let japanese = "朝早く起きて、駅まで歩いた。「今日はいい天気ですね。」と隣の人が言った。電車はもう来ていたが、席は空いていなかった！";
    for text in [chinese, japanese] {
        let chunks = cut_text(&text.repeat(12), &tokens(120, 0));
        assert!(chunks.len() > 4);
        assert!(chunks.iter().all(|chunk| chunk.ends_with(['。', '！', '？', '」'])), "{chunks:#?}");
    }
}

#[test]
fn one_endless_word_is_cut_between_its_letters() {
    let chunks = cut_text(&"字".repeat(2_000), &tokens(100, 0));
    assert_eq!(chunks.concat(), "字".repeat(2_000));
    let family = "👩‍👩‍👧‍👦";
    let chunks = cut_text(&family.repeat(60), &tokens(64, 20));
    assert!(chunks.len() > 10);
    assert!(chunks.iter().all(|chunk| chunk.replace(family, "").is_empty()), "{chunks:?}");
}

/// A document of Markdown-like sections, headings at their lines.
fn sections(dice: &mut Dice, words: &[usize]) -> Document {
    let mut document = Document::plain(String::new());
    for (number, &words) in words.iter().enumerate() {
        let title = format!("Section {number}");
        document.headings.push(Heading { at: document.text.len(), level: 2, title: title.clone() });
        document.text += &format!("{title}\n\n{}\n\n", dice.paragraph(words));
    }
    document
}

#[test]
fn sections_of_a_good_size_are_chunks_of_their_own() {
    let document = sections(&mut Dice(3), &[150, 200, 140, 230, 160]);
    let plan = cut(&document, &tokens(300, 30));
    let found: Vec<_> =
        plan.chunks.iter().map(|chunk| (chunk.section.clone().unwrap(), chunk.level.unwrap())).collect();
    assert_eq!(found, (0..5).map(|number| (format!("Section {number}"), 2)).collect::<Vec<_>>());
    assert!(plan.chunks.iter().all(|chunk| chunk.text.starts_with(chunk.section.as_deref().unwrap())));
}

#[test]
fn a_heading_is_never_parted_from_its_text() {
    let document = sections(&mut Dice(5), &[20, 50, 30, 900, 25, 60, 40, 35, 400, 22, 28, 31]);
    for size in [40, 60, 100, 150] {
        let plan = cut(&document, &tokens(size, 8));
        let starts = plan.chunks.iter().filter(|chunk| chunk.text.starts_with("Section")).count();
        assert!(starts >= 3, "{starts} at {size}");
        assert!(plan.chunks.iter().all(|chunk| !chunk.text.lines().next_back().unwrap().starts_with("Section")));
    }
}

#[test]
fn pages_are_those_of_the_start() {
    let pages = Dice(9).paragraphs(3, 100, 100);
    let starts = vec![0, pages[0].len() + 2, pages[0].len() + pages[1].len() + 4];
    let document = Document { pages: starts, ..Document::plain(pages.join("\n\n")) };
    let found: Vec<_> = cut(&document, &tokens(160, 0)).chunks.iter().map(|chunk| chunk.page.unwrap()).collect();
    assert_eq!(found, [1, 2, 3]);
}

#[test]
fn an_overlap_starts_with_a_sentence_of_the_chunk_before() {
    let text = Dice(11).paragraphs(30, 60, 120).join("\n\n");
    let chunks = cut_text(&text, &tokens(400, 60));
    let overlaps = chunks.windows(2).filter(|pair| {
        let first = pair[1].split_inclusive('.').next().unwrap();
        assert!(first.starts_with(char::is_uppercase));
        pair[0].contains(first)
    });
    assert_eq!(overlaps.count(), chunks.len() - 1);
}

#[test]
fn a_wrapped_line_is_no_place_to_cut() {
    let paragraph = Dice(13).paragraph(600);
    let mut wrapped = String::new();
    for word in paragraph.split(' ') {
        let line = wrapped.len() - wrapped.rfind('\n').map_or(0, |at| at + 1);
        wrapped += if wrapped.is_empty() {
            ""
        } else if line > 70 {
            "\n"
        } else {
            " "
        };
        wrapped += word;
    }
    let chunks = cut_text(&wrapped, &tokens(150, 0));
    assert!(chunks.len() > 4);
    assert!(chunks.iter().all(|chunk| chunk.ends_with('.')), "{chunks:#?}");
}

#[test]
fn a_text_that_must_be_one_vector() {
    let text = Dice(17).paragraph(500);
    let document = Document::plain(text.clone());
    let rules = Rules { whole: true, longest: 200, ..tokens(100, 0) };
    let all = Tokenizer::cl100k().count(&text);

    let refused = split(&document, &rules, &Tokenizer::cl100k(), None).unwrap_err();
    assert_eq!((refused.tokens, refused.longest), (all, 200));

    let shortened = cut(&document, &Rules { longer: Longer::Cut, ..rules.clone() });
    let [chunk] = &shortened.chunks[..] else { panic!("{shortened:?}") };
    assert!(text.starts_with(&chunk.text) && (190..=200).contains(&chunk.tokens));

    let mean = cut(&document, &Rules { longer: Longer::Mean, ..rules.clone() });
    assert_eq!((mean.chunks.len(), mean.parts.len(), mean.tokens), (1, 1, all));
    assert_eq!(mean.chunks[0].text, text);
    let parts = Plan { chunks: mean.parts[0].clone(), parts: Vec::new(), tokens: all };
    check(&document, &Rules { size: ChunkSize::Tokens(200), ..rules.clone() }, &Tokenizer::cl100k(), &parts);

    assert_eq!(cut(&document, &Rules { longest: 8191, ..rules }).chunks[0].text, text);
}

#[test]
fn a_text_up_to_a_length_stays_whole() {
    let text = Dice(19).paragraph(300);
    let all = Tokenizer::cl100k().count(&text);
    assert_eq!(cut_text(&text, &Rules { whole_up_to: all, ..tokens(100, 10) }), [text.clone()]);
    assert!(cut_text(&text, &Rules { whole_up_to: all - 1, ..tokens(100, 10) }).len() > 2);
}

#[test]
fn what_is_put_around_a_text_counts_in_the_limit() {
    let document = sections(&mut Dice(23), &[700, 700]);
    let rules = Rules { longest: 256, ..tokens(400, 40) };
    for tokenizer in [Tokenizer::cl100k(), bert()] {
        let plan = split(&document, &rules, &tokenizer, Some(&dressed)).unwrap();
        check(&document, &rules, &tokenizer, &plan);
        assert!(plan.chunks.iter().all(|chunk| chunk.embedded().ends_with("(end)")));
    }
    let endless = |chunk: &Chunk| format!("{} {}", "title ".repeat(400), chunk.text);
    let plan = split(&document, &rules, &Tokenizer::cl100k(), Some(&endless)).unwrap();
    check(&document, &rules, &Tokenizer::cl100k(), &plan);
    assert!(plan.chunks.iter().all(|chunk| chunk.embedded.is_none()));
}

#[test]
fn the_work_grows_with_the_text_and_no_faster() {
    let texts = [
        Dice(29).paragraphs(600, 60, 120).join("\n\n"),
        "a".repeat(300_000),
        "好".repeat(60_000),
        " ".repeat(70_000) + "x",
    ];
    for text in texts {
        let document = Document::plain(text);
        tally::take();
        let plan = cut(&document, &tokens(400, 40));
        let encoded = tally::take();
        assert!(
            encoded <= document.text.len() * 5 / 2,
            "{encoded} of {}, {} chunks",
            document.text.len(),
            plan.chunks.len()
        );
    }
}

#[test]
fn a_models_own_tokenizer_counts_what_the_model_sees() {
    let tokenizer = bert();
    assert_eq!((tokenizer.special(), tokenizer.count("")), (2, 2));
    // Neither padded to 12 nor truncated to it.
    assert_eq!(tokenizer.count("The river."), 5);
    assert_eq!(tokenizer.count(&"river ".repeat(50)), 52);
    // Lower-cased, accents dropped, offsets those of the text itself.
    let starts: Vec<_> = tokenizer.encode("Ärger Über 你好").iter().map(|span| span.start).collect();
    assert_eq!(starts, [0, 2, 3, 4, 7, 9, 10, 13, 16]);
    assert!(Tokenizer::from_json(b"{}").is_err());
}

#[test]
fn tokens_of_tiktoken_start_where_they_stand() {
    let text = "Hello, wörld 👩!";
    let spans = Tokenizer::cl100k().encode(text);
    let starts: Vec<_> = spans.iter().map(|span| span.start).collect();
    assert_eq!(starts[..3], [0, 5, 6]);
    assert_eq!(Tokenizer::cl100k().count(text), spans.len());
    assert_eq!(Tokenizer::o200k().encode("Hello, world").len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Two implementations of one tokenizer that share no code but a regex engine.
    #[test]
    fn tokens_are_those_of_openai(text in "(\\PC|[a-zA-Z' ]{1,12}|[0-9]{1,5}|[ \\t\\r\\n]{1,4}|[\u{300}-\u{36f}\u{600}-\u{6ff}\u{900}-\u{97f}\u{3040}-\u{30ff}\u{4e00}-\u{4fff}]|<\\|endoftext\\|>){0,40}") {
        for (ours, theirs) in [
            (Tokenizer::cl100k(), tiktoken_rs::cl100k_base_singleton()),
            (Tokenizer::o200k(), tiktoken_rs::o200k_base_singleton()),
        ] {
            let mut starts = vec![0];
            for rank in theirs.encode_ordinary(&text) {
                let length = theirs.decode_bytes(&[rank]).unwrap().len();
                starts.push(starts[starts.len() - 1] + length);
            }
            prop_assert_eq!(starts.pop(), Some(text.len()));
            prop_assert_eq!(ours.count(&text), starts.len());
            prop_assert_eq!(ours.encode(&text).iter().map(|span| span.start).collect::<Vec<_>>(), starts);
        }
    }
}

#[test]
fn a_piece_of_a_long_text_ends_at_a_seam() {
    let text = Dice(31).paragraphs(400, 60, 120).join("\n\n");
    assert!(text.len() > 200_000);
    let starts: HashSet<_> = Tokenizer::cl100k().encode(&text).into_iter().map(|span| span.start).collect();
    let whole = tiktoken_rs::cl100k_base_singleton().encode_ordinary(&text);
    assert_eq!(starts.len(), whole.len());
}
