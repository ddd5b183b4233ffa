//! What an operator may say about the reading of requests.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{Pattern, tokens::Limits};

/// How much of a request is read, and how long that may take.
///
/// ```
/// use llmproxy_metering::InspectConfig;
///
/// let config = InspectConfig { max_body_size: 1024 * 1024, ..InspectConfig::default() };
/// assert_eq!(config.body_gap_timeout.as_secs(), 30);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct InspectConfig {
    /// The largest body that is read whole, in bytes.
    pub max_body_size: u64,
    /// The largest body that passes through, in bytes.
    pub max_upload_size: u64,
    /// The most that the bodies of all requests may take together while they are held, in bytes. It is the limit of the
    /// [`BodyBudget`](crate::BodyBudget), which outlives the layer.
    pub max_buffered_bytes: u64,
    /// The longest wait for the next piece of a body.
    #[serde(with = "llmproxy_core::duration")]
    pub body_gap_timeout: Duration,
}

/// How tokens are counted that no backend told of: the block `metering`.
///
/// ```
/// use llmproxy_metering::MeteringConfig;
///
/// let config = MeteringConfig::default();
/// assert!(config.tokenizers.is_empty() && !config.ask_backend);
/// assert!(config.validate().is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MeteringConfig {
    /// Tokenizers of served models. The first entry with a pattern that fits a model counts for it.
    pub tokenizers: Vec<TokenizerConfig>,
    /// Whether a backend is asked for the number of tokens by its own `/tokenize`, where no tokenizer is there.
    pub ask_backend: bool,
    /// Threads that count.
    pub count_threads: usize,
    /// Steps that may wait to be counted: prompts, pieces of answers, ends.
    pub count_queue: usize,
    /// Bytes of text that may wait to be counted.
    pub count_queue_bytes: u64,
}

/// One tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TokenizerConfig {
    /// The models that it is for: names in which `*` stands for anything.
    pub models: Vec<Pattern>,
    /// The model's `tokenizer.json`.
    pub file: PathBuf,
    /// The model's `tokenizer_config.json` with its chat template, or the template itself in a file that ends in `.jinja`. Default:
    /// what stands beside `file` under those names, `chat_template.jinja` for the template.
    pub config: Option<PathBuf>,
}

// === impl InspectConfig ===

impl InspectConfig {
    /// 10 MiB, in bytes: a long conversation with a few images.
    pub const DEFAULT_MAX_BODY_SIZE: u64 = 10 * 1024 * 1024;
    /// 256 MiB, in bytes: two dozen of the largest bodies, some thousands of usual ones.
    pub const DEFAULT_MAX_BUFFERED_BYTES: u64 = 256 * 1024 * 1024;
    /// 30 s.
    pub const DEFAULT_BODY_GAP_TIMEOUT: Duration = Duration::from_secs(30);
}

impl Default for InspectConfig {
    fn default() -> Self {
        Self {
            max_body_size: Self::DEFAULT_MAX_BODY_SIZE,
            max_upload_size: Self::DEFAULT_MAX_BODY_SIZE,
            max_buffered_bytes: Self::DEFAULT_MAX_BUFFERED_BYTES,
            body_gap_timeout: Self::DEFAULT_BODY_GAP_TIMEOUT,
        }
    }
}

// === impl MeteringConfig ===

impl MeteringConfig {
    /// 1: a thread counts most of a million tokens a second.
    pub const DEFAULT_COUNT_THREADS: usize = 1;
    /// 65,536.
    pub const DEFAULT_COUNT_QUEUE: usize = 65_536;
    /// 64 MiB, in bytes.
    pub const DEFAULT_COUNT_QUEUE_BYTES: u64 = 64 * 1024 * 1024;
    /// 64 threads, the most that may be said.
    pub const MAX_COUNT_THREADS: usize = 64;
    /// 128 tokenizers, the most that may be said: each takes tens of megabytes.
    pub const MAX_TOKENIZERS: usize = 128;

    /// What is wrong with it: each mistake's key and a sentence. Empty if nothing is. Whether the tokenizers can be used is
    /// known when they are loaded, which takes longer.
    pub fn validate(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let threads = 1..=Self::MAX_COUNT_THREADS;
        if !threads.contains(&self.count_threads) {
            let most = Self::MAX_COUNT_THREADS;
            found.push(("count_threads".into(), format!("{} threads; write 1 to {most}", self.count_threads)));
        }
        if self.count_queue == 0 {
            found.push(("count_queue".into(), "nothing could be counted; write at least 1".into()));
        }
        if self.count_queue_bytes == 0 {
            found.push(("count_queue_bytes".into(), "nothing could be counted; write at least 1".into()));
        }
        if self.tokenizers.len() > Self::MAX_TOKENIZERS {
            let (count, most) = (self.tokenizers.len(), Self::MAX_TOKENIZERS);
            found.push(("tokenizers".into(), format!("{count} tokenizers; name at most {most}")));
        }
        if !cfg!(feature = "tokenizers") && !self.tokenizers.is_empty() {
            let message = "this build counts with no tokenizers; build with `--features tokenizers`, or remove it";
            found.push(("tokenizers".into(), message.into()));
            return found;
        }
        for (index, tokenizer) in self.tokenizers.iter().enumerate() {
            let mut wrong = |key: &str, message: String| found.push((format!("tokenizers[{index}].{key}"), message));
            if tokenizer.models.is_empty() {
                wrong("models", "names no model; name those that it is for, such as [\"qwen*\"]".into());
            }
            if tokenizer.models.iter().any(|model| model.as_str().is_empty()) {
                wrong("models", "a name is empty; write `*` for any model".into());
            }
            let files = [("file", Some(&tokenizer.file)), ("config", tokenizer.config.as_ref())];
            for (key, path) in files.into_iter().filter_map(|(key, path)| Some((key, path?))) {
                if path.as_os_str().is_empty() {
                    wrong(key, "names no file; write the path of the model's tokenizer.json".into());
                } else if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
                    // To open a pipe would be to wait for whoever writes to it.
                    let shown = path.display();
                    wrong(key, format!("{shown} is no regular file; name a file that the model came with"));
                } else if let Err(error) = std::fs::File::open(path) {
                    let shown = path.display();
                    wrong(key, format!("{shown} can't be read: {error}; name a file that the proxy may read"));
                }
            }
        }
        found
    }

    /// How much may be counted at once.
    pub fn limits(&self) -> Limits {
        Limits { threads: self.count_threads, queue: self.count_queue, bytes: self.count_queue_bytes }
    }
}

impl Default for MeteringConfig {
    fn default() -> Self {
        Self {
            tokenizers: Vec::new(),
            ask_backend: false,
            count_threads: Self::DEFAULT_COUNT_THREADS,
            count_queue: Self::DEFAULT_COUNT_QUEUE,
            count_queue_bytes: Self::DEFAULT_COUNT_QUEUE_BYTES,
        }
    }
}

#[cfg(all(test, not(feature = "tokenizers")))]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_tokenizers_refuses_a_configuration_with_one() {
        let tokenizers = vec![TokenizerConfig { models: vec!["*".into()], ..TokenizerConfig::default() }];
        let found = MeteringConfig { tokenizers: tokenizers.clone(), ..MeteringConfig::default() }.validate();
        assert!(
            matches!(&found[..], [(key, message)] if key == "tokenizers" && message.contains("--features tokenizers"))
        );
        let errors = crate::tokens::Tokenizers::load_blocking(&tokenizers, &Default::default()).unwrap_err();
        assert!(errors[0].to_string().contains("--features tokenizers"), "{errors:?}");
    }
}
