//! What backends are asked, each in its way, and what they answer.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use llmproxy_core::{Api, Backend, Endpoint, Work};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json, value::RawValue};

use super::{Asker, Kind, Problem, Server};
use crate::tokens::Counted;

/// The largest question, in bytes: what is longer takes a server longer than it may take.
const MAX_QUESTION: usize = 1024 * 1024;
/// So many texts of one request are asked for, one after the other.
const MAX_TEXTS: usize = 16;
/// How SentencePiece writes a space.
const SPACE: char = '\u{2581}';
/// What a template makes a prompt of.
const OF_TEMPLATE: [&str; 6] = [
    "messages",
    "tools",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
];
/// What else makes a prompt of a chat, or may. Where a server is not told it by the question its answer is not exact.
const MAY_SHAPE: [&str; 4] = ["chat_template", "documents", "reasoning_effort", "truncate_prompt_tokens"];
/// Members that make another prompt of a text than the text itself.
const NOT_PLAIN: [&str; 5] = ["truncate_prompt_tokens", "truncate", "suffix", "prompt_embeds", "input_prefix"];
/// Where one of these stands in messages there may be more than text, of which no template makes tokens.
const NO_TEXT: [&str; 5] = ["\"image", "audio\"", "audio_url\"", "\"video", "\"file\""];

/// What a backend is asked to count.
#[derive(Clone, Debug)]
pub enum Question {
    /// The prompt in the JSON of a request.
    Prompt {
        /// What the request is for.
        endpoint: Endpoint,
        /// The JSON.
        body: Bytes,
    },
    /// A text and nothing around it: what came of a request.
    Text(String),
}

/// The members of an answer that count.
#[derive(Deserialize)]
struct Answer {
    /// vLLM's; the tokens are there as well.
    count: Option<u64>,
    /// llama.cpp's.
    tokens: Option<Vec<IgnoredAny>>,
    /// TGI's for a chat.
    tokenize_response: Option<Vec<IgnoredAny>>,
    /// llama.cpp's of a template.
    prompt: Option<String>,
}

type Members<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// `prompt`, `input` or `inputs`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
    Tokens(Vec<u32>),
    Lists(Vec<Vec<u32>>),
}

/// A token with its text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Piece {
    /// vLLM's.
    Text(String),
    /// llama.cpp's, and TGI's.
    Named {
        #[serde(alias = "text")]
        piece: String,
    },
    Other(IgnoredAny),
}

/// A short text, put in the way of each of them. It begins with a space, and its tokens are to be shown.
pub(super) fn for_anybody(model: Option<&str>) -> Vec<u8> {
    let mut question = text(None, model, " a", false);
    question.extend([("with_pieces".to_owned(), true.into()), ("return_token_strs".to_owned(), true.into())]);
    bytes(question)
}

/// Whose answer it is.
pub(super) fn server(answer: &Bytes) -> Option<Server> {
    let kind = if serde_json::from_slice::<Vec<IgnoredAny>>(answer).is_ok() {
        Kind::Tgi
    } else {
        let answer: Answer = serde_json::from_slice(answer).ok()?;
        if answer.count.is_some() { Kind::Vllm } else { answer.tokens.map(|_| Kind::LlamaCpp)? }
    };
    Some(Server { kind, doubles_space: doubles_space(answer) })
}

/// Whether the tokens of a text that begins with a space begin with two.
fn doubles_space(answer: &Bytes) -> bool {
    let shown = |members: &Members<'_>| {
        let name = ["token_strs", "tokens"].into_iter().find(|name| members.contains_key(*name))?;
        serde_json::from_str::<Vec<Piece>>(members[name].get()).ok()
    };
    let pieces = match serde_json::from_slice::<Members<'_>>(answer) {
        Ok(members) => shown(&members),
        Err(_) => serde_json::from_slice(answer).ok(),
    };
    let signs = pieces.iter().flatten().flat_map(|piece| match piece {
        Piece::Text(piece) | Piece::Named { piece } => piece.chars(),
        Piece::Other(_) => "".chars(),
    });
    signs.take_while(|sign| [' ', SPACE].contains(sign)).count() > 1
}

/// The question for a text's tokens; for anybody where it is not known who is asked.
fn text(kind: Option<Kind>, model: Option<&str>, text: &str, special: bool) -> serde_json::Map<String, Value> {
    let vllm = json!({"model": model, "prompt": text, "add_special_tokens": special});
    let llama = json!({"content": text, "add_special": special});
    let tgi = json!({"inputs": text, "add_special_tokens": special});
    let mut question = serde_json::Map::new();
    for (of, json) in [(Kind::Vllm, vllm), (Kind::LlamaCpp, llama), (Kind::Tgi, tgi)] {
        if kind.is_none_or(|kind| kind == of) {
            question.extend(json.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())));
        }
    }
    if model.is_none() {
        question.remove("model");
    }
    question
}

fn bytes(question: serde_json::Map<String, Value>) -> Vec<u8> {
    Value::Object(question).to_string().into_bytes()
}

// === impl Question ===

impl Question {
    /// What needs nobody to answer: a prompt that is tokens already.
    pub(super) fn answered_here(&self) -> Option<Counted> {
        let Self::Prompt { endpoint, body } = self else { return None };
        if !matches!(endpoint.work(), Work::Completion | Work::Embedding) {
            return None;
        }
        let tokens = match texts(body)? {
            Texts::Tokens(tokens) => tokens.len(),
            Texts::Lists(lists) => lists.iter().map(Vec::len).sum(),
            Texts::One(_) | Texts::Many(_) => return None,
        };
        Some(Counted { tokens: tokens as u64, exact: is_plain(body) })
    }

    /// Asks, in the way of `server`.
    pub(super) async fn put(
        &self,
        asker: &Asker,
        server: Server,
        backend: &Arc<Backend>,
        model: Option<&str>,
    ) -> Result<Counted, Problem> {
        let kind = server.kind;
        let one = async |said: &str, special| {
            if said.len() > MAX_QUESTION {
                return Err(Problem::Unfit);
            }
            let answer = asker.post(backend, "/tokenize", bytes(text(Some(kind), model, said, special))).await?;
            count(&answer).ok_or(Problem::Failed)
        };
        match self {
            // The space before the first word is a part of it, and is put there again.
            Self::Text(text) if server.doubles_space && text.len() > 1 => {
                Ok(Counted { tokens: one(text.strip_prefix(' ').unwrap_or(text), false).await?, exact: true })
            }
            Self::Text(text) => Ok(Counted { tokens: one(text, false).await?, exact: true }),
            Self::Prompt { body, .. } if body.len() > MAX_QUESTION => Err(Problem::Unfit),
            // Their conversations would have to be turned into another API's, and Ollama's templates can't be asked for.
            Self::Prompt { endpoint, .. } if matches!(endpoint.api(), Api::Anthropic | Api::Ollama) => {
                Err(Problem::Unfit)
            }
            Self::Prompt { endpoint, body } if endpoint.work() == Work::Chat => {
                let members: Members<'_> = serde_json::from_slice(body).map_err(|_| Problem::Unfit)?;
                let messages = members.get("messages").ok_or(Problem::Unfit)?.get();
                let exact = !NO_TEXT.iter().any(|sign| messages.contains(sign)) && kind.is_told_all(&members);
                let tokens = match kind {
                    Kind::Vllm => {
                        let answer = asker.post(backend, "/tokenize", of_template(kind, &members, model)?).await?;
                        count(&answer).ok_or(Problem::Failed)?
                    }
                    Kind::Tgi => {
                        let answer = asker.post(backend, "/chat_tokenize", of_template(kind, &members, model)?).await?;
                        count(&answer).ok_or(Problem::Failed)?
                    }
                    Kind::LlamaCpp => {
                        let answer =
                            asker.post(backend, "/apply-template", of_template(kind, &members, model)?).await?;
                        let answer: Answer = serde_json::from_slice(&answer).map_err(|_| Problem::Failed)?;
                        one(&answer.prompt.ok_or(Problem::Failed)?, true).await?
                    }
                };
                Ok(Counted { tokens, exact })
            }
            Self::Prompt { body, .. } => {
                let texts = match texts(body).ok_or(Problem::Unfit)? {
                    Texts::One(text) => vec![text],
                    Texts::Many(texts) if texts.len() <= MAX_TEXTS => texts,
                    _ => return Err(Problem::Unfit),
                };
                // The others do not know how to leave them out.
                let special = kind != Kind::Vllm || !is_switched_off(body, "add_special_tokens");
                let mut tokens = 0;
                for text in texts {
                    tokens += one(&text, special).await?;
                }
                Ok(Counted { tokens, exact: is_plain(body) })
            }
        }
    }
}

fn count(answer: &Bytes) -> Option<u64> {
    if let Ok(list) = serde_json::from_slice::<Vec<IgnoredAny>>(answer) {
        return Some(list.len() as u64);
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    answer.count.or_else(|| Some(answer.tokens.or(answer.tokenize_response)?.len() as u64))
}

/// What a template is told, and the model's name there.
fn of_template(kind: Kind, members: &Members<'_>, model: Option<&str>) -> Result<Vec<u8>, Problem> {
    let model = serde_json::value::to_raw_value(&model).map_err(|_| Problem::Failed)?;
    let mut question: BTreeMap<&str, &RawValue> =
        OF_TEMPLATE.iter().chain(kind.is_told()).filter_map(|name| Some((*name, *members.get(*name)?))).collect();
    let own = members.get("model").copied();
    if let Some(model) = if model.get() == "null" { own } else { Some(&*model) } {
        question.insert("model", model);
    }
    serde_json::to_vec(&question).map_err(|_| Problem::Failed)
}

/// Whether the model is given the texts of `body`, all of them and nothing else.
fn is_plain(body: &Bytes) -> bool {
    let has_none = |members: &Members<'_>| !NOT_PLAIN.iter().any(|name| is_said(members, name));
    let Ok(members) = serde_json::from_slice::<Members<'_>>(body) else { return false };
    let parameters = members.get("parameters").map(|parameters| serde_json::from_str::<Members<'_>>(parameters.get()));
    has_none(&members) && parameters.is_none_or(|parameters| parameters.is_ok_and(|members| has_none(&members)))
}

fn is_switched_off(body: &Bytes, name: &str) -> bool {
    let members = serde_json::from_slice::<Members<'_>>(body);
    members.is_ok_and(|members| members.get(name).is_some_and(|value| value.get() == "false"))
}

/// Whether there is such a member, and it is not null.
fn is_said(members: &Members<'_>, name: &str) -> bool {
    members.get(name).is_some_and(|value| value.get() != "null")
}

/// The texts of a completion's prompt.
fn texts(body: &Bytes) -> Option<Texts> {
    let members: Members<'_> = serde_json::from_slice(body).ok()?;
    let texts = ["prompt", "input", "inputs"].into_iter().find_map(|name| members.get(name))?;
    serde_json::from_str(texts.get()).ok()
}

// === impl Kind ===

impl Kind {
    /// What of a chat it takes by its question beyond what all of them do. llama.cpp and TGI read that as they read a chat.
    fn is_told(self) -> &'static [&'static str] {
        match self {
            Self::Vllm => &["chat_template"],
            Self::LlamaCpp => {
                &["tool_choice", "response_format", "json_schema", "parallel_tool_calls", "reasoning_effort"]
            }
            Self::Tgi => &["tool_choice", "tool_prompt", "response_format", "guideline"],
        }
    }

    /// Whether nothing in `members` makes another prompt than the one that it is asked about.
    fn is_told_all(self, members: &Members<'_>) -> bool {
        let told = self.is_told();
        // Some leave the tools out then.
        let hides_tools = members.get("tool_choice").is_some_and(|choice| choice.get() == "\"none\"")
            && is_said(members, "tools")
            && !told.contains(&"tool_choice");
        !hides_tools && MAY_SHAPE.iter().all(|name| told.contains(name) || !is_said(members, name))
    }
}
