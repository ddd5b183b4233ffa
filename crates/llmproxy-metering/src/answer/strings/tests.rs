//! Texts at any split, whole and not.

use super::*;
use crate::answer::Dialect;

fn anywhere() -> Strings {
    Strings::new(Places::of_event(Dialect::Chat))
}

fn texts(pieces: &[&[u8]]) -> Vec<String> {
    let mut strings = anywhere();
    let (mut all, mut current) = (Vec::new(), String::new());
    for piece in pieces {
        strings.feed(piece, |piece| match piece {
            Piece::Text(text) => current.push_str(text),
            Piece::End => all.push(std::mem::take(&mut current)),
        });
    }
    if !current.is_empty() {
        all.push(current);
    }
    all
}

fn check(json: &str, expected: &[&str]) {
    for at in 0..=json.len() {
        let (head, tail) = json.as_bytes().split_at(at);
        assert_eq!(texts(&[head, tail]), expected, "{json} at {at}");
    }
    let bytes: Vec<&[u8]> = json.as_bytes().chunks(1).collect();
    assert_eq!(texts(&bytes), expected, "{json}");
}

#[test]
fn texts_are_found_at_any_split_and_nothing_else_is() {
    check(r#"{"id":"content","choices":[{"message":{"role":"a","content" : "Hi \"you\""}}]}"#, &["Hi \"you\""]);
    check(r#"{"content":null,"text":"b","x":"text","content":["text","n"],"text":7}"#, &["b"]);
    check(r#"{"reasoning_content":"hm","content":"","contents":"no","a_content":"no"}"#, &["hm", ""]);
    check(r#"{"a_key_longer_than_all_others":"x","text":"y"}"#, &["y"]);
    check(r#"{"content":[{"type":"text","text":"part"},{"type":"text","text":"two"}]}"#, &["part", "two"]);
}

#[test]
fn calls_of_tools_are_noticed_at_any_split() {
    let check = |json: &str, expected| {
        for at in 0..=json.len() {
            let mut strings = anywhere();
            let (head, tail) = json.as_bytes().split_at(at);
            strings.feed(head, |_| {});
            strings.feed(tail, |_| {});
            assert_eq!(strings.has_calls(), expected, "{json} at {at}");
        }
    };
    check(r#"{"content":null,"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}"#, true);
    check(r#"{"content":"a","tool_calls":[{"function":{"name":"f","arguments" : {"city":"b"}}}]}"#, true);
    check(r#"{"content":"\"arguments\":\"","tool_calls":[]}"#, false);
    check(r#"{"content":"a","arguments":null,"x":"arguments"}"#, false);
}

#[test]
fn escapes_stand_for_what_they_mean() {
    check(r#"{"text":"a\n\t\\\/\u00e9\ud83d\ude00z"}"#, &["a\n\t\\/é😀z"]);
    check(r#"{"text":"Grüße, 世界 😀"}"#, &["Grüße, 世界 😀"]);
    // Halves of pairs.
    check(r#"{"text":"\ud83dx"}"#, &["\u{fffd}x"]);
    check(r#"{"text":"\ud83d\n"}"#, &["\u{fffd}\n"]);
    check(r#"{"text":"\ude00\ud83d\ud83d\ude00"}"#, &["\u{fffd}\u{fffd}😀"]);
    check(r#"{"te\u0078t":"no","text":"yes"}"#, &["yes"]);
}

#[test]
fn a_text_that_breaks_off_is_what_came_of_it() {
    assert_eq!(texts(&[br#"{"text":"abc"#]), ["abc"]);
    assert_eq!(texts(&[br#"{"text":"abc\u00"#]), ["abc"]);
    assert_eq!(texts(&[b"{\"text\":\"abc\xe4\xb8"]), ["abc"]);
    assert_eq!(texts(&[b"{\"text\":\"a\xffb\"}"]), ["ab"]);
}

#[test]
fn what_is_not_whole_is_known() {
    let check = |json: &[u8], is_mended, is_over| {
        for at in 0..=json.len() {
            let mut strings = anywhere();
            strings.feed(&json[..at], |_| {});
            strings.feed(&json[at..], |_| {});
            let found = (strings.is_mended(), strings.is_over());
            assert_eq!(found, (is_mended, is_over), "{} at {at}", String::from_utf8_lossy(json));
        }
    };
    check(r#"{"text":"é\ud83d\ude00","x":["{"]}"#.as_bytes(), false, true);
    check(br#"{"x":"\ud83d"}"#, false, true);
    check(br#"{"text":"\ud83d"}"#, true, true);
    check(br#"{"text":"\ude00"}"#, true, true);
    check(b"{\"text\":\"a\xffb\"}", true, true);
    check(b"{\"text\":\"a\xe4\xb8\"}", true, true);
    check(br#"{"text":"a""#, false, false);
    check(br#"{"arguments":{"a":1}"#, false, false);
    check(b"not found", false, false);
    check(b"", false, false);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut strings = anywhere();
    let (long, mut length) = (format!(r#"{{"text":"{}"}}"#, "é".repeat(1 << 20)), 0);
    strings.feed(long.as_bytes(), |piece| {
        if let Piece::Text(text) = piece {
            assert!(text.len() <= MAX_DECODED + 4);
            length += text.len();
        }
    });
    assert_eq!(length, 2 << 20);
    assert!(strings.decoded.capacity() <= 4 * MAX_DECODED);
}
