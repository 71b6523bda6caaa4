use std::collections::HashSet;

use super::super::split::split_by;
use super::{WORDS, rules, tokens};
use crate::chunk::{Plan, Rules, Tokenizer};
use crate::config::ChunkSize;
use crate::domain::{Document, Heading};

const PART: usize = 2_000;

/// Paragraphs of words in an order of their own, a heading before every tenth, a page for every seventh.
fn document(paragraphs: usize) -> Document {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut document = Document::default();
    for nth in 0..paragraphs {
        if nth % 7 == 0 {
            document.pages.push(document.text.len());
        }
        if nth % 10 == 0 {
            let title = format!("Chapter {nth}");
            document.headings.push(Heading { at: document.text.len(), level: 2, title: title.clone() });
            document.text += &format!("{title}\n\n");
        }
        let words: Vec<&str> =
            (0..30).map(|word| words[(nth * nth * 13 + word * (nth % 5 + 1) * 7) % words.len()]).collect();
        document.text += &format!("Nr {nth}, é {}.\n\n", words.join(" "));
    }
    document
}

fn cut(document: &Document, rules: &Rules, part: usize) -> Plan {
    split_by(document, &Rules { longest: 300, ..rules.clone() }, &Tokenizer::cl100k(), None, part).unwrap()
}

#[test]
fn a_long_text_is_cut_part_by_part_and_nothing_is_lost() {
    let document = document(200);
    let visible = |text: &str| text.split_whitespace().collect::<String>();
    for rules in [tokens(60, 0), rules(ChunkSize::Characters(200), 0)] {
        let whole = cut(&document, &rules, usize::MAX);
        let plan = cut(&document, &rules, PART);

        let joined: String = plan.chunks.iter().map(|chunk| visible(&chunk.text)).collect();
        assert_eq!(joined, visible(&document.text));
        assert!(
            plan.tokens.abs_diff(whole.tokens) <= document.text.len() / PART * 4,
            "{} {}",
            plan.tokens,
            whole.tokens
        );
        for (index, chunk) in plan.chunks.iter().enumerate() {
            let text: String = document.text.chars().skip(chunk.start).take(chunk.end - chunk.start).collect();
            assert_eq!((chunk.index, &chunk.text), (index, &text));
            let at = document.text.char_indices().nth(chunk.start).unwrap().0;
            let above = document.headings.iter().rfind(|heading| heading.at <= at).map(|heading| &heading.title);
            assert_eq!(chunk.section.as_ref(), above);
            assert_eq!(chunk.page, u32::try_from(document.pages.iter().filter(|&&page| page <= at).count()).ok());
        }
        // Not part by part in vain: the same text in one piece has other chunks only where parts meet.
        let known: HashSet<&str> = whole.chunks.iter().map(|chunk| chunk.text.as_str()).collect();
        let same = plan.chunks.iter().filter(|chunk| known.contains(chunk.text.as_str())).count();
        assert!(same * 10 > plan.chunks.len() * 6, "{same} of {}", plan.chunks.len());
    }
}

#[test]
fn an_edit_moves_only_the_parts_around_it() {
    let (before, rules) = (document(200), tokens(60, 0));
    let mut after = before.clone();
    let more = "A sentence that was not there. ";
    after.text.insert_str(0, more);
    after.headings.iter_mut().for_each(|heading| heading.at += more.len());
    after.pages.iter_mut().for_each(|page| *page += more.len());
    let known: HashSet<String> = cut(&before, &rules, PART).chunks.into_iter().map(|chunk| chunk.text).collect();
    let chunks = cut(&after, &rules, PART).chunks;
    let new = chunks.iter().filter(|chunk| !known.contains(&chunk.text)).count();
    assert!(new * 10 < chunks.len(), "{new} of {} are new", chunks.len());
}

#[test]
fn what_may_be_one_chunk_is_not_taken_apart() {
    let document = document(5);
    let plan = cut(&document, &rules(ChunkSize::Characters(100_000), 0), PART.min(document.text.len() / 2));
    assert_eq!(plan, cut(&document, &rules(ChunkSize::Characters(100_000), 0), usize::MAX));
}
