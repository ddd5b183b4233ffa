//! What an answer says about itself, found while its bytes pass.

mod anthropic;
mod dialect;
mod heard;
mod json;
mod large;
mod lines;
mod llama;
mod ollama;
mod openai;
mod packed;
mod places;
mod responses;
mod scan;
mod sound;
mod strings;
mod suspect;
mod tally;
mod texts;
mod tgi;
mod totals;
mod withhold;
mod zstd;

pub(crate) use dialect::Dialect;
pub(crate) use heard::{Finished, Heard, Listener};
pub(crate) use json::TopLevel;
pub(crate) use large::Large;
pub(crate) use lines::Lines;
pub(crate) use packed::{Coding, Packed, Plain};
pub(crate) use suspect::Suspect;
pub(crate) use tally::Tally;
pub(crate) use withhold::{Verdict, Withhold};
