//! A model's chat template, rendered as transformers does it.

use std::{collections::BTreeMap, io};

use jiff::ZonedDateTime;
use minijinja::{Environment, Error, ErrorKind, State, Value, syntax::SyntaxConfig, value::Kwargs};
use minijinja_contrib::pycompat;

use super::python;

/// Steps that a template may take, a second or so of them: some hundred for each message, and one for each 64 bytes that it
/// copies.
const FUEL: u64 = 4_000_000;
/// The longest prompt that is made, in bytes: two million tokens and more.
pub(super) const MAX_PROMPT: usize = 8 * 1024 * 1024;
/// To write a value as JSON takes this many bytes for a step: longer than to copy them.
const JSON_BYTES: u64 = 16;
/// The most that a template may nest.
const MAX_DEPTH: usize = 120;
/// The template for requests with tools, where a model has one.
const WITH_TOOLS: &str = "tool_use";
const DEFAULT: &str = "default";
/// What a message says to find out how a template takes it.
const PROBE: &str = "llmproxy-probe";

/// A model's chat templates.
#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    specials: Vec<(&'static str, String)>,
    takes: Takes,
}

/// How a template takes what a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// As text alone.
    Text,
    /// As a list of parts alone.
    Parts,
    /// As either.
    Both,
}

/// What is written so far, up to a bound.
struct Prompt(Vec<u8>);

// === impl Template ===

impl Template {
    /// Templates by name; the one without tools is `default`. `specials` are the special tokens by the names that templates
    /// know.
    pub(super) fn new(named: Vec<(String, String)>, specials: Vec<(&'static str, String)>) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_DEPTH);
        environment.set_formatter(|out, _, value| Ok(out.write_str(&python::str(value))?));
        environment.add_filter("tojson", |state: &State<'_, '_>, value: &Value, args: Kwargs| {
            let json = python::tojson(value, args)?;
            state.consume_fuel(json.len().unwrap_or_default() as u64 / JSON_BYTES)?;
            Ok(json)
        });
        environment.add_filter("string", |value: &Value| python::str(value));
        // None is neither in Python, and a text and a map are both.
        environment
            .add_test("iterable", |value: &Value| value.is_undefined() || value.try_iter().is_ok() && !value.is_none());
        environment.add_test("sequence", |value: &Value| value.is_undefined() || value.len().is_some());
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: &str| {
            let now = jiff::fmt::strtime::format(format, &ZonedDateTime::now());
            now.map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        });
        let first = named.first().map(|(name, _)| name.clone());
        for (name, source) in named {
            environment.add_template_owned(name, without_marks(&source))?;
        }
        // A model with one template under another name has it for everything.
        if environment.get_template(DEFAULT).is_err() {
            let only = first.filter(|name| name != WITH_TOOLS);
            let source = only.and_then(|name| Some(environment.get_template(&name).ok()?.source().to_owned()));
            match source {
                Some(source) => environment.add_template_owned(DEFAULT, source)?,
                None => return Err(Error::new(ErrorKind::TemplateNotFound, "there is none for chats without tools")),
            }
        }
        let mut template = Self { environment, specials, takes: Takes::Both };
        template.takes = template.probe();
        Ok(template)
    }

    /// How what a message says is to be given to it.
    pub(super) fn takes(&self) -> Takes {
        self.takes
    }

    /// The prompt that `context` (messages, tools and what else a request says) is for the model.
    ///
    /// # Errors
    ///
    /// If the template refuses the conversation, fails, or takes too long.
    pub(super) fn render(&self, context: Vec<(String, Value)>) -> Result<String, Error> {
        let has_tools = context.iter().any(|(name, value)| name == "tools" && value.is_true());
        let of_tools = has_tools.then(|| self.environment.get_template(WITH_TOOLS).ok()).flatten();
        let template = match of_tools {
            Some(template) => template,
            None => self.environment.get_template(DEFAULT)?,
        };
        let specials = self.specials.iter().map(|(name, text)| ((*name).to_owned(), Value::from(text.as_str())));
        // What a request says goes before what the model says, as in transformers.
        let all: BTreeMap<String, Value> = specials.chain(context).collect();
        let mut prompt = Prompt(Vec::new());
        template.render_captured_to(Value::from(all), &mut prompt)?;
        String::from_utf8(prompt.0).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
    }

    fn probe(&self) -> Takes {
        let shows = |content: Value| {
            let message = Value::from_pairs([("role", Value::from("user")), ("content", content)]);
            let context = [("messages", Value::from(vec![message])), ("add_generation_prompt", Value::from(false))];
            let rendered = self.render(context.map(|(name, value)| (name.to_owned(), value)).into());
            // A list that is printed as it is shows its keys.
            rendered.is_ok_and(|prompt| prompt.contains(PROBE) && !prompt.contains("'type'"))
        };
        let part = Value::from_pairs([("type", "text"), ("text", PROBE)]);
        match (shows(Value::from(PROBE)), shows(Value::from(vec![part]))) {
            (false, true) => Takes::Parts,
            (true, true) => Takes::Both,
            (_, false) => Takes::Text,
        }
    }
}

/// The template without the marks around what the model says, which only training looks at.
fn without_marks(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        let Some((tag, behind)) = after.split_once("%}") else { break };
        let stands_for = match tag.trim_matches(['-', '+', ' ', '\t', '\n', '\r']) {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => {
                let len = before.len() + 2;
                plain.push_str(&rest[..len]);
                rest = &rest[len..];
                continue;
            }
        };
        // The signs that strip spaces stay where they are.
        let sign = |at: Option<char>| at.filter(|char| matches!(char, '-' | '+')).map(String::from).unwrap_or_default();
        let (left, right) = (sign(tag.chars().next()), sign(tag.chars().next_back()));
        plain.push_str(&format!("{before}{{%{left} {stands_for} {right}%}}"));
        rest = behind;
    }
    plain.push_str(rest);
    plain
}

// === impl Prompt ===

impl io::Write for Prompt {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_PROMPT {
            return Err(io::Error::other("the prompt grows without end"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, context: &str, expected: &str) {
        let template = Template::new(vec![("default".into(), source.into())], vec![]).unwrap();
        let context: Value = serde_json::from_str(context).unwrap();
        let context = python::pairs(&context).into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        assert_eq!(template.render(context).unwrap(), expected, "{source}");
    }

    #[test]
    fn what_templates_of_models_use_is_there() {
        check(
            "{%- for a in list %}{% if a == 2 %}{% continue %}{% endif %}{{ a }}{% endfor %}",
            r#"{"list":[1,2,3]}"#,
            "13",
        );
        check("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}", "{}", "2");
        check("{{ t.split('</think>')[-1].lstrip('\\n') }}", r#"{"t":"a</think>\n\nb"}"#, "b");
        check("{% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}", r#"{"m":{"b":1,"a":null}}"#, "b=1;a=None;");
        check("{{ list[1:] | length }}{{ list[::-1] }}", r#"{"list":[1,"a"]}"#, "1['a', 1]");
        check("{{ none is iterable }}{{ 'a' is sequence }}{{ m is mapping }}", r#"{"m":{}}"#, "FalseTrueTrue");
        check("{{ 1.0 }}{{ true }}{{ missing }}", "{}", "1.0True");
        check("{{ '<&>' }}{{ m | tojson }}", r#"{"m":{"z":"<\"é","a":1}}"#, r#"<&>{"z": "<\"é", "a": 1}"#);
    }

    #[test]
    fn blocks_take_their_lines_with_them() {
        check("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "{}", "a\nb\nc");
    }

    #[test]
    fn marks_for_training_are_no_part_of_the_prompt() {
        check("a {% generation %}b{% endgeneration %} c", "{}", "a b c");
        check("a {%- generation -%} b {%- endgeneration %} c", "{}", "ab c");
        check("{% if true %}{%+ generation %}x{% endgeneration -%}  y{% endif %}{% raw %}{%{% endraw %}", "{}", "xy{%");
    }

    #[test]
    fn a_request_goes_before_the_model() {
        let specials = vec![("bos_token", "<s>".to_owned())];
        let template = Template::new(vec![("default".into(), "{{ bos_token }}".into())], specials).unwrap();
        assert_eq!(template.render(vec![]).unwrap(), "<s>");
        assert_eq!(template.render(vec![("bos_token".into(), "x".into())]).unwrap(), "x");
    }

    #[test]
    fn a_template_that_never_ends_is_ended() {
        let render =
            |source: &str| Template::new(vec![("default".into(), source.into())], vec![]).unwrap().render(vec![]);
        assert!(render("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}").is_err());
        assert!(render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").is_err());
        let long = "{% set a = 'x' * 1000000 %}{% for b in range(1000) %}{{ a }}{% endfor %}";
        assert!(render(long).is_err());
    }
}
