//! From a file to a configuration, or to all that is wrong with it.

use std::{collections::BTreeSet, env, fs, path::Path};

use crate::{
    Config, LoadError, Mistake, Warning,
    compose::compose,
    expand::{Variables, expand},
    rename::rename,
    tree::{self, string},
    walk::Walk,
};

/// What variables must begin with to stand for keys.
const PREFIX: &str = "LLMPROXY_";
/// What stands between the names of a key's path in a variable's name.
const SEPARATOR: &str = "__";
/// What stands in a message where a secret was. Secrets shorter than this are too likely to be part of a word.
const MASK: &str = "***";

/// How a file is read.
///
/// ```
/// use llmproxy_config::{LoadOptions, load_str};
///
/// let variables = [("PORT".to_owned(), "9000".to_owned())].into_iter().collect();
/// let options = LoadOptions { variables: Some(variables), ..LoadOptions::default() };
/// let text = "server: {listen: ':${PORT}'}\nbackends: [{url: 'http://localhost:11434'}]\n";
/// assert_eq!(load_str(text, &options)?.config.server.listen, ":9000");
/// # Ok::<(), llmproxy_config::LoadError>(())
/// ```
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Whether a key that nothing knows is a mistake rather than a warning.
    pub strict: bool,
    /// Whether variables like `LLMPROXY_SERVER__LISTEN` override the file. `${VAR}` is expanded either way.
    pub env: bool,
    /// What stands for the process's environment; the environment itself where there is none.
    pub variables: Option<Variables>,
}

/// A configuration, and what its operator should know.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What to run by.
    pub config: Config,
    /// In the order of their paths.
    pub warnings: Vec<Warning>,
}

/// Reads the file at `path`. It blocks while it reads: the file, and those that `${file:...}` names.
///
/// # Errors
///
/// If it can't be read, is no YAML, or says something that can't be done; then all of that at once.
///
/// ```
/// use llmproxy_config::{LoadError, load};
///
/// let error = load("no-such-file.yaml", &Default::default()).unwrap_err();
/// assert!(matches!(error, LoadError::Read { .. }));
/// ```
pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Loaded, LoadError> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).map_err(|source| LoadError::Read { path: path.into(), source })?;
    load_str(&text, options)
}

/// Reads a file's text.
///
/// # Errors
///
/// If it is no YAML, or says something that can't be done; then all of that at once.
///
/// ```
/// let error = llmproxy_config::load_str("server: {listen: here}", &Default::default()).unwrap_err();
/// let paths: Vec<&str> = error.mistakes().iter().map(|mistake| mistake.path.as_str()).collect();
/// assert_eq!(paths, ["backends", "server.listen"]);
/// ```
pub fn load_str(text: &str, options: &LoadOptions) -> Result<Loaded, LoadError> {
    let mut dict = tree::parse(text)?;
    let variables = options.variables.clone().unwrap_or_else(process_variables);
    let mut overridden = BTreeSet::new();
    if options.env {
        for (name, path, value) in overrides(&variables) {
            let segments: Vec<&str> = path.split('.').collect();
            tree::insert(&mut dict, &segments, string(value));
            overridden.insert((path, name));
        }
    }
    let (mut mistakes, mut warnings) = (Vec::new(), Vec::new());
    expand(&mut dict, &variables, &mut mistakes);
    rename(&mut dict, &mut mistakes, &mut warnings);
    let walk = Walk::over(&mut dict);
    mistakes.extend(walk.mistakes);
    warnings.extend(walk.warnings);
    if options.strict {
        mistakes.extend(walk.unknown.into_iter().map(|unknown| Mistake::new(unknown.path, unknown.message)));
    } else {
        warnings.extend(walk.unknown);
    }
    let config = compose(dict, &mut mistakes, &mut warnings);

    // Where a value comes from is half of what helps to mend it.
    let origin = |path: &str| {
        let named = |overridden: &str| {
            overridden.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        overridden.iter().find(|(overridden, _)| named(overridden)).map(|(_, name)| name)
    };
    for (path, message) in mistakes
        .iter_mut()
        .map(|mistake| (&mistake.path, &mut mistake.message))
        .chain(warnings.iter_mut().map(|warning| (&warning.path, &mut warning.message)))
    {
        for secret in walk.secrets.iter().filter(|secret| secret.len() > MASK.len()) {
            *message = message.replace(secret.as_str(), MASK);
        }
        if let Some(name) = origin(path) {
            message.push_str(&format!(" (set by the environment variable {name})"));
        }
    }
    mistakes.sort_by(|a, b| a.path.cmp(&b.path));
    warnings.sort_by(|a, b| a.path.cmp(&b.path));
    if mistakes.is_empty() { Ok(Loaded { config, warnings }) } else { Err(LoadError::Mistakes(mistakes)) }
}

fn process_variables() -> Variables {
    let readable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    env::vars_os().filter_map(readable).collect()
}

/// Variables that name a key, with its path. One without a separator names no key but perhaps something else that an
/// environment is full of, like the port that a container's platform announces.
fn overrides(variables: &Variables) -> impl Iterator<Item = (String, String, &String)> {
    variables.iter().filter_map(|(name, value)| {
        let path = name.strip_prefix(PREFIX)?.to_ascii_lowercase();
        let segments: Vec<&str> = path.split(SEPARATOR).collect();
        // One that is set to nothing, as compose files do for what their own environment lacks, overrides nothing.
        let names_a_key = segments.len() > 1 && segments.iter().all(|segment| !segment.is_empty()) && !value.is_empty();
        names_a_key.then(|| (name.clone(), segments.join("."), value))
    })
}

// === impl LoadOptions ===

impl Default for LoadOptions {
    /// Not strict, and with the environment.
    fn default() -> Self {
        Self { strict: false, env: true, variables: None }
    }
}
