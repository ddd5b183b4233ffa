//! What a request asks for in its query: a realtime session has no body to ask in.

use std::sync::Arc;

use form_urlencoded::parse;

use crate::{InspectError, facts::MAX_MODEL};

/// The model that the query names.
///
/// # Errors
///
/// If it names more than one, or the name is too long.
pub(crate) fn model(query: Option<&str>) -> Result<Option<Arc<str>>, InspectError> {
    let mut names = parse(query.unwrap_or_default().as_bytes()).filter(|(key, _)| key == "model");
    let Some((_, model)) = names.next() else { return Ok(None) };
    if names.next().is_some() {
        return Err(InspectError::Duplicate { param: "model" });
    }
    if model.len() > MAX_MODEL {
        return Err(InspectError::WrongType { param: "model", expected: "a name of at most 512 bytes" });
    }
    Ok(Some(model.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_read_as_servers_read_it() {
        let check = |query: &str, expected: Option<&str>| {
            assert_eq!(model(Some(query)).ok().flatten().as_deref(), expected, "{query}");
        };
        check("model=gpt-realtime", Some("gpt-realtime"));
        check("intent=x&model=qwen%2Fomni+7b", Some("qwen/omni 7b"));
        check("mod%65l=a", Some("a"));
        check("model=", Some(""));
        check("Model=a", None);
        check("x=model", None);
        check("", None);
        check("model=a&mod%65l=b", None);
        assert_eq!(model(None).expect("clear"), None);
        assert!(matches!(model(Some("model=a&model=a")), Err(InspectError::Duplicate { .. })));
        assert!(matches!(model(Some(&format!("model={}", "m".repeat(513)))), Err(InspectError::WrongType { .. })));
    }
}
