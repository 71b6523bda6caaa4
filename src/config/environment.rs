//! `${X}` in strings: what the environment fills in.

use super::raw::Environment;

/// Fills in `${X}` and `${X:-default}`; `$${` is a literal `${`. The error names the variable, never a value.
pub(super) fn fill(text: &str, environment: Environment) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            filled.push_str(before);
            filled.push_str("${");
            rest = &from[2..];
            continue;
        }
        filled.push_str(before);
        let (inside, after) = from[2..].split_once('}').ok_or("`${` is never closed; write `$${` for a literal one")?;
        filled.push_str(&variable(inside, environment)?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// As in a shell, an empty variable takes the default.
fn variable(inside: &str, environment: Environment) -> Result<String, String> {
    let (name, default) = inside.split_once(":-").map_or((inside, None), |(name, default)| (name, Some(default)));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(plain) {
        return Err(format!("`${{{name}}}` does not name a variable; write `$${{` for a literal `${{`"));
    }
    match (environment(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            Err(format!("the environment variable {name} is not set; set it, or write ${{{name}:-a default}}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, &str>) {
        let environment = |name: &str| match name {
            "X" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        assert_eq!(fill(text, &environment).as_deref().map_err(String::as_str), expected, "{text}");
    }

    #[test]
    fn variables_are_filled_in() {
        check("a ${X} b ${X}", Ok("a value b value"));
        check("${EMPTY}", Ok(""));
        check("${EMPTY:-4}${NONE:-}${NONE:-a b}", Ok("4a b"));
        check("$1 $$ {X} $$${X}", Ok("$1 $$ {X} $${X}"));
        check("$${X} costs $${", Ok("${X} costs ${"));
    }

    #[test]
    fn what_cannot_be_filled_in_is_named() {
        check("${NONE}", Err("the environment variable NONE is not set; set it, or write ${NONE:-a default}"));
        check("${X", Err("`${` is never closed; write `$${` for a literal one"));
        check("${a b}", Err("`${a b}` does not name a variable; write `$${` for a literal `${`"));
        check("${}", Err("`${}` does not name a variable; write `$${` for a literal `${`"));
    }
}
