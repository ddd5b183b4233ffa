//! Whose conventions an answer follows.
//!
//! Each dialect has its file, which says what its members are called, which pieces of a stream carry text, which are
//! worth parsing, and what the counts mean. What is done with these is the same for all, and stands in the tally.

use llmproxy_core::Endpoint;

use super::{
    Tally,
    json::{Member, Names, TopLevel},
    openai,
};
use crate::counts::Counts;

/// Whose conventions an answer follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// OpenAI's chat, completions and embeddings, and what has no dialect of its own.
    #[default]
    OpenAi,
}

// === impl Dialect ===

impl Dialect {
    pub(crate) fn of(_: Endpoint) -> Self {
        Self::OpenAi
    }

    /// Whether a stream closes with an event of usage when `stream_options` ask for it.
    pub(crate) fn takes_stream_options(self) -> bool {
        self == Self::OpenAi
    }

    /// Finds the members of one object as it passes.
    pub(crate) fn members(self) -> TopLevel {
        TopLevel::new(self.names())
    }

    /// Whether an event is of a kind that nothing follows.
    pub(super) fn is_terminal(self, kind: &[u8]) -> bool {
        matches!(kind, b"message_stop" | b"response.completed" | b"response.incomplete" | b"response.failed")
    }

    /// Whether `data` carries a piece of the answer.
    pub(super) fn has_delta(self, data: &[u8]) -> bool {
        match self {
            Self::OpenAi => openai::has_delta(data),
        }
    }

    /// Whether `data`, of an event of that name, may say something about counts, an error or the end.
    pub(super) fn is_worth_parsing(self, _name: Option<&[u8]>, data: &[u8]) -> bool {
        match self {
            Self::OpenAi => openai::is_worth_parsing(data),
        }
    }

    /// Reads a piece of a stream; says whether it is usage and nothing else.
    pub(super) fn read(self, tally: &mut Tally, data: &[u8]) -> bool {
        match self {
            Self::OpenAi => openai::read(tally, data),
        }
    }

    /// What a member counts.
    pub(super) fn counts(self, member: Member, value: &[u8]) -> Option<Counts> {
        match (self, member) {
            (_, Member::Timings) => Counts::of_timings(value),
            (Self::OpenAi, Member::Usage) => Counts::of_usage(value),
            _ => None,
        }
    }

    fn names(self) -> &'static Names {
        match self {
            Self::OpenAi => &openai::NAMES,
        }
    }
}
