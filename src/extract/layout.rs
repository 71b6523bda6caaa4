//! Lines on a page become paragraphs, and paragraphs that stand out become headings. Pure: PDF says where characters stand, not
//! what they are.

use std::collections::HashMap;

/// A line of a page, in the reader's order. Lengths are points; `top` and `bottom` grow upwards.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Line {
    pub text: String,
    pub left: f32,
    pub right: f32,
    pub bottom: f32,
    pub size: f32,
    pub bold: bool,
    /// It ended in a hyphen that is gone: the word goes on in the next line.
    pub glued: bool,
}

/// Lines that belong together.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Paragraph {
    pub text: String,
    pub lines: usize,
    pub size: f32,
    pub bold: bool,
}

/// How the next line follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joint {
    /// Its first word is the rest of the last.
    Glued,
    /// The text flows on.
    Flows,
    /// A line of its own in the same paragraph: lists, tables, verse.
    Breaks,
    /// Another paragraph.
    Parts,
}

/// Joins a page's lines to paragraphs.
pub(super) fn paragraphs(lines: &[Line]) -> Vec<Paragraph> {
    let pitch = usual_pitch(lines);
    let mut paragraphs: Vec<Paragraph> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let joint = match index.checked_sub(1) {
            Some(last) => joint(lines, last, pitch),
            None => Joint::Parts,
        };
        match paragraphs.last_mut() {
            Some(paragraph) if joint != Joint::Parts => paragraph.add(line, joint),
            _ => paragraphs.push(Paragraph { text: line.text.clone(), lines: 1, size: line.size, bold: line.bold }),
        }
    }
    paragraphs
}

impl Paragraph {
    fn add(&mut self, line: &Line, joint: Joint) {
        match joint {
            Joint::Flows if !meets_without_space(&self.text, &line.text) => self.text.push(' '),
            Joint::Breaks => self.text.push('\n'),
            Joint::Glued | Joint::Flows | Joint::Parts => {}
        }
        self.text.push_str(&line.text);
        self.lines += 1;
        self.bold &= line.bold;
    }
}

fn joint(lines: &[Line], last: usize, pitch: f32) -> Joint {
    let (line, next) = (&lines[last], &lines[last + 1]);
    if line.glued {
        return Joint::Glued;
    }
    if (line.size - next.size).abs() > 0.08 * line.size.max(next.size) || line.bold != next.bold {
        return Joint::Parts;
    }
    let down = line.bottom - next.bottom;
    if down < -line.size {
        // Up again: the next column. A sentence may go on there.
        return if ends_a_sentence(&line.text) { Joint::Parts } else { Joint::Flows };
    }
    if down > 1.35 * pitch {
        return Joint::Parts;
    }
    if opens_a_section(&next.text) && ends_a_sentence(&line.text) {
        return Joint::Parts;
    }
    if opens_an_item(&next.text) || down.abs() < 0.2 * line.size {
        return Joint::Breaks;
    }
    match (is_full(lines, last), ends_a_sentence(&line.text)) {
        (true, _) => Joint::Flows,
        (false, true) => Joint::Parts,
        (false, false) => Joint::Breaks,
    }
}

/// The distance between most lines.
fn usual_pitch(lines: &[Line]) -> f32 {
    let mut pitches: Vec<f32> = lines
        .windows(2)
        .map(|pair| pair[0].bottom - pair[1].bottom)
        .zip(lines)
        .filter(|(pitch, line)| *pitch > 0.5 * line.size && *pitch < 3.0 * line.size)
        .map(|(pitch, _)| pitch)
        .collect();
    pitches.sort_by(f32::total_cmp);
    // The lower third: most documents have more lines within paragraphs than between them, but not all.
    pitches.get(pitches.len() / 3).copied().unwrap_or(f32::MAX / 2.0)
}

/// Whether a line reaches as far to the right as its neighbours do.
fn is_full(lines: &[Line], index: usize) -> bool {
    let line = &lines[index];
    let near = &lines[index.saturating_sub(4)..lines.len().min(index + 5)];
    let overlaps = |other: &&Line| other.left < line.right && line.left < other.right;
    let right = near.iter().filter(overlaps).map(|other| other.right).fold(line.right, f32::max);
    let left = near.iter().filter(overlaps).map(|other| other.left).fold(line.left, f32::min);
    let next_word = lines.get(index + 1).map_or(0.0, first_word_width);
    // A line is full where the next line's first word would not have fitted.
    right - line.right < (next_word + 0.5 * line.size).min(0.3 * (right - left))
}

#[expect(clippy::cast_precision_loss, reason = "lengths of words and lines are small")]
fn first_word_width(line: &Line) -> f32 {
    let all = line.text.chars().count().max(1) as f32;
    let word = line.text.split_whitespace().next().map_or(0, |word| word.chars().count()) as f32;
    (line.right - line.left) * word / all
}

fn ends_a_sentence(text: &str) -> bool {
    text.trim_end_matches(['"', '\'', ')', ']', '”', '’', '»'])
        .ends_with(['.', '!', '?', ':', '…', '。', '！', '？', '؟'])
}

fn opens_an_item(text: &str) -> bool {
    let mut characters = text.chars();
    let first = characters.next().unwrap_or(' ');
    if "•‣◦▪●○■□–—*➢✓·".contains(first) || (first == '-' && characters.as_str().starts_with(' '))
    {
        return true;
    }
    let word = text.split_whitespace().next().unwrap_or_default();
    let inner = word.trim_start_matches('(').trim_end_matches([')', '.']);
    let marked = word.len() > inner.len();
    marked
        && inner.len() <= 3
        && (inner.bytes().all(|b| b.is_ascii_digit())
            || inner.len() == 1 && inner.bytes().all(|b| b.is_ascii_lowercase()))
        && !inner.is_empty()
}

/// `2.1 Title`
fn opens_a_section(text: &str) -> bool {
    let Some((number, title)) = text.split_once(' ') else { return false };
    let parts = number.trim_end_matches('.').split('.');
    number.contains('.')
        && parts.clone().count() <= 4
        && parts.clone().all(|part| matches!(part.len(), 1 | 2) && part.bytes().all(|byte| byte.is_ascii_digit()))
        && title.trim_start().starts_with(char::is_uppercase)
}

/// Scripts that are written without spaces are joined without one.
fn meets_without_space(before: &str, after: &str) -> bool {
    let wide = |character: char| matches!(u32::from(character), 0x2E80..=0xA4CF | 0xF900..=0xFAFF | 0xFE30..=0xFE4F | 0xFF00..=0xFFEF | 0x2_0000..=0x3_FFFF);
    let hangul = |character: char| matches!(u32::from(character), 0xAC00..=0xD7AF);
    let before = before.chars().next_back().unwrap_or(' ');
    let after = after.chars().next().unwrap_or(' ');
    before == ' ' || after == ' ' || (wide(before) && wide(after) && !hangul(before) && !hangul(after))
}

/// For each paragraph of each page its heading level, where it looks like one. Errs towards none: a wrong heading misnames every
/// chunk below it.
pub(super) fn headings(pages: &[Vec<Paragraph>]) -> Vec<Vec<Option<u8>>> {
    let body = body_size(pages);
    let repeated = repeated(pages);
    let candidate = |page: &[Paragraph], index: usize| {
        let runs = repeated.get(&key(&page[index].text)).is_some_and(|&pages| pages > 2);
        (!runs && is_heading(page, index, body)).then_some(page[index].size)
    };
    let candidates: Vec<Vec<Option<f32>>> =
        pages.iter().map(|page| (0..page.len()).map(|index| candidate(page, index)).collect()).collect();
    if is_too_much(pages, &candidates) {
        return pages.iter().map(|page| vec![None; page.len()]).collect();
    }
    let levels = levels(&candidates);
    let level = |size: f32| {
        levels.iter().position(|&known| close(known, size)).map_or(6, |rank| u8::try_from(rank + 1).unwrap_or(6).min(6))
    };
    candidates.iter().map(|page| page.iter().map(|size| size.map(level)).collect()).collect()
}

fn is_heading(page: &[Paragraph], index: usize, body: f32) -> bool {
    let paragraph = &page[index];
    let text = paragraph.text.trim();
    let characters = text.chars().count();
    let letters = text.chars().filter(|character| character.is_alphabetic()).count();
    if paragraph.lines > 3 || characters > 150 || letters < 2 || letters * 2 < characters || text.contains('\n') {
        return false;
    }
    if text.ends_with(['.', ',', ';']) || opens_an_item(text) && !paragraph.bold {
        return false;
    }
    // A heading is about what follows it.
    let followed = page.get(index + 1).is_none_or(|next| next.size < paragraph.size + 0.1 || is_shortish(next));
    let larger = paragraph.size > 1.15 * body;
    let bolder = paragraph.bold
        && paragraph.size > 0.97 * body
        && characters <= 90
        && page.get(index + 1).is_some_and(|next| !next.bold && next.text.chars().count() > characters);
    followed && (larger || bolder)
}

fn is_shortish(paragraph: &Paragraph) -> bool {
    paragraph.text.chars().count() <= 150
}

/// The size that most characters have.
fn body_size(pages: &[Vec<Paragraph>]) -> f32 {
    let mut weights: HashMap<i32, usize> = HashMap::new();
    for paragraph in pages.iter().flatten() {
        *weights.entry(tenths(paragraph.size)).or_default() += paragraph.text.chars().count();
    }
    let most = weights.into_iter().max_by_key(|&(size, weight)| (weight, size)).map_or(0, |(size, _)| size);
    #[expect(clippy::cast_precision_loss, reason = "font sizes are small")]
    let points = most as f32 / 10.0;
    points
}

#[expect(clippy::cast_possible_truncation, reason = "font sizes are small, and saturate")]
fn tenths(size: f32) -> i32 {
    (size * 10.0).round() as i32
}

fn close(one: f32, other: f32) -> bool {
    (one - other).abs() < 0.3
}

/// Distinct sizes of candidates, largest first.
fn levels(candidates: &[Vec<Option<f32>>]) -> Vec<f32> {
    let mut sizes: Vec<f32> = candidates.iter().flatten().flatten().copied().collect();
    sizes.sort_by(|one, other| other.total_cmp(one));
    sizes.dedup_by(|one, other| close(*one, *other));
    sizes
}

/// On how many pages a paragraph stands: running heads are no headings.
fn repeated(pages: &[Vec<Paragraph>]) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for page in pages {
        let mut keys: Vec<String> = page.iter().map(|paragraph| key(&paragraph.text)).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            *counts.entry(key).or_default() += 1;
        }
    }
    counts
}

/// A running head differs from page to page in its number.
fn key(text: &str) -> String {
    text.chars().filter(|character| character.is_alphabetic()).take(80).collect()
}

/// Where every third character would be a heading (slides, posters, forms), none is.
fn is_too_much(pages: &[Vec<Paragraph>], candidates: &[Vec<Option<f32>>]) -> bool {
    let length = |paragraph: &Paragraph| paragraph.text.chars().count();
    let all: usize = pages.iter().flatten().map(length).sum();
    let chosen: usize = pages
        .iter()
        .flatten()
        .zip(candidates.iter().flatten())
        .filter(|(_, size)| size.is_some())
        .map(|(paragraph, _)| length(paragraph))
        .sum();
    chosen * 3 > all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `y|size|bold|width|text` per line.
    fn lines(spec: &str) -> Vec<Line> {
        let line = |line: &str| {
            let parts: Vec<&str> = line.trim().splitn(5, '|').collect();
            let width: f32 = parts[3].parse().unwrap();
            Line {
                text: parts[4].trim_end_matches('~').to_owned(),
                left: 70.0,
                right: 70.0 + width,
                bottom: parts[0].parse().unwrap(),
                size: parts[1].parse().unwrap(),
                bold: parts[2] == "b",
                glued: parts[4].ends_with('~'),
            }
        };
        spec.lines().map(str::trim).filter(|text| !text.is_empty()).map(line).collect()
    }

    fn texts(spec: &str) -> Vec<String> {
        paragraphs(&lines(spec)).into_iter().map(|paragraph| paragraph.text).collect()
    }

    #[test]
    fn wrapped_lines_flow_and_paragraphs_part() {
        let spec = "
            700|10||400|A sentence that is wrap~
            688|10||398|ped over lines and goes
            676|10||100|on here.
            664|10||400|The next begins without a gap and
            652|10||90|ends.
            620|10||400|After a gap.";
        assert_eq!(
            texts(spec),
            [
                "A sentence that is wrapped over lines and goes on here.",
                "The next begins without a gap and ends.",
                "After a gap."
            ]
        );
    }

    #[test]
    fn short_lines_and_items_keep_their_lines() {
        let spec = "
            700|10||400|These are the things that we need to buy before we leave:
            688|10||120|• bread
            676|10||110|• milk
            664|10||60|Total 12";
        assert_eq!(
            texts(spec),
            ["These are the things that we need to buy before we leave:\n• bread\n• milk\nTotal 12"]
        );
    }

    #[test]
    fn chinese_lines_meet_without_a_space() {
        assert_eq!(texts("700|10||400|水是生命\n688|10||400|之源。"), ["水是生命之源。"]);
    }

    fn paragraph(size: f32, bold: bool, text: &str) -> Paragraph {
        Paragraph { text: text.to_owned(), lines: 1, size, bold }
    }

    fn check(page: Vec<Paragraph>, expected: &[Option<u8>]) {
        assert_eq!(headings(&[page])[0], expected);
    }

    #[test]
    fn what_stands_out_is_a_heading() {
        let body = "This is a paragraph of the body that is long enough to be one. ".repeat(4);
        check(
            vec![
                paragraph(20.0, true, "The title"),
                paragraph(10.0, false, &body),
                paragraph(14.0, false, "A section"),
                paragraph(10.0, false, &body),
                paragraph(10.0, true, "Bold at the body's size"),
                paragraph(10.0, false, &body),
                paragraph(10.0, true, "Bold that ends like a sentence."),
                paragraph(14.0, false, "12 345"),
                paragraph(8.0, true, "a caption"),
            ],
            &[Some(1), None, Some(2), None, Some(3), None, None, None, None],
        );
    }

    #[test]
    fn a_page_of_headings_has_none() {
        check(vec![paragraph(20.0, true, "Big words"), paragraph(10.0, false, "few small")], &[None, None]);
    }

    #[test]
    fn running_heads_are_no_headings() {
        let body = "This is a paragraph of the body that is long enough to be one. ".repeat(4);
        let page = |n: usize| vec![paragraph(14.0, false, &format!("Running head {n}")), paragraph(10.0, false, &body)];
        let found = headings(&[page(1), page(2), page(3)]);
        assert!(found.iter().flatten().all(Option::is_none));
    }
}
