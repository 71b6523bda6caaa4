//! What an edit of a text leaves as it was, and how full chunks are for that.

use super::*;
use crate::domain::Digest;

fn digests(text: &str, rules: &Rules) -> Vec<Digest> {
    cut(&Document::plain(text.to_owned()), rules).chunks.iter().map(Chunk::digest).collect()
}

/// How many chunks of an edited text were not there before.
fn changed(before: &HashSet<Digest>, after: &str, rules: &Rules) -> usize {
    digests(after, rules).iter().filter(|digest| !before.contains(digest)).count()
}

/// Edits each of forty paragraphs in turn, in two documents: by a sentence more, another word, another paragraph in its place.
/// How often how many chunks were new.
fn edits(least: usize, most: usize, rules: &Rules) -> Vec<usize> {
    let mut times = vec![0; 8];
    for seed in 0..2 {
        let mut dice = Dice(seed);
        let paragraphs = dice.paragraphs(40, least, most);
        let before = digests(&paragraphs.join("\n\n"), rules).into_iter().collect();
        for edited in 0..40 {
            let old = &paragraphs[edited];
            let new = match edited % 3 {
                0 => format!("{old} {}", dice.sentence()),
                1 => format!("Not {old}"),
                _ => dice.paragraph(usize::midpoint(least, most)),
            };
            let mut paragraphs = paragraphs.clone();
            paragraphs[edited] = new;
            times[changed(&before, &paragraphs.join("\n\n"), rules).min(7)] += 1;
        }
    }
    times
}

#[test]
fn two_neighbours_that_fit_into_one_are_one() {
    let tokenizer = Tokenizer::cl100k();
    for seed in 0..10 {
        let text = Dice(seed).paragraphs(40, 20, 120).join("\n\n");
        let chunks = cut(&Document::plain(text.clone()), &tokens(400, 0)).chunks;
        for pair in chunks.windows(2) {
            let both = tokenizer.count_plain(&text[pair[0].start..pair[1].end]);
            assert!(both > 400 - 4, "{both} tokens in two chunks, seed {seed}");
        }
    }
}

#[test]
fn an_edited_paragraph_that_is_its_own_chunk_changes_that_chunk_alone() {
    assert_eq!(edits(90, 140, &tokens(200, 0)), [0, 80, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn an_edited_paragraph_changes_the_chunks_around_it_alone() {
    for rules in [tokens(200, 0), tokens(400, 0), tokens(400, 40)] {
        let times = edits(60, 120, &rules);
        // Four or five are rare (see `cut::choose`), more were never seen.
        assert!(times[1] + times[2] >= 68 && times[4] + times[5] <= 4, "{rules:?}: {times:?}");
        assert_eq!(times[6..], [0; 2], "{rules:?}");
    }
}
