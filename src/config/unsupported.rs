//! Parts of the language that are settled but not built yet: recognised, so that files can be written for them, and refused
//! by name. Who builds one deletes its line.

/// Words by the key they are given for.
const WORDS: &[(&str, &[&str])] = &[("providers.*.kind", &["deepgram", "assemblyai", "whisper"])];

pub(super) fn is_word(shape: &str, word: &str) -> bool {
    WORDS.iter().any(|(key, words)| *key == shape && words.contains(&word))
}

pub(super) fn message(what: &str) -> String {
    format!("`{what}` is not supported by this version; leave it out")
}
