//! `${VAR}` and its kin, in values.
//!
//! Only parsed scalars are expanded, never the text of the file: what a variable holds can't add keys. What comes out
//! is a string; the walk over the table types it by what the key wants, so that a port becomes a number and a key made of
//! digits keeps its leading zeros.

use std::{collections::BTreeMap, fs};

use figment::value::{Dict, Value};

use crate::Mistake;

/// What the variables are.
pub(crate) type Variables = BTreeMap<String, String>;

/// Expands every string below `dict`, reporting what can't be.
pub(crate) fn expand(dict: &mut Dict, variables: &Variables, mistakes: &mut Vec<Mistake>) {
    for (key, value) in dict {
        expand_value(value, key, variables, mistakes);
    }
}

fn expand_value(value: &mut Value, path: &str, variables: &Variables, mistakes: &mut Vec<Mistake>) {
    match value {
        Value::String(_, text) if text.contains("${") => match expand_text(text, variables) {
            Ok(expanded) => *text = expanded,
            Err(message) => {
                mistakes.push(Mistake::new(path, message));
                // Gone, so that the unexpanded text is not complained about once more.
                *value = Value::Empty(value.tag(), figment::value::Empty::None);
            }
        },
        Value::Dict(_, dict) => {
            for (key, value) in dict {
                expand_value(value, &format!("{path}.{key}"), variables, mistakes);
            }
        }
        Value::Array(_, list) => {
            for (index, value) in list.iter_mut().enumerate() {
                expand_value(value, &format!("{path}[{index}]"), variables, mistakes);
            }
        }
        _ => {}
    }
}

fn expand_text(text: &str, variables: &Variables) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        // `$${` is a literal `${`.
        if let Some(before) = rest[..at].strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let inner = &rest[at + 2..];
        let end = closing_brace(inner).ok_or("`${` is not closed by `}`; a literal one is written `$${`")?;
        out.push_str(&resolve(&inner[..end], variables)?);
        rest = &inner[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the brace that opened before `text` closes; a default may hold references of its own.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut before = b' ';
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' if before == b'$' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
        before = byte;
    }
    None
}

fn resolve(reference: &str, variables: &Variables) -> Result<String, String> {
    if let Some(path) = reference.strip_prefix("file:") {
        let mut content = fs::read_to_string(path).map_err(|error| format!("can't read the file {path}: {error}"))?;
        let trimmed = content.trim_end_matches(['\n', '\r']).len();
        content.truncate(trimmed);
        return Ok(content);
    }
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let legal = |name: &str| {
        name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    if name.is_empty() || !legal(name) {
        return Err(
            "`${...}` must hold the name of a variable, NAME:-default, or file:/path; a literal `${` is written \
                    `$${`"
                .into(),
        );
    }
    match (variables.get(name).filter(|value| default.is_none() || !value.is_empty()), default) {
        (Some(value), _) => Ok(value.clone()),
        (None, Some(default)) => expand_text(default, variables),
        (None, None) => {
            Err(format!("the environment variable {name} is not set; set it, or write ${{{name}:-default}}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        [("HOST", "vllm"), ("PORT", "8000"), ("EMPTY", ""), ("TRICK", "${HOST}")]
            .map(|(k, v)| (k.into(), v.into()))
            .into()
    }

    fn check(text: &str, expected: &str) {
        assert_eq!(expand_text(text, &variables()).as_deref(), Ok(expected), "{text}");
    }

    #[test]
    fn variables_defaults_and_literals_expand() {
        check("http://${HOST}:${PORT}", "http://vllm:8000");
        check("${NONE:-x}", "x");
        check("${EMPTY:-x}", "x");
        check("[${EMPTY}]", "[]");
        check("${NONE:-http://${HOST}}", "http://vllm");
        check("${NONE:-}", "");
        check("$${HOST} costs $5", "${HOST} costs $5");
        check("no reference", "no reference");
    }

    #[test]
    fn what_a_variable_holds_is_not_expanded_again() {
        check("${TRICK}", "${HOST}");
    }

    #[test]
    fn an_unset_variable_is_a_mistake_that_names_it() {
        let error = expand_text("${NOT_SET}", &variables()).unwrap_err();
        assert!(error.contains("NOT_SET") && error.contains(":-"), "{error}");
    }

    #[test]
    fn what_is_no_reference_is_a_mistake() {
        for text in ["${", "${HOST", "${}", "${a b}", "${1X}", "${:-x}"] {
            assert!(expand_text(text, &variables()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_comes_from_a_file_without_its_last_newline() {
        let path = std::env::temp_dir().join(format!("llmproxy-config-secret-{}", std::process::id()));
        fs::write(&path, "s3cret\n").unwrap();
        check(&format!("${{file:{}}}", path.display()), "s3cret");
        fs::remove_file(&path).unwrap();
        let error = expand_text("${file:/no/such/file}", &variables()).unwrap_err();
        assert!(error.contains("/no/such/file"), "{error}");
    }
}
