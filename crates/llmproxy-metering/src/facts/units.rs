//! How much is asked for where tokens are not the measure.

use std::borrow::Cow;

use llmproxy_core::{Endpoint, UnitKind, Units, Work};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::Members;

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// What JSON asks `endpoint` for.
pub(super) fn of(endpoint: Endpoint, members: &Members<'_>) -> Option<Units> {
    let (kind, count) = match endpoint.template() {
        _ if makes_images(endpoint) => return images(endpoint, members.n),
        "/v1/audio/speech" => (UnitKind::Characters, characters(members.input?)?),
        "/v1/rerank" | "/rerank" | "/v1/score" | "/score" => (UnitKind::Documents, texts(members.documents?)?),
        _ if endpoint.work() == Work::Embedding => (UnitKind::Inputs, texts(members.input?)?),
        _ => return None,
    };
    Some(Units { kind, count })
}

/// So many images, or one where nothing is said; `None` where `endpoint` makes none.
pub(crate) fn images(endpoint: Endpoint, n: Option<u64>) -> Option<Units> {
    makes_images(endpoint).then_some(Units { kind: UnitKind::Images, count: n.unwrap_or(1) })
}

fn makes_images(endpoint: Endpoint) -> bool {
    matches!(endpoint.template(), "/v1/images/generations" | "/v1/images/edits" | "/v1/images/variations")
}

fn characters(text: &RawValue) -> Option<u64> {
    let Text(text) = serde_json::from_str(text.get()).ok()?;
    Some(text.chars().count() as u64)
}

/// How many texts there are: one, or a list of some. A list of numbers is one text in tokens.
pub(super) fn texts(value: &RawValue) -> Option<u64> {
    let Some(inside) = value.get().strip_prefix('[') else { return (value.get() != "null").then_some(1) };
    if inside.trim_ascii_start().starts_with(|first: char| first.is_ascii_digit()) {
        return Some(1);
    }
    let texts: Vec<IgnoredAny> = serde_json::from_str(value.get()).ok()?;
    Some(texts.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, body: &str, expected: Option<(UnitKind, u64)>) {
        let (call, _) = super::super::find(Endpoint::of(path), body.as_bytes()).expect(body);
        assert_eq!(call.units.map(|units| (units.kind, units.count)), expected, "{path} {body}");
    }

    #[test]
    fn images_are_counted_by_their_number() {
        for path in ["/v1/images/generations", "/v1/images/edits", "/v1/images/variations"] {
            check(path, r#"{"prompt":"a cat","n":3}"#, Some((UnitKind::Images, 3)));
            check(path, r#"{"prompt":"a cat"}"#, Some((UnitKind::Images, 1)));
            check(path, r#"{"prompt":"a cat","n":null}"#, Some((UnitKind::Images, 1)));
        }
        check("/v1/chat/completions", r#"{"messages":[],"n":3}"#, None);
    }

    #[test]
    fn what_is_read_out_is_counted_by_its_characters() {
        let path = "/v1/audio/speech";
        check(path, r#"{"input":"Grüße"}"#, Some((UnitKind::Characters, 5)));
        check(path, r#"{"input":"Gr\u00fc\u00dfe\n"}"#, Some((UnitKind::Characters, 6)));
        check(path, r#"{"input":""}"#, Some((UnitKind::Characters, 0)));
        check(path, r#"{"input":["a"]}"#, None);
        check(path, "{}", None);
    }

    #[test]
    fn what_is_ranked_or_scored_is_counted_by_its_documents() {
        for path in ["/v1/rerank", "/rerank"] {
            check(path, r#"{"query":"q","documents":["a",{"text":"b"}]}"#, Some((UnitKind::Documents, 2)));
            check(path, r#"{"query":"q","texts":["a","b","c"]}"#, Some((UnitKind::Documents, 3)));
            check(path, r#"{"query":"q","documents":[]}"#, Some((UnitKind::Documents, 0)));
        }
        check("/v1/score", r#"{"text_1":"q","text_2":["a","b"]}"#, Some((UnitKind::Documents, 2)));
        check("/score", r#"{"text_1":"q","text_2":"a"}"#, Some((UnitKind::Documents, 1)));
        check("/v1/score", r#"{"text_1":"q","text_2":null}"#, None);
    }

    #[test]
    fn what_is_embedded_is_counted_by_its_texts() {
        let path = "/v1/embeddings";
        check(path, r#"{"input":"a"}"#, Some((UnitKind::Inputs, 1)));
        check(path, r#"{"input":["a","b"]}"#, Some((UnitKind::Inputs, 2)));
        check(path, r#"{"input":[ 1, 2, 3]}"#, Some((UnitKind::Inputs, 1)));
        check(path, r#"{"input":[ [1,2],[3]]}"#, Some((UnitKind::Inputs, 2)));
        check(path, r#"{"input":[]}"#, Some((UnitKind::Inputs, 0)));
        check("/embed", r#"{"inputs":["a","b"]}"#, Some((UnitKind::Inputs, 2)));
        check("/api/embed", r#"{"model":"m","input":"a"}"#, Some((UnitKind::Inputs, 1)));
        check("/api/embeddings", r#"{"model":"m","prompt":"a"}"#, Some((UnitKind::Inputs, 1)));
    }
}
