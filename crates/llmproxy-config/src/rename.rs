//! Keys that had other names, in the Go program or only in its documentation.

use figment::value::{Dict, Tag, Value};

use crate::{
    Mistake, Warning,
    scalar::switch,
    table::{self, State},
    tree::{get, insert, remove, string},
};

/// Moves what stands under an old name to the new one, saying so.
pub(crate) fn rename(dict: &mut Dict, mistakes: &mut Vec<Mistake>, warnings: &mut Vec<Warning>) {
    for key in table::keys() {
        let State::Renamed(new) = key.state else { continue };
        let old_path: Vec<&str> = key.path.split('.').collect();
        let Some(value) = remove(dict, &old_path) else { continue };
        if matches!(value, Value::Empty(..)) {
            continue;
        }
        let result = match key.path {
            "usage_hook" => usage_hook(dict, value),
            "api_keys" => api_keys(dict, value),
            _ => {
                let new_path: Vec<&str> = new.split('.').collect();
                if get(dict, &new_path).is_some_and(|value| !matches!(value, Value::Empty(..))) {
                    warnings.push(Warning::new(key.path, format!("is left aside, since `{new}` is set; remove it")));
                    continue;
                }
                insert(dict, &new_path, value);
                Ok(())
            }
        };
        match result {
            Ok(()) => warnings.push(Warning::new(key.path, format!("is `{new}` now; it still works, but rename it"))),
            Err(message) => mistakes.push(Mistake::new(key.path, message)),
        }
    }
}

/// One webhook, or a list of reporters.
fn usage_hook(dict: &mut Dict, value: Value) -> Result<(), String> {
    let Value::Dict(_, mut hook) = value else {
        return Err(
            "must be a map of enabled, url, timeout and retry; write it as an entry of `usage.reporters`".into()
        );
    };
    let enabled = hook.remove("enabled");
    let off = enabled.as_ref().and_then(switch) == Some(false);
    let mut reporters = match hook.remove("reporters") {
        Some(Value::Array(_, reporters)) => reporters,
        Some(Value::Empty(..)) | None => Vec::new(),
        Some(_) => return Err("`reporters` must be a list; write it as `usage.reporters`".into()),
    };
    if off {
        // `enabled: false` of the block switches off what it holds, not what stands under `usage`.
        for reporter in &mut reporters {
            if let Value::Dict(_, reporter) = reporter {
                reporter.insert("enabled".into(), false.into());
            }
        }
    }
    if hook.contains_key("url") {
        let mut reporter = Dict::new();
        reporter.insert("name".into(), string("usage_hook"));
        reporter.insert("type".into(), string("webhook"));
        if let Some(enabled) = enabled {
            reporter.insert("enabled".into(), enabled);
        }
        reporter.insert("webhook".into(), Value::Dict(Tag::Default, hook));
        reporters.push(Value::Dict(Tag::Default, reporter));
    }
    if !off && !reporters.is_empty() {
        enable(dict, "usage");
    }
    append(dict, &["usage", "reporters"], reporters)
}

/// A static entry of the pipeline.
fn api_keys(dict: &mut Dict, value: Value) -> Result<(), String> {
    let Value::Array(_, keys) = value else {
        return Err("must be a list of keys; write it as a static entry of `auth.pipeline`".into());
    };
    if keys.is_empty() {
        return Ok(());
    }
    let keys = keys.into_iter().map(|key| match key {
        // A key alone, without a name.
        Value::String(..) => Value::Dict(Tag::Default, [("key".into(), key)].into()),
        key => key,
    });
    let keys = Value::Array(Tag::Default, keys.collect());
    let mut entry = Dict::new();
    entry.insert("name".into(), string("api_keys"));
    entry.insert("type".into(), string("static"));
    entry.insert("static".into(), Value::Dict(Tag::Default, [("keys".into(), keys)].into()));
    // Whoever writes keys down wants them asked for; an explicit `false` still wins.
    enable(dict, "auth");
    append(dict, &["auth", "pipeline"], vec![Value::Dict(Tag::Default, entry)])
}

fn enable(dict: &mut Dict, block: &str) {
    if get(dict, &[block, "enabled"]).is_none_or(|value| matches!(value, Value::Empty(..))) {
        insert(dict, &[block, "enabled"], true.into());
    }
}

fn append(dict: &mut Dict, path: &[&str], mut entries: Vec<Value>) -> Result<(), String> {
    match get(dict, path) {
        None | Some(Value::Empty(..)) => {}
        Some(Value::Array(_, before)) => entries.splice(0..0, before.iter().cloned()).for_each(drop),
        Some(_) => return Err(format!("can't be added to `{}`, which must be a list", path.join("."))),
    }
    insert(dict, path, Value::Array(Tag::Default, entries));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::parse;

    fn renamed(text: &str) -> (Dict, Vec<String>) {
        let (mut mistakes, mut warnings) = (Vec::new(), Vec::new());
        let mut dict = parse(text).unwrap();
        rename(&mut dict, &mut mistakes, &mut warnings);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        (dict, warnings.iter().map(Warning::to_string).collect())
    }

    #[test]
    fn an_old_name_works_and_says_the_new_one() {
        let (dict, warnings) = renamed("listen: \":9000\"\nload_balance_strategy: least_conn\n");
        assert_eq!(get(&dict, &["server", "listen"]), Some(&string(":9000")));
        assert_eq!(get(&dict, &["routing", "load_balance"]), Some(&string("least_conn")));
        assert_eq!(warnings[0], "listen: is `server.listen` now; it still works, but rename it");
        assert!(!dict.contains_key("listen"));
    }

    #[test]
    fn the_new_name_wins_over_the_old_one() {
        let (dict, warnings) = renamed("listen: \":9000\"\nserver: {listen: \":8000\"}\n");
        assert_eq!(get(&dict, &["server", "listen"]), Some(&string(":8000")));
        assert!(warnings[0].contains("left aside"));
    }

    #[test]
    fn a_usage_hook_is_one_more_reporter() {
        let (dict, _) = renamed(
            "usage: {enabled: true, reporters: [{name: a}]}\nusage_hook: {enabled: true, url: http://x, retry: 2}\n",
        );
        let Some(Value::Array(_, reporters)) = get(&dict, &["usage", "reporters"]) else { panic!() };
        assert_eq!(reporters.len(), 2);
        let Value::Dict(_, hook) = &reporters[1] else { panic!() };
        assert_eq!(get(hook, &["webhook", "url"]), Some(&string("http://x")));
        assert_eq!(get(hook, &["webhook", "retry"]), Some(&Value::from(2u64)));
    }

    #[test]
    fn a_usage_hook_that_is_off_switches_nothing_on() {
        let (dict, _) = renamed("usage_hook: {enabled: false, url: http://x}\n");
        assert_eq!(get(&dict, &["usage", "enabled"]), None);
    }

    #[test]
    fn api_keys_are_a_static_entry_and_switch_auth_on() {
        let (dict, _) = renamed("api_keys: [{key: sk-1, name: alice}, sk-2]\n");
        assert_eq!(get(&dict, &["auth", "enabled"]), Some(&Value::from(true)));
        let Some(Value::Array(_, pipeline)) = get(&dict, &["auth", "pipeline"]) else { panic!() };
        let Value::Dict(_, entry) = &pipeline[0] else { panic!() };
        let Some(Value::Array(_, keys)) = get(entry, &["static", "keys"]) else { panic!() };
        assert_eq!(keys.len(), 2);
        let (dict, _) = renamed("auth: {enabled: false}\napi_keys: [{key: sk-1}]\n");
        assert_eq!(get(&dict, &["auth", "enabled"]), Some(&Value::from(false)));
    }

    #[test]
    fn what_has_the_wrong_form_is_a_mistake() {
        for text in ["api_keys: sk-1", "usage_hook: http://x", "auth: {pipeline: 3}\napi_keys: [sk-1]"] {
            let mut mistakes = Vec::new();
            rename(&mut parse(text).unwrap(), &mut mistakes, &mut Vec::new());
            assert_eq!(mistakes.len(), 1, "{text}");
        }
    }
}
