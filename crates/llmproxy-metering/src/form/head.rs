//! The heads of a form's parts, and the header that says that it is one.

/// What a part is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The model's name.
    Model,
    /// Whether the answer is to be a stream.
    Stream,
    /// Another field.
    Other,
    /// A file.
    File,
}

/// A header's value and its parameters, names in lower case.
type Parameters = (String, Vec<(String, String)>);

/// The boundary of a form, where `content_type` says that the body is one and all servers read it alike.
pub(super) fn boundary(content_type: &str) -> Option<String> {
    let boundary = read(content_type, |kind, parameters| {
        let boundary = only(parameters, "boundary")?;
        (kind.eq_ignore_ascii_case("multipart/form-data")).then(|| boundary.to_owned())
    })?;
    // RFC 2046, section 5.1.1.
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
    let fits = (1..=70).contains(&boundary.len()) && boundary.bytes().all(is_allowed) && !boundary.ends_with(' ');
    fits.then_some(boundary)
}

// === impl Part ===

impl Part {
    /// What the part with this head is; `None` where servers might not agree about it.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        let head = String::from_utf8_lossy(head);
        let mut disposition = None;
        for line in head.split("\r\n") {
            // What is folded, or ends in a line feed alone, is one line to some and two to others.
            if line.starts_with([' ', '\t']) || line.contains(['\r', '\n', '\0']) {
                return None;
            }
            let (name, value) = line.split_once(':')?;
            match name.to_ascii_lowercase().as_str() {
                "content-disposition" if disposition.is_none() => disposition = Some(value),
                // A value that is encoded is another one to whoever decodes it.
                "content-disposition" | "content-transfer-encoding" => return None,
                name if name.contains([' ', '\t']) => return None,
                _ => {}
            }
        }
        read(disposition?, |kind, parameters| {
            let name = only(parameters, "name").filter(|_| kind.eq_ignore_ascii_case("form-data"))?;
            let is_file = parameters.iter().any(|(name, _)| name == "filename" || name.starts_with("filename*"));
            match (name, is_file) {
                ("model" | "stream", true) => None,
                ("model", false) => Some(Self::Model),
                ("stream", false) => Some(Self::Stream),
                (_, true) => Some(Self::File),
                (_, false) => Some(Self::Other),
            }
        })
    }
}

/// What `meaning` makes of a header's value. In a quoted string a backslash escapes to some and is a character to others:
/// where that makes a difference, nothing is meant.
fn read<T: PartialEq>(value: &str, meaning: impl Fn(&str, &[(String, String)]) -> Option<T>) -> Option<T> {
    let [one, other] =
        [true, false].map(|escapes| parameters(value, escapes).and_then(|(kind, all)| meaning(&kind, &all)));
    one.filter(|one| Some(one) == other.as_ref())
}

/// The parameter of that name, where it is there once, and not in the extended form that only some servers know.
fn only<'a>(parameters: &'a [(String, String)], wanted: &str) -> Option<&'a str> {
    let is_it = |name: &str| name.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('*'));
    let mut all = parameters.iter().filter(|(name, _)| is_it(name));
    let (name, value) = all.next()?;
    (all.next().is_none() && name == wanted).then_some(value)
}

fn parameters(value: &str, escapes: bool) -> Option<Parameters> {
    let (kind, mut rest) = value.split_at(value.find(';').unwrap_or(value.len()));
    let mut all = Vec::new();
    while let Some(parameter) = rest.strip_prefix(';') {
        let parameter = parameter.trim_start();
        if parameter.is_empty() {
            break;
        }
        let (name, value) = parameter.split_once('=')?;
        if name.is_empty() || name.contains([';', '"', ' ', '\t']) {
            return None;
        }
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => unquoted(quoted, escapes)?,
            None => {
                let (value, after) = value.split_at(value.find(';').unwrap_or(value.len()));
                let value = value.trim_end();
                if value.is_empty() || value.contains(['"', ' ', '\t', '\\']) {
                    return None;
                }
                (value.to_owned(), after)
            }
        };
        all.push((name.to_ascii_lowercase(), value));
        rest = after.trim_start();
    }
    (rest.is_empty() || rest.starts_with(';')).then(|| (kind.trim().to_owned(), all))
}

/// What is quoted at the beginning of `text`, and what follows the closing quote.
fn unquoted(text: &str, escapes: bool) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' if escapes => value.push(chars.next()?.1),
            char => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boundary_is_read_as_servers_read_it() {
        let check = |value: &str, expected: Option<&str>| assert_eq!(boundary(value).as_deref(), expected, "{value}");
        check("multipart/form-data; boundary=abc", Some("abc"));
        check("Multipart/Form-Data;BOUNDARY=abc; charset=utf-8", Some("abc"));
        check("multipart/form-data; boundary=\"a b:c\"", Some("a b:c"));
        check("multipart/form-data; boundary=----WebKitFormBoundaryx1", Some("----WebKitFormBoundaryx1"));
        check("multipart/form-data", None);
        check("multipart/form-data; boundary=", None);
        check("multipart/form-data; boundary=\"\"", None);
        check("multipart/form-data; boundary=\"a", None);
        check("multipart/form-data; boundary=\"a \"", None);
        check("multipart/form-data; boundary=\"a\\b\"", None);
        check("multipart/form-data; boundary=a; boundary=b", None);
        check("multipart/form-data; boundary*=a", None);
        check("multipart/form-data; boundary=a b", None);
        check("multipart/mixed; boundary=a", None);
        check(&format!("multipart/form-data; boundary={}", "a".repeat(71)), None);
        check("application/json", None);
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
        named("name=\"prompt\"", Some(Part::Other));
        named("name=\"file\"; filename=\"a.wav\"", Some(Part::File));
        named("name=\"file\"; filename=\"a.wav\"; filename*=UTF-8''%e4.wav", Some(Part::File));
        named("filename=\"a;b=c.wav\"; name=\"file\"", Some(Part::File));
        named("name=\"file\"; filename=\"C:\\a.wav\"", Some(Part::File));
        named("name=\"file\"; filename=\"a\\\"b.wav\"", None);
        // What one server takes for a field of another name than the next one.
        named("name=\"file\"; filename=\"a\\\"; name=\"model\"", None);
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
        check("Content-Type: text/plain", None);
        check("", None);
    }
}
