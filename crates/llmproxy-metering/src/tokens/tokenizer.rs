//! One model's tokenizer, as its files say, and its chat template.

use std::{
    fmt, fs,
    io::Read as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Deserialize;
use tokenizers::{NormalizedString, Normalizer as _, PostProcessor as _};

use super::{Counted, TokenizerError, template::Template, text::Window};
use crate::metrics;

/// The largest file that is read, in bytes; the largest vocabularies take 40 MB.
const MAX_FILE: u64 = 256 * 1024 * 1024;
/// How SentencePiece writes a space.
const SPACE: char = '\u{2581}';
/// Why a prompt is counted without its template, for the metric.
const TEMPLATE_REFUSED: &str = "template";
/// So much of a template's own words is logged, in characters.
const MAX_TOLD: usize = 300;
const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// A model's tokenizer. It counts what the model's server counts, where that uses the same files.
pub struct Tokenizer {
    encoder: tokenizers::Tokenizer,
    /// Tokens that a server puts around a text which is no chat: `<s>` and the like.
    around: u64,
    /// Whether a text that begins with a space is given another one.
    doubles_space: bool,
    template: Option<Template>,
    /// Where the template is from.
    template_file: Option<PathBuf>,
    /// Whether the log has been told that the template fails, and that it was stopped: one must not hide the other.
    told: [AtomicBool; 2],
}

/// What stands in `tokenizer_config.json` and matters here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    chat_template: Option<ChatTemplate>,
    bos_token: Option<Special>,
    eos_token: Option<Special>,
    unk_token: Option<Special>,
    sep_token: Option<Special>,
    pad_token: Option<Special>,
    cls_token: Option<Special>,
    mask_token: Option<Special>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ChatTemplate {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Special {
    Text(String),
    Token { content: String },
}

// === impl Tokenizer ===

impl Tokenizer {
    /// Loads `file`, a `tokenizer.json`, and the chat template that `config` has or that stands beside it. It takes a second or
    /// so, and blocks.
    ///
    /// # Errors
    ///
    /// If a file can't be read or is none that is known.
    pub fn load(file: &Path, config: Option<&Path>) -> Result<Self, TokenizerError> {
        let json = read(file)?;
        let (encoder, around) = encoder(file, &json)?;
        drop(json);
        let [config_file, template_file] = beside(file, config);
        let config = match &config_file {
            Some(path) => serde_json::from_slice::<Config>(&read(path)?)
                .map_err(|error| TokenizerError::Config { file: path.clone(), problem: error.to_string() })?,
            None => Config::default(),
        };
        let specials = config.specials();
        let template = match (&template_file, config.chat_template) {
            (Some(path), _) => {
                let source = String::from_utf8(read(path)?)
                    .map_err(|error| TokenizerError::Template { file: path.clone(), problem: error.to_string() })?;
                Some((path, vec![("default".to_owned(), source)]))
            }
            (None, Some(template)) => config_file.as_ref().map(|path| (path, template.named())),
            (None, None) => None,
        };
        let found = template.as_ref().map(|(path, _)| (*path).clone());
        let template = template.map(|(path, named)| {
            Template::new(named, specials)
                .map_err(|error| TokenizerError::Template { file: path.clone(), problem: error.to_string() })
        });
        Ok(Self::new(encoder, around, template.transpose()?, found))
    }

    /// The files that `load` reads or would read if they were there.
    pub(super) fn files(file: &Path, config: Option<&Path>) -> Vec<PathBuf> {
        let beside = |name: &str| file.with_file_name(name);
        match config {
            Some(config) if is_template(config) => vec![file.into(), config.into(), beside(CONFIG)],
            Some(config) => vec![file.into(), config.into()],
            None => vec![file.into(), beside(CONFIG), beside(TEMPLATE)],
        }
    }

    /// The tokens of `text` and of nothing around it.
    pub fn count(&self, text: &str) -> Counted {
        let mut window = Window::default();
        window.push(self, text);
        window.finish(self)
    }

    /// Where each token of `text` is in it, in order; `None` where the tokenizer can't tell.
    pub(super) fn offsets(&self, text: &str) -> Option<Vec<(usize, usize)>> {
        let encoding = self.encoder.encode(text, false).ok()?;
        Some(encoding.get_offsets().to_vec())
    }

    pub(super) fn around(&self) -> u64 {
        self.around
    }

    /// Whether a text that begins with a space is given another one, as Llama 2's tokenizer does: it puts one before every
    /// text, which stands there already where a model has begun with a word.
    pub(super) fn doubles_space(&self) -> bool {
        self.doubles_space
    }

    pub(super) fn template(&self) -> Option<&Template> {
        self.template.as_ref()
    }

    /// The template made no prompt of a conversation, perhaps because it was stopped. That may be the conversation's fault or,
    /// at every one, the template's, so the log is told of the first.
    pub(super) fn template_failed(&self, error: &minijinja::Error, is_too_much: bool) {
        if !is_too_much {
            metrics::count_refused(TEMPLATE_REFUSED);
        }
        if self.told[usize::from(is_too_much)].swap(true, Ordering::Relaxed) {
            return;
        }
        // What the template says may have a piece of the conversation in it.
        let problem: String = error.to_string().chars().take(MAX_TOLD).collect();
        let file = self.template_file.as_deref().unwrap_or(Path::new("")).display();
        tracing::warn!(
            %file,
            error = problem,
            "the chat template failed, so that this prompt is estimated; if it fails at every chat, mend it or name another \
             with metering.tokenizers[].config (told once for each tokenizer)"
        );
    }

    /// A tokenizer of a test's own.
    #[cfg(test)]
    pub(super) fn of(json: &str, templates: &[(&str, &str)], specials: &[(&'static str, &str)]) -> Arc<Self> {
        let (encoder, around) = encoder(Path::new("test"), json.as_bytes()).unwrap();
        let named: Vec<_> = templates.iter().map(|(name, source)| ((*name).into(), (*source).into())).collect();
        let specials = specials.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
        let template = (!named.is_empty()).then(|| Template::new(named, specials).unwrap());
        Arc::new(Self::new(encoder, around, template, None))
    }

    fn new(
        encoder: tokenizers::Tokenizer,
        around: u64,
        template: Option<Template>,
        template_file: Option<PathBuf>,
    ) -> Self {
        let told = [AtomicBool::new(false), AtomicBool::new(false)];
        Self { doubles_space: doubles_space(&encoder), encoder, around, template, template_file, told }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vocabulary = self.encoder.get_vocab_size(true);
        f.debug_struct("Tokenizer")
            .field("vocabulary", &vocabulary)
            .field("template", &self.template.is_some())
            .finish()
    }
}

/// The tokenizer in `json`, and how many tokens it puts around a text.
fn encoder(file: &Path, json: &[u8]) -> Result<(tokenizers::Tokenizer, u64), TokenizerError> {
    let parse = |problem: String| TokenizerError::Parse { file: file.to_owned(), problem };
    // The library trusts the file in places, and panics where it should not.
    let mut encoder = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(json)))
        .map_err(|_| parse("it contradicts itself".into()))?
        .map_err(|error| parse(error.to_string()))?;
    let around = encoder.get_post_processor().map_or(0, |processor| processor.added_tokens(false) as u64);
    // It moves the places of tokens around, and what it adds is known now.
    encoder.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
    encoder.with_padding(None);
    encoder.with_truncation(None).map_err(|error| parse(error.to_string()))?;
    Ok((encoder, around))
}

fn doubles_space(encoder: &tokenizers::Tokenizer) -> bool {
    let mut text = NormalizedString::from(" a");
    let is_normal = encoder.get_normalizer().is_some_and(|normalizer| normalizer.normalize(&mut text).is_ok());
    is_normal && text.get().chars().take_while(|sign| [' ', SPACE].contains(sign)).count() > 1
}

/// The file with the configuration and the one with the template, of those that are there.
fn beside(file: &Path, config: Option<&Path>) -> [Option<PathBuf>; 2] {
    let there = |name: &str| Some(file.with_file_name(name)).filter(|path| path.exists());
    match config {
        // Then the special tokens are those of the model all the same.
        Some(template) if is_template(template) => [there(CONFIG), Some(template.to_owned())],
        Some(config) => [Some(config.to_owned()), None],
        None => [there(CONFIG), there(TEMPLATE)],
    }
}

fn is_template(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "jinja")
}

fn read(file: &Path) -> Result<Vec<u8>, TokenizerError> {
    let error = |source| TokenizerError::Read { file: file.to_owned(), source: Arc::new(source) };
    let found = fs::metadata(file).map_err(error)?;
    if !found.is_file() {
        // A pipe would be waited for, and a device has no end.
        return Err(TokenizerError::NoFile { file: file.to_owned() });
    }
    let too_large = |size| TokenizerError::TooLarge { file: file.to_owned(), size, limit: MAX_FILE };
    if found.len() > MAX_FILE {
        return Err(too_large(found.len()));
    }
    // It may grow meanwhile, and some files say that they have nothing.
    let mut bytes = Vec::new();
    fs::File::open(file).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(error)?;
    let size = bytes.len() as u64;
    if size > MAX_FILE { Err(too_large(size)) } else { Ok(bytes) }
}

// === impl Config ===

impl Config {
    /// The special tokens that templates know by name.
    fn specials(&self) -> Vec<(&'static str, String)> {
        let named = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("sep_token", &self.sep_token),
            ("pad_token", &self.pad_token),
            ("cls_token", &self.cls_token),
            ("mask_token", &self.mask_token),
        ];
        let there = named.into_iter().filter_map(|(name, token)| Some((name, token.as_ref()?)));
        there.map(|(name, token)| (name, token.text().to_owned())).collect()
    }
}

// === impl ChatTemplate ===

impl ChatTemplate {
    fn named(self) -> Vec<(String, String)> {
        match self {
            Self::One(source) => vec![("default".into(), source)],
            Self::Named(all) => all.into_iter().map(|one| (one.name, one.template)).collect(),
        }
    }
}

// === impl Special ===

impl Special {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Token { content: text } => text,
        }
    }
}
