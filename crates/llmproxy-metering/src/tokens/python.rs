//! Values as Python writes them: chat templates are made for it.

use std::fmt::Write as _;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

use super::template::MAX_PROMPT;

/// So deep is a value written; a request can't nest deeper, but a template can.
const MAX_DEPTH: usize = 128;

/// How `json.dumps` is asked to write.
struct Json<'a> {
    indent: Option<usize>,
    between: &'a str,
    colon: &'a str,
    ascii: bool,
    sorted: bool,
}

/// The filter `tojson` of transformers: `json.dumps` that leaves letters as they are.
pub(super) fn tojson(value: &Value, args: Kwargs) -> Result<Value, Error> {
    let indent = match args.get::<Option<Value>>("indent")? {
        Some(indent) if indent.kind() == ValueKind::Number => Some(usize::try_from(indent)?.min(16)),
        _ => None,
    };
    let separators: Option<Vec<String>> = args.get("separators")?;
    let (between, colon) = match separators.as_deref() {
        Some([between, colon]) => (between.as_str(), colon.as_str()),
        _ if indent.is_some() => (",", ": "),
        _ => (", ", ": "),
    };
    let json = Json {
        indent,
        between,
        colon,
        ascii: args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: args.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    args.assert_all_used()?;
    let mut out = String::new();
    json.write(value, 0, &mut out)?;
    Ok(Value::from(out))
}

/// `str(value)`: what a template prints.
pub(super) fn str(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        _ => {
            let mut out = String::new();
            repr(value, 0, &mut out);
            out
        }
    }
}

/// `repr(value)`: what stands in a list that is printed.
fn repr(value: &Value, depth: usize, out: &mut String) {
    match value.kind() {
        _ if depth > MAX_DEPTH || out.len() > MAX_PROMPT => out.push_str("..."),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out),
        ValueKind::String => quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Map => {
            out.push('{');
            for (index, (key, value)) in pairs(value).into_iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(&key, depth + 1, out);
                out.push_str(": ");
                repr(&value, depth + 1, out);
            }
            out.push('}');
        }
        ValueKind::Seq => {
            out.push('[');
            for (index, value) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(&value, depth + 1, out);
            }
            out.push(']');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

/// A map's members, in order.
pub(super) fn pairs(map: &Value) -> Vec<(Value, Value)> {
    let keys = map.try_iter().into_iter().flatten();
    keys.map(|key| (key.clone(), map.get_item(&key).unwrap_or_default())).collect()
}

fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for char in text.chars() {
        match char {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            char if char == quote => out.extend(['\\', char]),
            char if char.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(char));
            }
            char => out.push(char),
        }
    }
    out.push(quote);
}

fn number(value: &Value, out: &mut String) {
    let _ = match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => float(number, out),
        _ => write!(out, "{value}"),
    };
}

/// Python writes very small and very large numbers with an exponent of two digits and a sign.
fn float(number: f64, out: &mut String) -> std::fmt::Result {
    let text = format!("{number:e}");
    match text.split_once('e').map(|(digits, exponent)| (digits, exponent.parse::<i32>())) {
        Some((digits, Ok(exponent))) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            write!(out, "{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ if number.fract() == 0.0 => write!(out, "{number:.1}"),
        _ => write!(out, "{number}"),
    }
}

// === impl Json ===

impl Json<'_> {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            // It grows faster than the value where that is indented.
            _ if out.len() > MAX_PROMPT => {
                return Err(Error::new(ErrorKind::OutOfFuel, "the JSON is longer than any prompt"));
            }
            _ if depth > MAX_DEPTH => {
                return Err(Error::new(ErrorKind::InvalidOperation, "it is nested too deep to be JSON"));
            }
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => number(value, out),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let values = value.try_iter()?;
                out.push('[');
                let mut empty = true;
                for value in values {
                    self.next(&mut empty, depth + 1, out);
                    self.write(&value, depth + 1, out)?;
                }
                self.close(empty, depth, ']', out);
            }
            ValueKind::Map => {
                let mut members = pairs(value);
                if self.sorted {
                    members.sort_by(|one, other| one.0.cmp(&other.0));
                }
                out.push('{');
                let mut empty = true;
                for (key, value) in members {
                    self.next(&mut empty, depth + 1, out);
                    self.string(&str(&key), out);
                    out.push_str(self.colon);
                    self.write(&value, depth + 1, out)?;
                }
                self.close(empty, depth, '}', out);
            }
            kind => {
                let problem = format!("{kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        }
        Ok(())
    }

    fn next(&self, empty: &mut bool, depth: usize, out: &mut String) {
        if !std::mem::take(empty) {
            out.push_str(self.between);
        }
        self.line(depth, out);
    }

    fn close(&self, empty: bool, depth: usize, with: char, out: &mut String) {
        if !empty {
            self.line(depth, out);
        }
        out.push(with);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for char in text.chars() {
            let _ = match char {
                '"' => out.write_str("\\\""),
                '\\' => out.write_str("\\\\"),
                '\n' => out.write_str("\\n"),
                '\r' => out.write_str("\\r"),
                '\t' => out.write_str("\\t"),
                '\u{8}' => out.write_str("\\b"),
                '\u{c}' => out.write_str("\\f"),
                char if (char as u32) < 0x20 => write!(out, "\\u{:04x}", char as u32),
                char if self.ascii && !char.is_ascii() => {
                    let mut units = [0; 2];
                    char.encode_utf16(&mut units).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
                }
                char => out.write_char(char),
            };
        }
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn json_is_written_as_json_dumps_does() {
        let check = |json: &str, args: &[(&str, Value)], expected: &str| {
            let written = tojson(&value(json), args.iter().cloned().collect()).unwrap();
            assert_eq!(written.as_str(), Some(expected), "{json}");
        };
        check(
            r#"{"z":1,"a":[1,2.5,true,null,"é\n\"<&'"]}"#,
            &[],
            "{\"z\": 1, \"a\": [1, 2.5, true, null, \"é\\n\\\"<&'\"]}",
        );
        check(
            r#"{"z":[],"a":{},"l":[1,{"b":2}]}"#,
            &[("indent", 2.into())],
            "{\n  \"z\": [],\n  \"a\": {},\n  \"l\": [\n    1,\n    {\n      \"b\": 2\n    }\n  ]\n}",
        );
        check(r#"{"z":1,"a":2}"#, &[("sort_keys", true.into())], r#"{"a": 2, "z": 1}"#);
        check(r#"["é😀"]"#, &[("ensure_ascii", true.into())], r#"["\u00e9\ud83d\ude00"]"#);
        check(r#"[1,2]"#, &[("separators", vec![",", ":"].into())], "[1,2]");
        check(
            r#"[1e-7,1e16,123456789012345680.0,0.0001,1.0,-0.5,100000.0,12345678901234567890]"#,
            &[],
            "[1e-07, 1e+16, 1.2345678901234568e+17, 0.0001, 1.0, -0.5, 100000.0, 12345678901234567890]",
        );
        check("\"\\u0001\\u007f\"", &[], "\"\\u0001\u{7f}\"");
    }

    #[test]
    fn what_is_nested_without_end_does_not_take_the_stack() {
        let deep = (0..1000).fold(Value::from(1), |inner, _| Value::from(vec![inner]));
        assert!(tojson(&deep, std::iter::empty::<(&str, Value)>().collect()).is_err());
        assert!(str(&deep).contains("[...]"));
    }

    #[test]
    fn json_ends_where_it_grows_longer_than_any_prompt() {
        let wide = Value::from(vec![1; 30_000]);
        let deep = (0..100).fold(wide, |inner, _| Value::from(vec![inner]));
        let written = |indent: usize| tojson(&deep, [("indent", Value::from(indent))].into_iter().collect());
        assert!(written(1).unwrap().len().unwrap() > 3_000_000);
        assert_eq!(written(4).unwrap_err().kind(), ErrorKind::OutOfFuel);
    }

    #[test]
    fn what_is_printed_is_what_str_gives() {
        let check = |json: &str, expected: &str| assert_eq!(str(&value(json)), expected, "{json}");
        check("true", "True");
        check("null", "None");
        check("\"it's\"", "it's");
        check(r#"[1,"a",{"k":"it's"},[false,1.0]]"#, r#"[1, 'a', {'k': "it's"}, [False, 1.0]]"#);
    }
}
