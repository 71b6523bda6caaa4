/// Which column a value goes to: `"a"`, `"a|b"` (the first that exists), `"a?"` (may be missing), `"page|metadata.page"` (a
/// fall-back into a jsonb column).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnChoice {
    /// Tried in order.
    pub candidates: Vec<Candidate>,
    /// Whether it is fine that none exists.
    pub optional: bool,
}

/// One of a [`ColumnChoice`]'s ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub column: String,
    /// The key inside a jsonb column.
    pub json_key: Option<String>,
}

impl ColumnChoice {
    /// Parses the left side of a map entry; the error says what is wrong, without the place.
    ///
    /// # Errors
    /// A message for a person where a part is not a name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (names, optional) = text.strip_suffix('?').map_or((text, false), |names| (names, true));
        let candidates = names.split('|').map(Candidate::parse).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { candidates, optional })
    }

    /// The first name, for messages.
    pub fn first(&self) -> &str {
        &self.candidates[0].column
    }
}

impl Candidate {
    fn parse(text: &str) -> Result<Self, String> {
        let (column, json_key) = text.split_once('.').map_or((text, None), |(column, key)| (column, Some(key)));
        if !is_name(column) || !json_key.is_none_or(is_name) {
            return Err(format!("`{text}` is not a column name"));
        }
        Ok(Self { column: column.to_owned(), json_key: json_key.map(str::to_owned) })
    }
}

/// What a schema, table or column may be called here: what Postgres takes, without our own marks. Written without quotes.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 63 && !name.contains(['"', '\0', '?', '|'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_marks_are_read() {
        let choice = ColumnChoice::parse("page|metadata.page?").unwrap();
        assert!(choice.optional);
        assert_eq!(choice.candidates[0], Candidate { column: "page".into(), json_key: None });
        assert_eq!(choice.candidates[1], Candidate { column: "metadata".into(), json_key: Some("page".into()) });
        for wrong in ["", "a||b", "a\"b", "?"] {
            assert!(ColumnChoice::parse(wrong).is_err(), "{wrong}");
        }
    }
}
