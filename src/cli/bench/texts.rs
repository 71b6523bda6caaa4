//! Texts as applications have them: windows of real prose, none like another.

/// Prose in English. Origin and licences: tests/fixtures/README.md.
const PROSE: [&str; 2] = [
    include_str!("../../../tests/fixtures/files/xz-faq.txt"),
    include_str!("../../../tests/fixtures/files/serde_json.md"),
];

/// All of it, in one text.
pub(super) fn prose() -> String {
    PROSE.concat()
}

/// So many texts of about so many bytes.
pub(super) fn texts(count: usize, bytes: usize) -> Vec<String> {
    let prose = prose();
    // A step without a common divisor: windows begin everywhere.
    let last = prose.len().saturating_sub(bytes + 1).max(1);
    (0..count)
        .map(|nth| {
            let from = prose.floor_char_boundary(nth * 7_919 % last);
            let until = prose.floor_char_boundary((from + bytes).min(prose.len()));
            format!("Note {nth}. {}", &prose[from..until])
        })
        .collect()
}
