//! The scanner against a plain reader of the standard.

use proptest::prelude::*;

use super::*;

type Plain = (Option<Vec<u8>>, Vec<u8>);

/// A reader as simple as can be, over the whole text: the events, and whether something follows the last one.
fn reference(text: &[u8]) -> (Vec<Plain>, Option<Plain>, bool) {
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    let mut lines: Vec<Vec<u8>> = vec![vec![]];
    for (i, &byte) in text.iter().enumerate() {
        match byte {
            b'\n' if i > 0 && text[i - 1] == b'\r' => {}
            b'\n' | b'\r' => lines.push(vec![]),
            _ => lines.last_mut().unwrap().push(byte),
        }
    }
    let unfinished = lines.pop().unwrap();
    let mut events = Vec::new();
    let (mut name, mut data, mut any): (Vec<u8>, Option<Vec<u8>>, bool) = (vec![], None, false);
    for (line, terminated) in lines.iter().map(|line| (line, true)).chain([(&unfinished, false)]) {
        if line.is_empty() && terminated {
            let name = std::mem::take(&mut name);
            events.push(((!name.is_empty()).then_some(name), data.take().unwrap_or_default()));
            any = false;
            continue;
        }
        any |= terminated || !line.is_empty();
        let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
        let mut value = line.get(colon + 1..).unwrap_or_default();
        if value.first() == Some(&b' ') {
            value = &value[1..];
        }
        match &line[..colon] {
            b"event" => name = value.to_vec(),
            b"data" => match &mut data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend(value);
                }
                None => data = Some(value.to_vec()),
            },
            _ => {}
        }
    }
    (events, data.map(|data| ((!name.is_empty()).then_some(name), data)), any)
}

fn scan(chunks: &[&[u8]]) -> (Vec<Plain>, Scanner) {
    let (mut scanner, mut events, mut text) = (Scanner::new(), Vec::new(), Vec::new());
    for chunk in chunks {
        let before = text.len();
        text.extend_from_slice(chunk);
        scanner.feed(chunk, |event| {
            assert!(!event.truncated);
            events.push((event.name.map(<[u8]>::to_vec), event.data.to_vec()));
            // What was fed up to the event's end is, for a reader, these events and nothing else.
            let (read, _, mid) = reference(&text[..before + event.end]);
            assert_eq!((read, mid), (events.clone(), false));
        });
        let (_, _, mid) = reference(&text);
        assert_eq!(scanner.is_mid_event(), mid || text == b"\xEF" || text == b"\xEF\xBB" || text == Scanner::BOM);
    }
    (events, scanner)
}

fn check_chunks(text: &[u8], chunks: &[&[u8]]) {
    let (expected, unterminated, _) = reference(text);
    let (events, mut scanner) = scan(chunks);
    assert_eq!(events, expected);
    let mut last = None;
    scanner.finish(|event| last = Some((event.name.map(<[u8]>::to_vec), event.data.to_vec())));
    assert_eq!(last, unterminated);
    assert_eq!(scanner.pending_len(), 0);
}

/// Whole, byte by byte, split in two at every byte, and where it is short, in three at every two.
pub(super) fn check(text: &[u8], expected: &[(Option<&str>, &str)]) {
    let plain: Vec<Plain> =
        expected.iter().map(|(name, data)| (name.map(|name| name.into()), data.as_bytes().into())).collect();
    assert_eq!(scan(&[text]).0, plain, "{}", text.escape_ascii());
    for at in 0..=text.len() {
        check_chunks(text, &[&text[..at], &text[at..]]);
        for next in at..=text.len().min(64) {
            check_chunks(text, &[&text[..at], &text[at..next], &text[next..]]);
        }
    }
    check_chunks(text, &text.chunks(1).collect::<Vec<_>>());
}

#[test]
fn events_are_read_as_the_standard_says() {
    check(b"", &[]);
    check(b"data: a\n\n", &[(None, "a")]);
    check(b"data:a\n\n", &[(None, "a")]);
    check(b"data:  a\n\n", &[(None, " a")]);
    check(b"data: YHOO\ndata: +2\ndata: 10\n\n", &[(None, "YHOO\n+2\n10")]);
    check(
        b": test stream\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n",
        &[(None, ""), (None, "first"), (None, "second"), (None, " third")],
    );
    check(b"data\n\ndata\ndata\n\ndata:", &[(None, ""), (None, "\n")]);
    check(b"event: add\ndata: 73857293\n\n", &[(Some("add"), "73857293")]);
    check(
        b"event: a\nevent: b\ndata: x\n\nevent: c\nevent\n\ndata: y\n\n",
        &[(Some("b"), "x"), (None, ""), (None, "y")],
    );
    check(b"id: a\0b\nretry: 10\ndata: x\n\n", &[(None, "x")]);
    check(b" data: x\ndata : y\nDATA: z\n\n", &[(None, "")]);
    check(b"data: a:b: c\n\n", &[(None, "a:b: c")]);
    check(b"data: {\"a\":\"\\n\\n data: [DONE]\"}\n\n", &[(None, "{\"a\":\"\\n\\n data: [DONE]\"}")]);
}

#[test]
fn all_line_ends_are_known() {
    for end in ["\n", "\r\n", "\r"] {
        let text = format!("event: e{end}data: a{end}: c{end}data: b{end}{end}{end}data: c{end}{end}");
        check(text.as_bytes(), &[(Some("e"), "a\nb"), (None, ""), (None, "c")]);
    }
    check(b"data: a\r\n\rdata: b\n\r\ndata: c\r\n\n", &[(None, "a"), (None, "b"), (None, "c")]);
    check(b"data: a\n\r\n\r\n\n\r", &[(None, "a"), (None, ""), (None, ""), (None, "")]);
}

#[test]
fn a_byte_order_mark_is_skipped_at_the_start_only() {
    check(b"\xEF\xBB\xBFdata: a\n\n\xEF\xBB\xBFdata: b\n\n", &[(None, "a"), (None, "")]);
    check(b"\xEF\xBB\xBF\n\xEF\xBB\xBF\n\n", &[(None, ""), (None, "")]);
}

#[test]
fn a_last_event_without_its_blank_line_is_handed_out() {
    check(b"data: a\n\ndata: b\n", &[(None, "a")]);
    check(b"data: a\n\nevent: e\ndata: b\r", &[(None, "a")]);
    check(b"data: a\n\ndata: b", &[(None, "a")]);
    check(b"data: a\n\nevent: b", &[(None, "a")]);
}

#[test]
fn a_single_data_line_is_not_copied() {
    let chunk = b"event: e\ndata: hello\n\n";
    Scanner::new().feed(chunk, |event| assert!(chunk.as_ptr_range().contains(&event.data.as_ptr())));
}

#[test]
fn what_is_pending_is_known_across_a_split_line_end() {
    let mut scanner = Scanner::new();
    let mut ends = Vec::new();
    scanner.feed(b"data: a\r\n\r", |event| ends.push(event.end));
    assert_eq!((scanner.pending_len(), &*ends), (0, &[10][..]));
    scanner.feed(b"\n", |event| ends.push(event.end));
    assert_eq!((scanner.pending_len(), ends.len()), (0, 1));
    scanner.feed(b"data: b\r", |event| ends.push(event.end));
    scanner.feed(b"\n", |event| ends.push(event.end));
    assert_eq!((scanner.pending_len(), ends.len()), (9, 1));
    scanner.feed(b"\r\n", |event| ends.push(event.end));
    assert_eq!((scanner.pending_len(), &*ends), (0, &[10, 2][..]));
}

#[test]
fn a_line_of_a_mebibyte_takes_bounded_memory() {
    let mut text = b"data: ".to_vec();
    text.resize(1 << 20, b'x');
    text.extend_from_slice(b"\n\ndata: next\n\n");
    // In one chunk nothing is buffered, so nothing is lost.
    let mut sizes = Vec::new();
    Scanner::new().feed(&text, |event| sizes.push((event.data.len(), event.truncated)));
    assert_eq!(sizes, [((1 << 20) - 6, false), (4, false)]);
    for size in [1, 1000, 16 * 1024, 100_000] {
        let (mut scanner, mut sizes) = (Scanner::new(), Vec::new());
        for chunk in text.chunks(size) {
            scanner.feed(chunk, |event| sizes.push((event.data.len(), event.truncated)));
            let held = scanner.line.capacity() + scanner.data.capacity() + scanner.name.capacity();
            assert!(held <= 4 * Scanner::DEFAULT_MAX_EVENT, "{held} bytes are held");
        }
        assert_eq!(sizes, [(Scanner::DEFAULT_MAX_EVENT - 6, true), (4, false)], "chunks of {size}");
        assert!(scanner.line.capacity() + scanner.data.capacity() <= 2 * Scanner::RETAINED);
    }
}

#[test]
fn a_long_comment_costs_no_data() {
    let mut text = b": ".to_vec();
    text.resize(200, b'x');
    text.extend_from_slice(b"\ndata: short\n\n");
    let (mut scanner, mut events) = (Scanner::with_max_event(50), Vec::new());
    for chunk in text.chunks(7) {
        scanner.feed(chunk, |event| events.push((event.data.to_vec(), event.truncated)));
    }
    assert_eq!(events, [(b"short".to_vec(), false)]);
}

#[test]
fn many_data_lines_are_bounded_together() {
    let (mut scanner, mut events) = (Scanner::with_max_event(10), Vec::new());
    scanner.feed(b"data: 123456\ndata: 123456\n: c\ndata: more\n\ndata: ok\n\n", |event| {
        events.push((event.data.to_vec(), event.truncated));
    });
    assert_eq!(events, [(b"123456\n123".to_vec(), true), (b"ok".to_vec(), false)]);
}

proptest! {
    #[test]
    fn any_text_in_any_chunks_is_read_as_by_a_plain_reader(
        pieces in prop::collection::vec(
            prop::sample::select(vec![
                "data", "event", "id", ":", ": ", " ", "x", "\u{e4}\u{1f600}", "\n", "\r", "\r\n", "\n\n", "\u{feff}", "[DONE]",
            ]),
            0..40,
        ),
        cuts in prop::collection::vec(0usize..200, 0..8),
    ) {
        let text = pieces.concat().into_bytes();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
        check_chunks(&text, &chunks);
    }
}
