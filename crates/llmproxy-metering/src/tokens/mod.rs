//! Counting tokens ourselves, for answers whose backend does not tell.
//!
//! It stands alone: it is given text, the JSON of a request and the name of a model, and gives numbers. It knows no bodies, no
//! exchanges and no answers. What there is, from the best to the least:
//!
//! - [`Tokenizers`] are the files that the operator named, each for some models. A [`Tokenizer`] counts a prompt through the
//!   model's own chat template, and a text that comes piece by piece with a [`Run`], whose memory does not grow with the text.
//! - [`CountPool`] does that off the request's task: a [`Counting`] for each exchange takes the prompt and the pieces of text
//!   and ends in one call of a closure, whatever happens.
//! - [`Asker`] asks the backend's own `/tokenize`.
//! - [`Learned`] guesses by bytes for each token, as seen where the usage was known, and shows how far it is off.
//!
//! ```no_run
//! # async fn example(config: llmproxy_metering::MeteringConfig, body: bytes::Bytes) -> Result<(), Vec<llmproxy_metering::tokens::TokenizerError>> {
//! use llmproxy_core::Endpoint;
//! use llmproxy_metering::tokens::{CountPool, Tokenizers};
//!
//! let tokenizers = Tokenizers::load(config.tokenizers.clone(), Tokenizers::default()).await?;
//! let pool = CountPool::new(config.limits());
//!
//! if let Some(tokenizer) = tokenizers.find("qwen3-8b") {
//!     let mut counting = pool.start(tokenizer);
//!     counting.prompt(Endpoint::of("/v1/chat/completions"), body);
//!     counting.text(0, "Hello");
//!     counting.text(0, " there.");
//!     counting.finish(|counted| match counted {
//!         Ok(totals) => println!("{:?} and {:?}", totals.prompt, totals.completion),
//!         Err(why) => println!("to be estimated: {why}"),
//!     });
//! }
//! # Ok(())
//! # }
//! ```

mod ask;
mod counting;
mod done;
mod error;
mod learned;
mod pool;
mod set;

#[cfg(not(feature = "tokenizers"))]
#[path = "absent.rs"]
mod tokenizer;
#[cfg(feature = "tokenizers")]
mod tokenizer;

#[cfg(feature = "tokenizers")]
mod bounds;
#[cfg(feature = "tokenizers")]
mod chat;
#[cfg(feature = "tokenizers")]
mod plain;
#[cfg(feature = "tokenizers")]
mod prompt;
#[cfg(feature = "tokenizers")]
mod python;
#[cfg(feature = "tokenizers")]
mod template;
#[cfg(feature = "tokenizers")]
mod text;
#[cfg(all(test, feature = "tokenizers"))]
mod trained;

pub use ask::{Asker, Question};
pub use counting::{CountPool, Counting, Limits, Totals};
pub use error::{TokenizerError, Uncounted};
pub use learned::Learned;
pub use set::Tokenizers;
#[cfg(feature = "tokenizers")]
pub use text::Run;
#[cfg(not(feature = "tokenizers"))]
pub use tokenizer::Run;
pub use tokenizer::Tokenizer;

/// A number of tokens, and whether it is what the server counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many.
    pub tokens: u64,
    /// Whether they are exact; where not, they are as near as the tokenizer comes: an image in the prompt, no chat template.
    pub exact: bool,
}

// === impl Counted ===

impl Counted {
    /// No token, exactly.
    pub const NONE: Self = Self { tokens: 0, exact: true };

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self { tokens: self.tokens.saturating_add(other.tokens), exact: self.exact && other.exact }
    }
}
