//! The heads of a form's parts, and the header that says that it is one.

/// What a part is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The model's name.
    Model,
    /// Whether the answer is to be a stream.
    Stream,
    /// How many are to be made.
    Number,
    /// Another field.
    Other,
    /// A file.
    File,
}

/// A header's parameter.
struct Parameter<'a> {
    /// In lower case.
    name: String,
    /// Without the quotes around it, its escapes as they are.
    value: &'a str,
}

/// What some servers read in a way and others in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unclear;

/// White space within a line. What Unicode adds to it is text to most servers.
const BLANKS: [char; 2] = [' ', '\t'];

/// The boundary of a form; `None` where `content_type` says that the body is none, or names no boundary by which anybody
/// could read it.
pub(super) fn boundary(content_type: &[u8]) -> Result<Option<String>, Unclear> {
    if !is_form(content_type) {
        return Ok(None);
    }
    let (_, all) = std::str::from_utf8(content_type).ok().and_then(parameters).ok_or(Unclear)?;
    let (mut boundary, mut charset) = (None, None);
    for Parameter { name, value } in all {
        let place = match name.as_str() {
            "boundary" => &mut boundary,
            // In another one the names of the fields might be other names.
            "charset" if ["utf-8", "us-ascii"].iter().any(|known| value.eq_ignore_ascii_case(known)) => &mut charset,
            _ => return Err(Unclear),
        };
        if place.replace(value).is_some() {
            return Err(Unclear);
        }
    }
    let Some(boundary) = boundary else { return Ok(None) };
    // RFC 2046, section 5.1.1.
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
    let fits = (1..=70).contains(&boundary.len()) && boundary.bytes().all(is_allowed) && !boundary.ends_with(' ');
    if fits { Ok(Some(boundary.to_owned())) } else { Err(Unclear) }
}

/// Whether a value of `Content-Type` says that a body is a form.
pub(super) fn is_form(content_type: &[u8]) -> bool {
    let kind = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"multipart/form-data")
}

// === impl Part ===

impl Part {
    /// What the part with this head is; `None` where servers might not agree about it.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        let head = String::from_utf8_lossy(head);
        let mut disposition = None;
        for line in head.split("\r\n") {
            // What ends in a carriage return or a line feed alone is one line to some and two to others.
            if line.contains(|char: char| char.is_ascii_control() && char != '\t') {
                return None;
            }
            // A line that is folded has no name.
            let (name, value) = line.split_once(':').filter(|(name, _)| is_token(name))?;
            let value = value.trim_matches(BLANKS);
            match name.to_ascii_lowercase().as_str() {
                "content-disposition" if disposition.is_none() => disposition = Some(value),
                "content-disposition" => return None,
                // A value that is encoded is another one to whoever decodes it (RFC 7578, section 4.7).
                "content-transfer-encoding"
                    if !["7bit", "8bit", "binary"].iter().any(|plain| value.eq_ignore_ascii_case(plain)) =>
                {
                    return None;
                }
                _ => {}
            }
        }
        Self::disposed(disposition?)
    }

    /// What a part is that is disposed like this (RFC 7578, section 4.2).
    fn disposed(disposition: &str) -> Option<Self> {
        let (_, all) = parameters(disposition).filter(|(kind, _)| kind.eq_ignore_ascii_case("form-data"))?;
        let (mut name, mut filename, mut extended) = (None, None, None);
        for (index, parameter) in all.iter().enumerate() {
            let (place, is_clear) = match parameter.name.as_str() {
                "name" => (&mut name, is_clear_name(parameter.value)),
                "filename" => {
                    let rest = &all[index + 1..];
                    let is_clear = is_clear_filename(parameter.value, name.is_some(), rest);
                    (&mut filename, is_clear)
                }
                "filename*" => (&mut extended, !parameter.value.contains([';', '\\'])),
                // Whatever it is, some server may take it or what is in it for the name.
                _ => return None,
            };
            if !is_clear || place.replace(parameter.value).is_some() {
                return None;
            }
        }
        match (name?, filename.or(extended).is_some()) {
            ("model" | "stream", true) => None,
            ("model", false) => Some(Self::Model),
            ("stream", false) => Some(Self::Stream),
            ("n", false) => Some(Self::Number),
            // Its value would say how the other parts are to be read (RFC 7578, section 4.6).
            ("_charset_", _) => None,
            (_, true) => Some(Self::File),
            (_, false) => Some(Self::Other),
        }
    }
}

/// Whether no server makes another name of a name: by escapes, by quotes or white space that it takes away, by decoding.
fn is_clear_name(name: &str) -> bool {
    !name.contains('\\') && !name.contains("=?") && !name.starts_with('\'') && name.trim() == name
}

/// Whether no server finds another name in a file's name or behind it, wherever it sees its end.
///
/// A backslash before a quote escapes it, or does not, or does so even where it is escaped itself. Clients do write such
/// names, but last: then it makes no difference, as long as what is in it can't begin a parameter.
fn is_clear_filename(filename: &str, is_named: bool, rest: &[Parameter<'_>]) -> bool {
    let is_escaped = filename.contains("\\\"") || filename.ends_with('\\');
    (is_named || !filename.contains([';', '\\']))
        && !(is_escaped && (filename.contains(';') || rest.iter().any(|parameter| parameter.name != "filename*")))
}

/// What stands before a header's parameters, and these.
fn parameters(value: &str) -> Option<(&str, Vec<Parameter<'_>>)> {
    let (kind, mut rest) = value.split_at(value.find(';').unwrap_or(value.len()));
    let mut all = Vec::new();
    while let Some(parameter) = rest.strip_prefix(';') {
        let parameter = parameter.trim_start_matches(BLANKS);
        if parameter.is_empty() {
            break;
        }
        let (name, value) = parameter.split_once('=').filter(|(name, _)| is_token(name))?;
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => {
                let end = closing_quote(quoted)?;
                (&quoted[..end], &quoted[end + 1..])
            }
            None => {
                let (value, after) = value.split_at(value.find(';').unwrap_or(value.len()));
                (Some(value.trim_end_matches(BLANKS)).filter(|value| is_token(value))?, after)
            }
        };
        all.push(Parameter { name: name.to_ascii_lowercase(), value });
        rest = after.trim_start_matches(BLANKS);
    }
    (rest.is_empty() || rest.starts_with(';')).then(|| (kind.trim_matches(BLANKS), all))
}

/// Where what is quoted ends, as RFC 9110 has it.
fn closing_quote(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    })
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boundary_is_read_as_servers_read_it() {
        let check = |value: &str, expected| {
            let found = boundary(value.as_bytes());
            assert_eq!(found.as_ref().map(Option::as_deref), expected, "{value}");
        };
        let named = |value: &str, name| check(value, Ok(Some(name)));
        named("multipart/form-data; boundary=abc", "abc");
        named("Multipart/Form-Data;BOUNDARY=abc; charset=utf-8", "abc");
        named("multipart/form-data; charset=\"US-ASCII\" ; boundary=abc;", "abc");
        named("multipart/form-data; boundary=\"a b:c\"", "a b:c");
        named("multipart/form-data; boundary=----WebKitFormBoundaryx1", "----WebKitFormBoundaryx1");
        let unclear = |value: &str| check(value, Err(&Unclear));
        unclear("multipart/form-data; boundary=");
        unclear("multipart/form-data; boundary=\"\"");
        unclear("multipart/form-data; boundary=\"a");
        unclear("multipart/form-data; boundary=\"a \"");
        unclear("multipart/form-data; boundary=\"a\\b\"");
        unclear("multipart/form-data; boundary=a; boundary=b");
        unclear("multipart/form-data; boundary*=a");
        unclear("multipart/form-data; boundary=a b");
        unclear("multipart/form-data; boundary=<a>");
        unclear("multipart/form-data; boundary=\u{e4}");
        unclear("multipart/form-data; boundary=a; charset=utf-7");
        unclear("multipart/form-data; boundary=a; charset=utf-8; charset=us-ascii");
        unclear("multipart/form-data; boundary=a; x=y");
        unclear(&format!("multipart/form-data; boundary={}", "a".repeat(71)));
        check("multipart/form-data", Ok(None));
        check("multipart/mixed; boundary=a", Ok(None));
        check("application/json", Ok(None));
    }

    #[test]
    fn a_part_is_what_every_server_takes_it_for() {
        let check = |head: &str, expected: Option<Part>| assert_eq!(Part::of(head.as_bytes()), expected, "{head}");
        let named =
            |parameters: &str, expected| check(&format!("Content-Disposition: form-data; {parameters}"), expected);
        named("name=\"model\"", Some(Part::Model));
        named("name=model", Some(Part::Model));
        named("NAME=\"model\";", Some(Part::Model));
        named("name=\"Model\"", Some(Part::Other));
        named("name=\"stream\"", Some(Part::Stream));
        named("name=\"n\"", Some(Part::Number));
        named("name=\"n\"; filename=\"a.png\"", Some(Part::File));
        named("name=\"prompt\"", Some(Part::Other));
        named("name=\"file\"; filename=\"a.wav\"", Some(Part::File));
        named("name=\"file\"; filename=\"a.wav\"; filename*=UTF-8''%e4.wav", Some(Part::File));
        named("filename=\"a.wav\"; name=\"file\"", Some(Part::File));
        named("name=\"file\"; filename=\"C:\\a.wav\"", Some(Part::File));
        // As curl, browsers and Python escape a name, or do not.
        named("name=\"file\"; filename=\"a\\\"b.wav\"", Some(Part::File));
        named("name=\"file\"; filename=\"a\\\"b.wav\"; filename*=UTF-8''a%22b.wav", Some(Part::File));
        named("name=\"file\"; filename=\"C:\\\\\"", Some(Part::File));
        named("name=\"file\"; filename=\"a; b.wav\"", Some(Part::File));
        named("name=file; filename=a.wav; filename*=utf-8''a.wav", Some(Part::File));
        named("name=\"a<b>\"", Some(Part::Other));
        // What one server takes for a field of another name than the next one.
        named("name=\"file\"; filename=\"a\\\"; name=\"model\"", None);
        named("name=\"file\"; filename=\"a\\\"; name=model; x.wav\"", None);
        named("name=\"file\"; filename=\"a\\\\\"; name=\"model\"", None);
        named("filename=\"a\\\"b\"; name=\"file\"", None);
        named("filename=\"a; name=model; x.wav\"; name=\"file\"", None);
        named("name=\"file\"; filename=\"a\\\"", None);
        named("x=\"\\\\\"; name=\"foo\"; y=\"; name=model; z=\"", None);
        named("name=\"foo\"; x=y", None);
        named("name=<model>", None);
        named("name='model'", None);
        named("name=(model)", None);
        named("name=\" model\"", None);
        named("name=\"=?utf-8?q?model?=\"", None);
        named("name=\"_charset_\"", None);
        named("\u{a0}name=\"model\"", None);
        named("name=\"mod\\el\"", None);
        named("name=\"a\"; name=\"model\"", None);
        named("name=\"a\"; name*=UTF-8''model", None);
        named("name*=UTF-8''model", None);
        named("name*0=mod; name*1=el", None);
        named("name = \"model\"", None);
        named("name=\"model", None);
        named("name=\"model\" x", None);
        named("name=\"model\"; filename=\"a\"", None);
        named("filename=\"a\"", None);
        check("content-disposition:form-data;name=\"model\"\r\ncontent-type: text/plain", Some(Part::Model));
        check("Content-Disposition: attachment; name=\"model\"", None);
        check("Content-Disposition: form-data; name=\"a\"\r\nContent-Disposition: form-data; name=\"model\"", None);
        check("Content-Disposition: form-data;\r\n name=\"model\"", None);
        check("Content-Disposition : form-data; name=\"model\"", None);
        check("X: y\nContent-Disposition: form-data; name=\"model\"", None);
        check("Content-Disposition: form-data; name=\"model\"\r\nContent-Transfer-Encoding: base64", None);
        for encoding in ["quoted-printable", "8bit, base64", ""] {
            let head =
                format!("Content-Transfer-Encoding: {encoding}\r\nContent-Disposition: form-data; name=\"model\"");
            check(&head, None);
        }
        for encoding in ["7bit", "8bit", "Binary "] {
            let head =
                format!("Content-Disposition: form-data; name=\"model\"\r\nContent-Transfer-Encoding: {encoding}");
            check(&head, Some(Part::Model));
        }
        check(
            "\u{b}Content-Disposition: form-data; name=\"model\"\r\nContent-Disposition: form-data; name=\"a\"",
            None,
        );
        check("X: y\rContent-Disposition: form-data; name=\"model\"", None);
        check("Content-Type: text/plain", None);
        check("", None);
    }
}
