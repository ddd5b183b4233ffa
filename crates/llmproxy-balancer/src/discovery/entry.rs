//! The lists that files and servers give: which shapes they may have, and what is wrong with an entry.

use serde::{Deserialize, Deserializer, de, forward_to_deserialize_any};
use serde_json::{Map, Value};

use super::lenient;
use crate::config::{BackendConfig, BackendDefaults, validate_backends};

/// The names that a list may have in the object that holds it.
const LISTS: [&str; 3] = ["backends", "services", "data"];
/// What an entry's state must be, where it says one.
const WORKING: [&str; 8] = ["enabled", "active", "up", "healthy", "ok", "true", "1", "passing"];
/// Its name. How well a server is, as others see it, does not count: backends are checked here.
const STATE: &str = "status";

/// What a list came to.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) backends: Vec<BackendConfig>,
    /// Entries that are left out because something is wrong with them: which, and what.
    pub(super) problems: Vec<String>,
}

// === impl Entries ===

impl Entries {
    /// Reads a list: bare, or as `backends`, `services` or `data` of an object. Each entry is a URL, or an object with what
    /// an entry of `backends` may have, completed by `defaults`. `strict` says whether what nothing knows is a problem: in what was written for us it
    /// is a typing error, in what another program offers it is that program's business. An entry without a URL makes such a
    /// list one that is only half written.
    pub(super) fn read(value: Value, defaults: &BackendDefaults, strict: bool) -> Result<Self, String> {
        let list = match value {
            Value::Array(list) => list,
            Value::Object(mut object) => {
                let list = LISTS.iter().find_map(|name| object.remove(*name).filter(|list| !list.is_null()));
                match list {
                    Some(Value::Array(list)) => list,
                    Some(_) => return Err("what should be the list of backends is none".into()),
                    None => {
                        let message =
                            "has no list of backends: neither `backends`, `services` nor `data`; write [] for none";
                        return Err(message.into());
                    }
                }
            }
            _ => return Err("is no list of backends".into()),
        };
        if strict && let Some(index) = list.iter().position(is_unfinished) {
            return Err(format!("entry {index} has no `url`; give it one, or take it out: until then no entry counts"));
        }
        let mut entries = Self::default();
        for (index, entry) in list.into_iter().enumerate() {
            match one(entry, defaults, strict) {
                Ok(Some(backend)) => entries.backends.push(backend),
                // That it is off says nothing of the others.
                Ok(None) => {}
                Err(problem) => entries.problems.push(format!("entry {index}: {problem}")),
            }
        }
        // Rather another kind of list, or a mistake that somebody made everywhere, than the end of all backends.
        match entries.problems.first() {
            Some(first) if entries.backends.is_empty() => Err(format!("has no entry without a mistake; {first}")),
            _ => Ok(entries),
        }
    }
}

/// What is wrong with a backend that was found, if anything is.
fn problem(backend: &BackendConfig) -> Option<String> {
    // Alone a backend of weight 0 would be a mistake; here it is one of several.
    let probe = BackendConfig { weight: backend.weight.max(1), ..backend.clone() };
    let mistakes = validate_backends(&[probe]);
    let (key, message) = mistakes.first()?;
    Some(format!("{} {message}", key.trim_start_matches("[0].")))
}

/// Whether it looks as if the rest of it were still to be written.
fn is_unfinished(entry: &Value) -> bool {
    match entry {
        Value::Null => true,
        Value::Object(object) => object.get("url").is_none_or(Value::is_null),
        _ => false,
    }
}

/// One entry; `None` where it is switched off.
fn one(entry: Value, defaults: &BackendDefaults, strict: bool) -> Result<Option<BackendConfig>, String> {
    let mut object = match entry {
        Value::String(url) => Map::from_iter([("url".to_owned(), Value::String(url))]),
        Value::Object(object) => object,
        _ => return Err("is neither a URL nor an object".into()),
    };
    object.retain(|_, value| !value.is_null());
    if object.remove(STATE).is_some_and(|state| !is_working(&state)) {
        return Ok(None);
    }
    // What is wrong with a header must be said without its value.
    if let Some(headers) = object.get("headers")
        && !headers.as_object().is_some_and(|headers| headers.values().all(Value::is_string))
    {
        return Err("headers must be a map from names to strings".into());
    }
    if strict && let Some(unknown) = object.keys().find(|key| !known_keys().contains(&key.as_str())) {
        return Err(match llmproxy_core::nearest(unknown, known_keys().iter().copied()) {
            Some(near) => format!("`{unknown}` is not a key of a backend; did you mean `{near}`?"),
            None => format!("`{unknown}` is not a key of a backend"),
        });
    }
    complete(object, defaults).map(Some)
}

/// What an entry says and `defaults` add, if there is nothing wrong with it.
pub(super) fn complete(entry: Map<String, Value>, defaults: &BackendDefaults) -> Result<BackendConfig, String> {
    let entry = lenient::coerce(defaults.complete(entry))?;
    let backend: BackendConfig = serde_json::from_value(Value::Object(entry)).map_err(|error| error.to_string())?;
    if backend.url.is_empty() {
        return Err("has no `url`".into());
    }
    problem(&backend).map_or(Ok(backend), Err)
}

fn is_working(state: &Value) -> bool {
    match state {
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() == Some(1.0),
        Value::String(word) => WORKING.iter().any(|working| working.eq_ignore_ascii_case(word.trim())),
        _ => false,
    }
}

/// The keys that an entry may have: those that its type reads.
fn known_keys() -> &'static [&'static str] {
    /// Takes down what a type asks for, and gives it nothing.
    struct Asked<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Asked<'_> {
        type Error = de::value::Error;

        fn deserialize_struct<V: de::Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }

        fn deserialize_any<V: de::Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(de::Error::custom("there is nothing"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut keys: &'static [&'static str] = &[];
    let _ = BackendConfig::deserialize(Asked(&mut keys));
    keys
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(list: Value, strict: bool) -> Result<Entries, String> {
        Entries::read(list, &BackendDefaults::default(), strict)
    }

    fn urls(value: Value) -> Vec<String> {
        let entries = read(value, false).unwrap();
        assert_eq!(entries.problems, Vec::<String>::new());
        entries.backends.into_iter().map(|backend| backend.url).collect()
    }

    #[test]
    fn a_list_may_be_bare_or_in_an_object() {
        let list = json!(["http://a", {"url": "http://b"}]);
        assert_eq!(urls(list.clone()), ["http://a", "http://b"]);
        for name in LISTS {
            assert_eq!(urls(json!({"version": 3, name: list.clone()})), ["http://a", "http://b"], "{name}");
        }
        assert_eq!(urls(json!([])), Vec::<String>::new());
        assert_eq!(urls(json!({"backends": null, "data": list})), ["http://a", "http://b"]);
        let wrong = [json!({"error": "no"}), json!("x"), json!({"data": {"a": 1}}), json!({"data": null}), json!(null)];
        for wrong in wrong {
            assert!(read(wrong.clone(), false).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_entry_may_say_what_one_of_the_configuration_may() {
        let entry = json!({"name": "n", "url": "http://a", "weight": "2", "models": "m, n", "tier": 1, "group": "g",
            "max_concurrent": 4, "timeout": "5s", "headers": {"Authorization": "Bearer x"}, "id": 7, "priority": 3});
        let entries = read(json!([entry]), false).unwrap();
        let expected = BackendConfig {
            name: Some("n".into()),
            weight: 2,
            models: vec!["m".into(), "n".into()],
            tier: 1,
            group: Some("g".into()),
            max_concurrent: Some(4),
            timeout: Some(std::time::Duration::from_secs(5)),
            headers: [("Authorization".into(), "Bearer x".into())].into(),
            ..BackendConfig::new("http://a")
        };
        assert_eq!(entries.backends, [expected]);
    }

    #[test]
    fn an_entry_means_what_it_would_mean_in_the_configuration() {
        let entry = json!({"url": "http://a", "timeout": 30, "max_concurrent": "8", "http2": "no", "name": 7});
        let entries = read(json!([entry]), true).unwrap();
        let expected = BackendConfig {
            name: Some("7".into()),
            timeout: Some(std::time::Duration::from_secs(30)),
            max_concurrent: Some(8),
            ..BackendConfig::new("http://a")
        };
        assert_eq!((entries.backends, entries.problems), (vec![expected], Vec::new()));
    }

    #[test]
    fn what_is_switched_off_is_left_out_in_silence() {
        for (state, on) in [
            (json!("enabled"), true),
            (json!("Active"), true),
            (json!(1), true),
            (json!("up"), true),
            (json!(true), true),
            (json!(null), true),
            (json!("disabled"), false),
            (json!(0), false),
            (json!(2), false),
            (json!("draining"), false),
            (json!([]), false),
        ] {
            let found = urls(json!([{"url": "http://a", "status": state.clone()}]));
            assert_eq!(!found.is_empty(), on, "{state}");
        }
    }

    #[test]
    fn a_bad_entry_is_left_out_and_the_rest_counts() {
        let list = json!(["http://a", "vllm:8000", 5, {"name": "x"}, {"url": "http://b", "weight": -1},
            {"url": "http://c", "headers": {"Authorization": 5}}, {"url": "http://d", "weight": 0}]);
        let entries = read(list, false).unwrap();
        assert_eq!(entries.backends.iter().map(|backend| &*backend.url).collect::<Vec<_>>(), ["http://a", "http://d"]);
        let numbers: Vec<&str> = entries.problems.iter().map(|problem| &problem[..7]).collect();
        assert_eq!(numbers, ["entry 1", "entry 2", "entry 3", "entry 4", "entry 5"]);
    }

    #[test]
    fn a_list_without_a_good_entry_is_none() {
        for (list, expected) in [
            (json!([1, "vllm:8000"]), Err("has no entry without a mistake; entry 0: is neither a URL nor an object")),
            (
                json!([{"url": "http://a", "status": "down"}, 1]),
                Err("has no entry without a mistake; entry 1: is neither a URL nor an object"),
            ),
            (json!([{"url": "http://a", "status": "down"}]), Ok(0)),
            (json!([1, "http://a"]), Ok(1)),
            (json!([]), Ok(0)),
        ] {
            let found = read(list.clone(), false).map(|entries| entries.backends.len());
            assert_eq!(found, expected.map_err(str::to_owned), "{list}");
        }
    }

    #[test]
    fn a_typing_error_is_one_where_the_list_was_written_for_us() {
        let list = json!(["http://b", {"url": "http://a", "wieght": 2}]);
        assert_eq!(
            read(list.clone(), true).unwrap().problems,
            ["entry 1: `wieght` is not a key of a backend; did you mean `weight`?"]
        );
        assert_eq!(read(list, false).unwrap().problems, Vec::<String>::new());
        assert!(known_keys().contains(&"max_concurrent"));
    }

    #[test]
    fn no_problem_quotes_a_header() {
        let list = json!(["http://b", {"url": "http://a", "headers": "Bearer secret"}, {"url": "http://a", "headers": {"a b": "secret"}}]);
        let entries = read(list, false).unwrap();
        assert_eq!(entries.problems.len(), 2);
        assert!(entries.problems.iter().all(|problem| !problem.contains("secret")), "{:?}", entries.problems);
    }

    #[test]
    fn no_problem_quotes_more_of_a_url_than_where_it_is() {
        let problems = read(json!(["http://b", "http://z5/a?token=secret"]), false).unwrap().problems;
        assert_eq!(problems, ["entry 1: url `http://z5/a` must not have a query"]);
    }

    #[test]
    fn what_an_entry_does_not_say_is_said_for_all() {
        let defaults = json!({"models": ["m"], "headers": {"Authorization": "Bearer x"}, "weight": 5, "timeout": "9s"});
        let defaults: BackendDefaults = serde_json::from_value(defaults).unwrap();
        let list = json!(["http://a", {"url": "http://b", "weight": 1, "models": null, "headers": {"X-Key": "y"}}]);
        let found = Entries::read(list, &defaults, false).unwrap().backends;
        let shown: Vec<_> = found
            .iter()
            .map(|backend| (backend.weight, &*backend.models[0], backend.headers.keys().next().unwrap().as_str()))
            .collect();
        assert_eq!(shown, [(5, "m", "Authorization"), (1, "m", "X-Key")]);
    }
}
