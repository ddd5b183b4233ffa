//! Forms as they are and as they should not be, whole and in pieces.

use http::HeaderValue;
use proptest::prelude::*;

use super::*;

const FILE: &str = "Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav";

fn field(name: &str) -> String {
    format!("Content-Disposition: form-data; name=\"{name}\"")
}

/// A form of these heads and bodies, its boundary `b`.
fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut form = Vec::new();
    for (head, body) in parts {
        form.extend_from_slice(format!("--b\r\n{head}\r\n\r\n").as_bytes());
        form.extend_from_slice(body);
        form.extend_from_slice(b"\r\n");
    }
    form.extend_from_slice(b"--b--\r\n");
    form
}

fn scanner() -> Scanner {
    let headers = [(CONTENT_TYPE, HeaderValue::from_static("multipart/form-data; boundary=b"))].into_iter().collect();
    Scanner::new(&headers).expect("clear").expect("a form")
}

fn scan<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Scanner {
    let mut scanner = scanner();
    for piece in pieces {
        scanner.feed(piece);
        assert!(scanner.pending.len() <= MAX_HEAD + MAX_VALUE + 64, "what is kept is bounded");
    }
    scanner
}

/// What a form says, fed whole and byte by byte.
fn found(form: &[u8]) -> Option<Found> {
    let whole = scan([form]);
    let bytes = scan(form.chunks(1));
    assert_eq!((whole.found(), whole.state), (bytes.found(), bytes.state), "{}", String::from_utf8_lossy(form));
    (!whole.is_lost()).then(|| whole.found().clone())
}

#[test]
fn the_model_is_found_with_its_place() {
    let body = form(&[(&field("model"), b"whisper-1"), (&field("stream"), b"True"), (FILE, b"RIFF\r\n--\r\n")]);
    let found = found(&body).expect("clear");
    assert_eq!((found.model.as_deref(), found.stream, found.is_duplicate), (Some("whisper-1"), Some(true), false));
    assert_eq!(&body[found.model_at.expect("a place")], b"whisper-1");
}

#[test]
fn it_is_settled_where_a_file_begins() {
    let mut scanner = scanner();
    scanner.feed(format!("--b\r\n{}\r\n\r\nm\r\n--b\r\n{FILE}\r\n\r", field("model")).as_bytes());
    assert!(!scanner.is_settled());
    scanner.feed(b"\n");
    assert!(scanner.is_settled() && !scanner.is_lost());
    assert_eq!(scanner.found().model.as_deref(), Some("m"));
}

#[test]
fn a_model_that_is_there_twice_is_seen_however_late() {
    let model = field("model");
    let body = form(&[(&model, b"a"), (FILE, &[b'x'; 100_000]), (&model, b"b")]);
    assert!(found(&body).expect("clear").is_duplicate);
    assert!(found(&form(&[(&model, b"a"), (&model, b"a")])).expect("clear").is_duplicate);
    assert_eq!(found(&form(&[(FILE, b"x"), (&model, b"b")])), Some(Found::default()));
}

#[test]
fn empty_values_are_values() {
    assert_eq!(found(&form(&[(&field("model"), b"")])).expect("clear").model.as_deref(), Some(""));
    assert_eq!(
        found(&form(&[(&field("a"), b""), (&field("model"), b"m")])).expect("clear").model.as_deref(),
        Some("m")
    );
}

#[test]
fn what_servers_read_in_different_ways_is_given_up() {
    let model = field("model");
    let check = |body: &str| assert_eq!(found(body.as_bytes()), None, "{body:?}");
    // Line feeds alone, which Go's reader takes.
    check(&format!("--b\n{model}\n\nm\n--b--\n"));
    check(&format!("--b\r\n{model}\n\nm\r\n--b--\r\n"));
    check(&format!("--b\r\n{model}\r\n\r\nm\n--b--\r\n"));
    // A delimiter right behind the head, which Go's reader takes for an empty part.
    check(&format!("--b\r\n{}\r\n\r\n--b\r\n{model}\r\n\r\nm\r\n--b--\r\n", field("a")));
    check(&format!("--b\r\n{}\r\n\r\n\n--b\r\n{model}\r\n\r\nm\r\n--b--\r\n", field("a")));
    let known = format!("--b\r\n{model}\r\n\r\nm\r\n--b\r\n{FILE}\r\n\r\nx");
    check(&format!("{known}\n--b\r\n{model}\r\n\r\nn\r\n--b--\r\n"));
    check(&format!("{known}\r\n--b\r\n{model}\n\nn\r\n--b--\r\n"));
    // Carriage returns alone, which Werkzeug takes.
    let hidden = format!("\r--b\r{model}\r\rn");
    check(&format!("--b\r\n{}\r\n\r\nx{hidden}\r\n--b\r\n{model}\r\n\r\nm\r\n--b--\r\n", field("prompt")));
    check(&format!("--b\r\n{}\r\n\r\n{hidden}\r\n--b--\r\n", field("prompt")));
    check(&format!("{known}{hidden}\r\n--b--\r\n"));
    check(&format!("--b\r{model}\r\rm\r--b--\r"));
    check(&format!("{known}\r\n--b\r\n{model}\r\rn"));
    // A delimiter that ends the form to some and not to others, with more behind it.
    check(&format!("{known}\r\n--b--x\r\n--b\r\n{model}\r\n\r\nn\r\n--b--\r\n"));
    check(&format!("{known}\r\n--b--\r\n--b\r\n{model}\r\n\r\nn\r\n--b--\r\n"));
    for tricky in [
        "name=<model>",
        "x=\"\\\\\"; name=\"foo\"; y=\"; name=model; z=\"",
        "name=\"foo\"; filename=\"a\\\"; name=model; b\"",
    ] {
        let part = format!("--b\r\nContent-Disposition: form-data; {tricky}\r\n\r\nn\r\n--b--\r\n");
        check(&format!("--b\r\n{model}\r\n\r\nm\r\n{part}"));
        check(&format!("{known}\r\n{part}"));
        check(&part);
    }
    // White space behind a delimiter, and another boundary that begins like this one.
    check(&format!("--b \r\n{model}\r\n\r\nm\r\n--b--\r\n"));
    check(&format!("--b\r\n{model}\r\n\r\nm\r\n--bc\r\n"));
    check(&format!("--b\r\n{model}\r\n\r\n{}\r\n--b--\r\n", "m".repeat(MAX_VALUE + 1)));
    check(&format!("--b\r\nX: {}\r\n{model}\r\n\r\nm\r\n--b--\r\n", "x".repeat(MAX_HEAD)));
}

#[test]
fn nothing_is_kept_of_what_does_not_matter() {
    let mut scanner = scanner();
    scanner.feed(format!("--b\r\n{}\r\n\r\n", field("prompt")).as_bytes());
    for _ in 0..100 {
        scanner.feed(&[b'\n'; 10_000]);
        assert!(scanner.pending.len() <= scanner.keep());
    }
    assert!(!scanner.is_settled());
}

#[test]
fn of_what_does_not_begin_as_a_form_nothing_is_known() {
    for body in ["0123456789", "--c\r\n", "preamble\r\n--b\r\n", "\r\n--b\r\n"] {
        assert_eq!(found(body.as_bytes()), Some(Found::default()), "{body}");
    }
}

#[test]
fn forms_of_ordinary_clients_keep_their_model() {
    let model = field("model");
    let encoded = |encoding: &str| format!("{model}\r\nContent-Type: text/plain; charset=utf-8\r\n{encoding}");
    let file =
        "Content-Disposition: form-data; name=\"file\"; filename=\"a\\\"b.wav\"\r\nContent-Transfer-Encoding: binary";
    for head in [model.clone(), encoded("Content-Transfer-Encoding: 8bit"), encoded("content-transfer-encoding: 7bit")]
    {
        for parts in [[(head.as_str(), &b"m"[..]), (file, b"RIFF")], [(&head, b"m"), (FILE, b"\r-\r--\n--")]] {
            assert_eq!(found(&form(&parts)).expect("clear").model.as_deref(), Some("m"), "{parts:?}");
        }
    }
    let behind = form(&[(&model, b"m"), (file, b"RIFF"), (&encoded("Content-Transfer-Encoding: 8bit"), b"m")]);
    assert!(found(&behind).expect("clear").is_duplicate);
}

#[test]
fn what_stands_behind_a_file_or_an_end_never_counts() {
    let body = form(&[(&field("model"), b"m"), (FILE, b"x"), (&field("stream"), b"true")]);
    assert_eq!(found(&body).expect("clear").stream, None);
    let body = [form(&[(&field("a"), b"x")]), form(&[(&field("model"), b"m")])].concat();
    assert_eq!(found(&body), Some(Found::default()));
}

/// Bytes of which delimiters are made, so that much comes close to being one.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(b"\r\n-bx".to_vec()), 0..40)
}

fn holds_delimiter(body: &[u8]) -> bool {
    // As the scanner sees it: behind the head's line feed, before the delimiter that ends the part.
    let around = [b"\n", body, b"\r"].concat();
    around.windows(4).any(|window| matches!(window, b"\n--b" | b"\r--b"))
}

proptest! {
    #[test]
    fn every_split_finds_the_same(
        prompt in nearly(),
        file in nearly(),
        after in nearly(),
        model in "[a-z0-9/:.-]{0,20}",
        cuts in prop::collection::vec(1usize..30, 1..40),
    ) {
        prop_assume!(![&prompt, &file, &after].iter().any(|body| holds_delimiter(body)));
        let body = form(&[
            (&field("prompt"), &prompt),
            (&field("model"), model.as_bytes()),
            (FILE, &file),
            (&field("language"), &after),
        ]);
        let mut pieces = Vec::new();
        let mut rest = body.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, more) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = more;
        }
        let scanner = scan(pieces);
        prop_assert_eq!(scanner.state, State::End);
        prop_assert_eq!(scanner.found().model.as_deref(), Some(model.as_str()));
        prop_assert_eq!(&body[scanner.found().model_at.clone().expect("a place")], model.as_bytes());
    }

    #[test]
    fn any_bytes_are_read_alike_however_they_are_split(body in nearly(), cut in 0usize..60) {
        let body = [format!("--b\r\n{}\r\n\r\n", field("model")).as_bytes(), &body].concat();
        let (one, other) = body.split_at(cut.min(body.len()));
        let (split, whole) = (scan([one, other]), scan([body.as_slice()]));
        prop_assert_eq!(split.state, whole.state);
        prop_assert_eq!(split.found(), whole.found());
    }
}

#[test]
fn how_many_are_to_be_made_is_found_before_the_file() {
    let check = |values: &[&[u8]], expected: Option<u64>| {
        let name = field("n");
        let mut parts: Vec<(&str, &[u8])> = values.iter().map(|value| (&*name, *value)).collect();
        let model = field("model");
        parts.extend([(&*model, &b"m"[..]), (FILE, b"RIFF"), (&*name, b"9")]);
        assert_eq!(found(&form(&parts)).expect("clear").number, expected);
    };
    check(&[b"3"], Some(3));
    check(&[b" 3 "], Some(3));
    check(&[b"3", b"4", b"2"], Some(4));
    check(&[b"many"], None);
    check(&[b"\xff"], None);
    check(&[&[b'1'; 2000]], None);
    check(&[], None);
    let without_model = form(&[(&field("n"), b"3"), (FILE, b"PNG")]);
    assert_eq!(scan([&*without_model]).found().number, Some(3));
}
