//! Forms: what is found in them is what every server finds, and they pass as they came but for the model's name.

use futures_util::{FutureExt, stream};
use http::{HeaderValue, Request, header::CONTENT_TYPE};
use http_body_util::{BodyExt, StreamBody};
use llmproxy_core::{BoxError, Exchange, RequestBody, cause_ref};
use llmproxy_metering::{BodyBudget, InspectConfig, InspectError, InspectLayer};
use tower::{Layer, ServiceExt, service_fn};

use crate::cut::{cuts, owned};

/// What the model is called by its backend.
const ALIAS: &str = "organization/model-1";

/// What became of a form.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Before it was passed on, or while it was.
    Refused(&'static str),
    Passed {
        model: Option<String>,
        is_stream: bool,
        body: Vec<u8>,
    },
}

/// How a server sees where a quoted string ends.
#[derive(Clone, Copy, Debug)]
enum Quotes {
    /// A backslash escapes what follows it, a backslash too (RFC 9110).
    Escaped,
    /// A backslash is a character like others (the HTML standard).
    Plain,
    /// A quote behind a backslash is none, whatever is before that (the `email` of Python).
    Behind,
}

/// A form whose `Content-Type` is the first line of `data`, and whose body the rest: it is refused or passes byte for byte
/// but for the model's name, in any pieces alike. Where a model is found, a reader of RFC 7578 finds the same in one part
/// and in no other; and so do those who take more for a form than that.
///
/// ```
/// llmproxy_fuzz::form(
///     b"multipart/form-data; boundary=b\n\
///       --b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--b--\r\n",
/// );
/// ```
///
/// # Panics
///
/// If that is not so.
pub fn form(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (kind, body) = (&data[..at], data.get(at + 1..).unwrap_or_default());
    let Ok(kind) = HeaderValue::from_bytes(kind) else { return };
    let mut first = None;
    for pieces in cuts(body) {
        // What is read whole is another target's.
        let Some(outcome) = passed(&kind, &pieces, None) else { return };
        match &first {
            None => {
                check(&kind, body, &outcome);
                first = Some(outcome);
            }
            Some(first) => assert_eq!(first, &outcome, "it matters where the pieces end"),
        }
    }
}

/// What comes of a form that is sent in these pieces, with another name of its model where one is wanted.
fn passed(kind: &HeaderValue, pieces: &[&[u8]], alias: Option<&str>) -> Option<Outcome> {
    let echo = service_fn(|request: Request<RequestBody>| std::future::ready(Ok::<_, BoxError>(request)));
    let config = InspectConfig::default();
    let service = InspectLayer::new(&config, BodyBudget::new(config.max_buffered_bytes)).layer(echo);
    let frames = owned(pieces).into_iter().map(|piece| Ok::<_, BoxError>(http_body::Frame::data(piece)));
    let request = Request::post("/v1/audio/transcriptions").header(CONTENT_TYPE, kind);
    let request = request.body(StreamBody::new(stream::iter(frames))).expect("a good head");
    // The reader sets a timer for each piece.
    crate::heads::runtime().block_on(async {
        let mut request = match service.oneshot(request).now_or_never().expect("all is there") {
            Ok(request) => request,
            Err(error) => return Some(Outcome::Refused(code(&error))),
        };
        let call = Exchange::of(request.extensions_mut()).call().expect("it was inspected").clone();
        let body = match request.into_body() {
            RequestBody::Form(form) => form.with_model(alias).collect().now_or_never(),
            body @ RequestBody::Stream(_) => {
                assert_eq!(call.model, None, "a model of what was not read");
                body.collect().now_or_never()
            }
            RequestBody::Replay(..) => return None,
        };
        Some(match body.expect("all is there") {
            Ok(body) => Outcome::Passed {
                model: call.model.as_deref().map(str::to_owned),
                is_stream: call.stream,
                body: body.to_bytes().to_vec(),
            },
            Err(error) => Outcome::Refused(code(&error)),
        })
    })
}

fn code(error: &BoxError) -> &'static str {
    cause_ref::<InspectError>(&**error).expect("refused by the inspection").code()
}

fn check(kind: &HeaderValue, sent: &[u8], outcome: &Outcome) {
    let Outcome::Passed { model, body, .. } = outcome else { return };
    assert!(body == sent, "a form was changed by looking at it");
    let Some(model) = model else { return };
    let kind = kind.to_str().expect("it was read");
    let parts = strict(kind, sent);
    let all: Vec<_> = parts.iter().filter(|(name, _)| name == "model").collect();
    assert_eq!(all.len(), 1, "models: {parts:?}");
    let at = all[0].1.clone();
    assert_eq!(String::from_utf8_lossy(&sent[at.clone()]), *model);
    for quotes in [Quotes::Escaped, Quotes::Plain, Quotes::Behind] {
        let models = lenient(&boundary(kind), sent, quotes);
        assert_eq!(models, [model.as_bytes()], "{quotes:?}: {} may be read in another way", sent.escape_ascii());
    }
    let aliased = [&sent[..at.start], ALIAS.as_bytes(), &sent[at.end..]].concat();
    match passed(&HeaderValue::from_str(kind).expect("it was one"), &[sent], Some(ALIAS)) {
        Some(Outcome::Passed { body, .. }) => assert!(body == aliased, "an alias changes more than the model's name"),
        other => panic!("with an alias it is {other:?}"),
    }
}

/// The boundary as it stands in a `Content-Type`, whatever else does.
fn boundary(kind: &str) -> String {
    let at = kind.to_ascii_lowercase().find("boundary=").expect("a boundary") + "boundary=".len();
    let rest = &kind[at..];
    let value = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => rest.split(';').next(),
    };
    format!("--{}", value.expect("a split has a first").trim_end())
}

/// The names of the parts and where their bodies are, as RFC 7578 and RFC 2046 have them and in no other way. Of a form that
/// was cut off those that are whole.
fn strict(kind: &str, form: &[u8]) -> Vec<(String, std::ops::Range<usize>)> {
    let delimiter = boundary(kind);
    let between = [b"\r\n", delimiter.as_bytes()].concat();
    let mut parts = Vec::new();
    assert!(form.starts_with(delimiter.as_bytes()), "it begins with something else");
    let mut at = delimiter.len();
    while form[at..].starts_with(b"\r\n") {
        let Some(length) = find(&form[at + 2..], b"\r\n\r\n") else { break };
        let head = std::str::from_utf8(&form[at + 2..at + 2 + length]).unwrap_or_default();
        let begin = at + 2 + length + 4;
        let Some(length) = find(&form[begin..], &between) else { break };
        let dispositions = head.split("\r\n").filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-disposition").then_some(value)
        });
        for disposition in dispositions {
            let names = named(disposition, Quotes::Escaped).into_iter().filter(|(key, _)| key == "name");
            parts.extend(names.map(|(_, name)| (name, begin..begin + length)));
        }
        at = begin + length + between.len();
    }
    parts
}

/// The values of all that a careless server may take for `model`: lines end in CR, LF or both, what is behind a delimiter
/// does not matter, names lose their quotes, brackets, backslashes and spaces, and a name that is there twice counts twice.
fn lenient<'a>(delimiter: &str, form: &'a [u8], quotes: Quotes) -> Vec<&'a [u8]> {
    let is_end = |byte: u8| matches!(byte, b'\r' | b'\n');
    let starts: Vec<usize> = (0..form.len())
        .filter(|at| form[*at..].starts_with(delimiter.as_bytes()) && (*at == 0 || is_end(form[at - 1])))
        .collect();
    let mut models = Vec::new();
    for (index, start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(form.len());
        let part = &form[start + delimiter.len()..end];
        let blank =
            ["\r\n\r\n", "\n\n", "\r\r"].iter().filter_map(|blank| Some((find(part, blank.as_bytes())?, blank)));
        let Some((at, blank)) = blank.min() else { continue };
        let head = String::from_utf8_lossy(&part[..at]);
        let body = &part[(at + blank.len()).min(part.len())..];
        let body = body.strip_suffix(b"\r\n").or_else(|| body.strip_suffix(b"\n")).unwrap_or(body);
        for line in head.split(['\r', '\n']) {
            let Some((name, value)) = line.split_once(':') else { continue };
            if !name.trim().eq_ignore_ascii_case("content-disposition") {
                continue;
            }
            let names = named(value, quotes).into_iter().filter(|(key, _)| key == "name" || key.starts_with("name*"));
            models.extend(names.filter(|(_, name)| name == "model").map(|_| body));
        }
    }
    models
}

/// The parameters of a header's value, with what they are in quotes of that kind.
fn named(value: &str, quotes: Quotes) -> Vec<(String, String)> {
    let (mut parameters, mut parameter) = (Vec::new(), String::new());
    let (mut is_quoted, mut is_escaped, mut last) = (false, false, ' ');
    for char in value.chars() {
        let is_quote = char == '"'
            && match quotes {
                Quotes::Escaped => !(is_quoted && is_escaped),
                Quotes::Plain => true,
                Quotes::Behind => last != '\\',
            };
        is_escaped = char == '\\' && !is_escaped;
        last = char;
        is_quoted ^= is_quote;
        if char == ';' && !is_quoted {
            parameters.push(std::mem::take(&mut parameter));
        } else {
            parameter.push(char);
        }
    }
    parameters.push(parameter);
    let pairs = parameters.iter().filter_map(|parameter| parameter.split_once('='));
    let bare = |value: &str| {
        let value = value.trim().trim_matches(['"', '<', '>', '\'']).replace('\\', "");
        value.trim().to_owned()
    };
    pairs.map(|(name, value)| (name.trim().to_ascii_lowercase(), bare(value))).collect()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
