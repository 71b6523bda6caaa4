use super::identifier;

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
        let (first, mut rest) = Candidate::take(text)?;
        let mut candidates = vec![first];
        while let Some(after) = rest.strip_prefix('|') {
            let (candidate, after) = Candidate::take(after)?;
            candidates.push(candidate);
            rest = after;
        }
        match rest {
            "" | "?" => Ok(Self { candidates, optional: rest == "?" }),
            _ => Err(identifier::NOT_A_NAME.to_owned()),
        }
    }

    /// The first name, for messages.
    pub fn first(&self) -> &str {
        &self.candidates[0].column
    }
}

impl Candidate {
    fn take(text: &str) -> Result<(Self, &str), String> {
        let (column, rest) = identifier::take(text)?;
        let Some(rest) = rest.strip_prefix('.') else { return Ok((Self { column, json_key: None }, rest)) };
        let (key, rest) = identifier::take(rest)?;
        Ok((Self { column, json_key: Some(key) }, rest))
    }
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
        for wrong in ["", "a||b", "a\"b", "?", "a?b", "a?|b", "a.b.c"] {
            assert!(ColumnChoice::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn marks_in_double_quotes_are_letters_of_a_name() {
        let choice = ColumnChoice::parse(r#""what?"|"a|b"."c.d"?"#).unwrap();
        assert!(choice.optional);
        assert_eq!(choice.candidates[0], Candidate { column: "what?".into(), json_key: None });
        assert_eq!(choice.candidates[1], Candidate { column: "a|b".into(), json_key: Some("c.d".into()) });
    }
}
