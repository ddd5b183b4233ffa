//! What is found in an object, however it is split.

use super::{super::openai::NAMES, *};

fn members(pieces: &[&[u8]]) -> Vec<(Member, String)> {
    let mut scanner = TopLevel::new(&NAMES);
    let mut members = Vec::new();
    for piece in pieces {
        scanner.feed(piece, |member, value| members.push((member, String::from_utf8_lossy(value).into_owned())));
    }
    members
}

const ANSWER: &str = r#" {"id" : "chatcmpl-1","object":"chat.completion","choices":[{"index":0,"message":
    {"role":"assistant","content":"a \"usage\":{} \\"},"usage":{"prompt_tokens":99}}],"usage_x":1,"x":"usage",
    "usage": {"prompt_tokens":5,"details":{"a":[1,"}",2]}},"model":"m\"n" ,"timings":null}"#;

#[test]
fn members_at_the_top_are_found_at_any_split() {
    let expected = members(&[ANSWER.as_bytes()]);
    assert_eq!(expected.len(), 5);
    assert_eq!(expected[0], (Member::Id, r#""chatcmpl-1""#.into()));
    assert_eq!(expected[1], (Member::Index, "0".into()));
    assert_eq!(expected[2], (Member::Usage, r#"{"prompt_tokens":5,"details":{"a":[1,"}",2]}}"#.into()));
    assert_eq!(expected[3], (Member::Model, r#""m\"n""#.into()));
    assert_eq!(expected[4], (Member::Timings, "null".into()));
    for at in 0..ANSWER.len() {
        let (head, tail) = ANSWER.as_bytes().split_at(at);
        assert_eq!(members(&[head, tail]), expected, "{at}");
    }
    let bytes: Vec<&[u8]> = ANSWER.as_bytes().chunks(1).collect();
    assert_eq!(members(&bytes), expected);
}

#[test]
fn a_value_that_is_too_large_is_given_up_and_the_next_is_found() {
    let json = format!(r#"{{"usage":{{"x":"{}"}},"id":"1"}}"#, "y".repeat(20_000));
    assert_eq!(members(&[json.as_bytes()]), [(Member::Id, r#""1""#.into())]);
}

/// At every split.
fn check(scanner: fn(&'static Names) -> TopLevel, json: &str, expected: &[(Member, &str)]) {
    const NESTED: Names =
        Names { top: &[("type", Member::Kind)], inside: Some(("message", &[("id", Member::Id)])), in_list: false };
    let expected: Vec<_> = expected.iter().map(|(member, text)| (*member, (*text).to_owned())).collect();
    for at in 0..=json.len() {
        let (head, tail) = json.as_bytes().split_at(at);
        let (mut scanner, mut found) = (scanner(&NESTED), Vec::new());
        for piece in [head, tail] {
            scanner.feed(piece, |member, value| found.push((member, String::from_utf8_lossy(value).into_owned())));
        }
        assert_eq!(found, expected, "{json}");
    }
}

#[test]
fn members_of_the_object_inside_are_found_and_those_of_no_other() {
    let check = |json: &str, expected: &[(Member, &str)]| check(TopLevel::new, json, expected);
    let (id, kind) = ((Member::Id, "1"), (Member::Kind, "2"));
    check(r#"{"id":0,"message" : {"type":0,"id":1} ,"type":2}"#, &[id, kind]);
    check(r#"{"type":2,"message":{"x":{"id":0},"message":{"id":0},"id":1}}"#, &[kind, id]);
    check(r#"{"message":null,"x":{"id":0},"type":2}"#, &[kind]);
    check(r#"{"message":"{","x":{"id":0},"type":2}"#, &[kind]);
    check(r#"{"message":[{"id":0}],"x":{"message":{"id":0}},"type":2}"#, &[kind]);
    check(r#"{"message":{},"id":0,"type":2}{"type":0}"#, &[kind]);
    // As an event stands in a stream.
    check("event: a\ndata: {\"type\":2,\"message\":{\"id\":1}}\n\n", &[kind, id]);
}

#[test]
fn members_of_each_choice_are_found() {
    let check = |json: &str, expected: &[(Member, &str)]| {
        check(|_| TopLevel::new(&super::super::openai::EVENT_NAMES), json, expected);
    };
    let (index, usage) = ((Member::Index, "3"), (Member::Usage, "{}"));
    check(r#"{"choices" : [ {"delta":{"index":0},"index":3} ] ,"usage":{}}"#, &[index, usage]);
    let next = (Member::Index, "4");
    check(r#"{"usage":{},"choices":[{"index":3},{"index":4,"usage":1}]}"#, &[usage, index, next]);
    check(r#"{"choices":[{"index":3} , {"x":[{"index":0}],"index":4}],"index":0,"usage":{}}"#, &[index, next, usage]);
    check(r#"{"choices":[],"index":0,"usage":{}}"#, &[usage]);
    check(r#"{"choices":[1,"{",{"index":3}],"usage":{}}"#, &[index, usage]);
    check(r#"{"choices":null,"x":[{"index":0}],"usage":{}}"#, &[usage]);
    check(r#"{"choices":{"index":3},"usage":{}}"#, &[index, usage]);
}

#[test]
fn members_of_a_list_of_objects_are_found_where_one_may_be() {
    let check = |json: &str, expected: &[(Member, &str)]| check(TopLevel::of_any, json, expected);
    let (id, kind, item) = ((Member::Id, "1"), (Member::Kind, "2"), (Member::Item, ""));
    check(r#" [ {"type":2} , {"message":{"id":1}},{}]{"type":0}"#, &[kind, item, id, item, item]);
    check(r#"[{"message":3},{"type":2,"x":[{"type":0}]}]"#, &[item, kind, item]);
    check(r#"{"type":2}"#, &[kind]);
    for none in ["[]", "[[{\"type\":0}]]", r#"["type",{"type":0}]"#, "[1,{\"type\":0}]"] {
        check(none, &[]);
    }
}

#[test]
fn vectors_are_skipped() {
    let numbers = "-0.0123,".repeat(10_000);
    let json = format!(r#"{{"data":[{{"embedding":[{numbers}1]}}],"usage":{{"prompt_tokens":3}}}}"#);
    assert_eq!(members(&[json.as_bytes()]), [(Member::Usage, r#"{"prompt_tokens":3}"#.into())]);
}

#[test]
fn what_is_no_object_has_no_members() {
    for text in ["", "null", "[]", r#"["usage",{"usage":1}]"#, "}}}", "]", "<html>", r#""usage""#, ":,:,", "{\"usage"] {
        assert_eq!(members(&[text.as_bytes()]), [], "{text}");
    }
}
