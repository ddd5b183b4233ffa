//! The cases that the standard of event streams speaks of (WHATWG HTML, section 9.2.6), as a table.
//!
//! A browser gives its page only the events that have data, and keeps `id` and `retry` to itself. The scanner hands out
//! every stretch that a blank line ends, since the proxy wants to know all boundaries, and passes `id` and `retry` over.
//! So an expected event with empty data is either one of the standard's or a boundary without an event.

use super::tests::check;

/// What is expected between two blank lines: the event's type where it has one, and its data.
type Expected = (Option<&'static str>, &'static str);

const NOTHING: Expected = (None, "");

const fn message(data: &'static str) -> Expected {
    (None, data)
}

#[rustfmt::skip]
const CASES: &[(&str, &[u8], &[Expected])] = &[
    ("a byte order mark at the start is no part of the first field",
        b"\xEF\xBB\xBFdata:1\n\ndata:2\n\n", &[message("1"), message("2")]),
    ("of two byte order marks the second makes an unknown field",
        b"\xEF\xBB\xBF\xEF\xBB\xBFdata:1\n\ndata:2\n\n", &[NOTHING, message("2")]),
    ("a byte order mark later on makes an unknown field",
        b"data:1\n\n\xEF\xBB\xBFdata:2\n\ndata:3\n\n", &[message("1"), NOTHING, message("3")]),
    ("half a byte order mark is no byte order mark",
        b"\xEF\xBBdata:1\n\ndata:2\n\n", &[NOTHING, message("2")]),
    ("a byte order mark may be all of the first line",
        b"\xEF\xBB\xBF\ndata:1\n\n", &[NOTHING, message("1")]),

    ("LF, CRLF and CR end a line, mixed as one likes",
        b"data:a\ndata:b\r\ndata:c\rdata:d\n\n", &[message("a\nb\nc\nd")]),
    ("CR LF is one end of a line, LF CR are two",
        b"data:a\r\ndata:b\n\rdata:c\r\n\r\n", &[message("a\nb"), message("c")]),
    ("CR CR ends an event, as LF LF and CRLF CRLF do",
        b"data:a\r\rdata:b\n\ndata:c\r\n\r\n", &[message("a"), message("b"), message("c")]),
    ("CR CRLF ends an event once",
        b"data:a\r\r\ndata:b\r\r\n", &[message("a"), message("b")]),
    ("no other character ends a line",
        "data:a\u{b}b\u{c}c\u{85}d\u{2028}e\n\n".as_bytes(), &[message("a\u{b}b\u{c}c\u{85}d\u{2028}e")]),

    ("a line that begins with a colon is a comment",
        b":\n:x\ndata:1\n:data:2\n: data\ndata:3\n::\n\n", &[message("1\n3")]),
    ("comments alone are no event",
        b": hello\n\n:\n\n", &[NOTHING, NOTHING]),
    ("a comment may hold anything but an end of line",
        b":\0\xFF\xFE data: x\n\ndata:1\n\n", &[NOTHING, message("1")]),

    ("a field without a colon has an empty value",
        b"data\n\ndata\ndata\n\ndata:x\ndata\n\n", &[message(""), message("\n"), message("x\n")]),
    ("an event field without a colon takes the type back",
        b"event:a\nevent\ndata:x\n\n", &[message("x")]),
    ("an unknown field is passed over, with a colon and without",
        b"data:1\nfoo\nfoo:bar\nDATA:2\nDat:3\ndatax:4\ndata\0:5\n\n", &[message("1")]),
    ("a field's name may have no space before the colon or in front",
        b"data :1\n data:2\n\tdata:3\ndata:4\n\n", &[message("4")]),

    ("one space behind the colon is taken off, and nothing else",
        b"data:\ta\ndata:  b\ndata: \ndata:c \n\n", &[message("\ta\n b\n\nc ")]),
    ("a field's name with a leading space is another name",
        b" data:x\n event:y\n\n", &[NOTHING]),
    ("the value begins at the first colon",
        b"data::a\ndata: :b:\n\n", &[message(":a\n:b:")]),

    ("an event without data is none, and its type does not go on to the next",
        b"event:a\n\ndata:1\n\n", &[(Some("a"), ""), message("1")]),
    ("an event with empty data is one",
        b"event:a\ndata:\n\ndata\n\n", &[(Some("a"), ""), message("")]),
    ("the last type counts, and an empty one is a message",
        b"event:a\nevent: b\ndata:1\n\nevent:c\nevent:\ndata:2\n\n", &[(Some("b"), "1"), message("2")]),
    ("a type may stand behind the data",
        b"data:1\nevent:late\n\n", &[(Some("late"), "1")]),

    ("an id is passed over, also with a NUL in it, which makes it none",
        b"id:1\ndata:a\n\nid:2\0x\ndata:b\n\nid\ndata:c\n\n", &[message("a"), message("b"), message("c")]),
    ("data with a NUL in it is data",
        b"data:a\0b\n\n\0\n\ndata:\0\n\n", &[message("a\0b"), NOTHING, message("\0")]),
    ("retry is passed over, whether it is a number, none or empty",
        b"retry:3000\ndata:a\n\nretry:1x\ndata:b\n\nretry\ndata:c\n\nretry: 03e8\n\n",
        &[message("a"), message("b"), message("c"), NOTHING]),

    ("an event whose blank line has not come is none",
        b"data:1\n\ndata:2\n", &[message("1")]),
    ("a line whose end has not come is none",
        b"data:1\n\ndata:2", &[message("1")]),
    ("the blank line itself may be what is missing",
        b"data:1\r", &[]),
    ("a stream of blank lines is a stream without events",
        b"\n\r\n\r\n\n", &[NOTHING, NOTHING, NOTHING, NOTHING]),
    ("nothing is a stream, too", b"", &[]),

    ("UTF-8 is not looked at, and may be cut anywhere",
        "data:\u{2026}\u{1f600}\u{e9}\n\n".as_bytes(), &[message("\u{2026}\u{1f600}\u{e9}")]),
];

#[test]
fn the_standard_s_cases_are_read_as_it_says_wherever_the_chunks_end() {
    for (case, text, expected) in CASES {
        // What failed is told by the bytes; this tells which rule it is about.
        println!("{case}");
        check(text, expected);
    }
}
