//! Parts of the language that are settled but not built yet: recognised, so that files can be written for them, and refused
//! by name. Who builds one deletes its line.

/// Keys by the section they stand in.
const KEYS: &[(&str, &[&str])] = &[("providers.*", &["requests_per_minute", "tokens_per_minute"])];

/// Words by the key they are given for.
const WORDS: &[(&str, &[&str])] = &[("providers.*.kind", &["deepgram", "assemblyai", "whisper"])];

/// The keys of a section that only a later version knows what to do with.
pub(super) fn keys(shape: &str) -> &'static [&'static str] {
    KEYS.iter().find(|(section, _)| *section == shape).map_or(&[], |(_, keys)| keys)
}

pub(super) fn is_word(shape: &str, word: &str) -> bool {
    WORDS.iter().any(|(key, words)| *key == shape && words.contains(&word))
}

pub(super) fn message(what: &str) -> String {
    format!("`{what}` is not supported by this version; leave it out")
}
