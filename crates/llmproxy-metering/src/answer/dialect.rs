//! Whose conventions an answer follows.
//!
//! Each dialect has its file, which says what its members are called, which pieces of a stream carry text, which are
//! worth parsing, and what the counts mean. What is done with these is the same for all, and stands in the tally.

use http::HeaderMap;
use llmproxy_core::{Api, Endpoint, Work};

use super::{
    Tally, anthropic,
    json::{Member, Names, TopLevel},
    llama, ollama, openai, responses, sound, tgi,
    totals::Place,
};
use crate::counts::{self, Counts};

/// Whose conventions an answer follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// OpenAI's chat.
    #[default]
    Chat,
    /// OpenAI's completions.
    Completions,
    /// What reads and writes no text, as embeddings, rerank and score do, or is not known to: OpenAI's names, where there
    /// are some.
    Reading,
    /// Transcriptions and translations.
    Sound,
    /// OpenAI's Responses API.
    Responses,
    /// Anthropic's messages.
    Anthropic,
    /// Ollama's own API.
    Ollama,
    /// TGI's own paths, and SGLang's of the same name.
    Tgi,
    /// llama.cpp's own completion.
    Llama,
}

// === impl Dialect ===

impl Dialect {
    /// The dialect that answers of `endpoint` follow.
    pub(crate) fn of(endpoint: Endpoint) -> Self {
        match (endpoint.api(), endpoint.template()) {
            (_, "/v1/responses") => Self::Responses,
            (_, "/v1/audio/transcriptions" | "/v1/audio/translations") => Self::Sound,
            (_, "/generate" | "/generate_stream") => Self::Tgi,
            (_, "/completion") => Self::Llama,
            (Api::Anthropic, _) => Self::Anthropic,
            (Api::Ollama, _) => Self::Ollama,
            _ => match endpoint.work() {
                Work::Chat => Self::Chat,
                Work::Completion => Self::Completions,
                Work::Embedding | Work::Other => Self::Reading,
            },
        }
    }

    /// Whether a stream closes with an event of usage when `stream_options` ask for it.
    pub(crate) fn takes_stream_options(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }

    /// Finds the members of an event or a line as it passes.
    pub(super) fn members_of_event(self) -> TopLevel {
        TopLevel::new(match self {
            Self::Chat | Self::Completions | Self::Reading => &openai::EVENT_NAMES,
            _ => self.names(),
        })
    }

    /// The same of a plain answer: one object, or a list with one for each of several prompts.
    pub(crate) fn members(self) -> TopLevel {
        TopLevel::of_any(self.names())
    }

    /// What an event counts that has this index.
    pub(super) fn place(self, index: u64) -> Place {
        match self {
            Self::Llama | Self::Tgi => Place::Part(index),
            _ => Place::Choice { index, is_chat: self == Self::Chat },
        }
    }

    /// Whether several prompts may be answered by one stream, in which each event has the index of one.
    pub(super) fn has_parts(self) -> bool {
        matches!(self, Self::Tgi | Self::Llama)
    }

    /// Whether an event is of a kind that nothing follows.
    pub(super) fn is_terminal(self, kind: &[u8]) -> bool {
        match self {
            Self::Responses => responses::is_terminal(kind),
            Self::Sound => sound::is_terminal(kind),
            Self::Anthropic => anthropic::is_terminal(kind),
            _ => false,
        }
    }

    /// Whether `data` says by itself, before it is parsed, that nothing follows.
    pub(super) fn is_last(self, data: &[u8]) -> bool {
        self == Self::Tgi && tgi::is_last(data)
    }

    /// Whether a count that is zero is left out beside others.
    pub(super) fn leaves_out_zeros(self) -> bool {
        self == Self::Ollama
    }

    /// The length of the text, in bytes, where `data` carries a piece of the answer.
    pub(super) fn delta(self, data: &[u8]) -> Option<u64> {
        match self {
            Self::Chat | Self::Completions | Self::Reading => openai::delta(data),
            Self::Responses => responses::delta(data),
            Self::Sound => sound::delta(data),
            Self::Anthropic => anthropic::delta(data),
            Self::Ollama => ollama::delta(data),
            Self::Tgi => tgi::delta(data),
            Self::Llama => llama::delta(data),
        }
    }

    /// Whether `data`, of an event of that name, may say something about counts, an error or the end.
    pub(super) fn is_worth_parsing(self, name: Option<&[u8]>, data: &[u8]) -> bool {
        match self {
            Self::Chat | Self::Completions | Self::Reading => openai::is_worth_parsing(data),
            Self::Responses => responses::is_worth_parsing(name, data),
            Self::Sound => sound::is_worth_parsing(data),
            Self::Anthropic => anthropic::is_worth_parsing(name, data),
            Self::Ollama => ollama::is_worth_parsing(data),
            Self::Tgi => tgi::is_worth_parsing(data),
            Self::Llama => llama::is_worth_parsing(data),
        }
    }

    /// Reads a piece of a stream; says whether it is usage and nothing else.
    pub(super) fn read(self, tally: &mut Tally, data: &[u8]) -> bool {
        if matches!(self, Self::Chat | Self::Completions | Self::Reading) {
            return openai::read(tally, data);
        }
        self.members_of_event().feed(data, |member, value| tally.member(member, value));
        tally.end_object();
        false
    }

    /// How many seconds of sound a member says.
    pub(super) fn seconds(self, member: Member, value: &[u8]) -> Option<u64> {
        if self == Self::Sound { sound::seconds(member, value) } else { None }
    }

    /// What the head of an answer counts.
    pub(super) fn counts_of_head(self, headers: &HeaderMap) -> Option<Counts> {
        if self == Self::Tgi { tgi::counts_of_head(headers) } else { None }
    }

    /// What a member counts.
    pub(super) fn counts(self, member: Member, value: &[u8]) -> Option<Counts> {
        match (self, member) {
            (_, Member::Timings) => Counts::of_timings(value),
            (Self::Anthropic, Member::Usage | Member::PromptUsage) => anthropic::counts(member, value),
            (Self::Tgi, Member::PartUsage) => Counts::of_usage(value),
            (Self::Reading | Self::Sound, Member::Usage) => Counts::of_usage(value).or_else(|| Counts::of_total(value)),
            (_, Member::Usage) => Counts::of_usage(value),
            (_, Member::Prompt) => counts::number(value).map(Counts::of_prompt),
            (_, Member::Completion) => counts::number(value).map(Counts::of_completion),
            (_, Member::Prefill) => tgi::counts_of_prefill(value),
            (_, Member::Reason) => ollama::counts_of_reason(value),
            _ => None,
        }
    }

    fn names(self) -> &'static Names {
        match self {
            Self::Chat | Self::Completions | Self::Reading => &openai::NAMES,
            Self::Responses => &responses::NAMES,
            Self::Sound => &sound::NAMES,
            Self::Anthropic => &anthropic::NAMES,
            Self::Ollama => &ollama::NAMES,
            Self::Tgi => &tgi::NAMES,
            Self::Llama => &llama::NAMES,
        }
    }
}
