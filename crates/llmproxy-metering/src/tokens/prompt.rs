//! The tokens of a request's prompt.
//!
//! What is counted is what a server that serves the model by these files makes of the request: a conversation goes through
//! the chat template, as transformers and vLLM do it; a text has the tokens around it that the tokenizer puts there.

use llmproxy_core::{Api, Endpoint, Work};
use minijinja::{ErrorKind, Value};

use super::{
    Counted, Tokenizer,
    bounds::{MAX_CHAT, MAX_VALUES, is_true, members, values},
    chat::{Chat, entries, member},
    template::Takes,
};

/// Members that make another prompt of a text than the text itself.
const NOT_PLAIN: [&str; 5] = ["truncate_prompt_tokens", "truncate", "suffix", "prompt_embeds", "input_prefix"];

/// Why a conversation did not become a prompt.
enum Unrendered {
    /// There is no template for it, or that fails.
    Refused,
    /// It would take too long, or be too long.
    TooMuch,
}

// === impl Tokenizer ===

impl Tokenizer {
    /// The tokens of the prompt in `body`, the JSON of a request to `endpoint`. `None` where there is no prompt in it that is
    /// known, or a conversation that
    /// is more than 2 MiB or 65536 values, or more to its template than that may make of one. It takes a millisecond for each few hundred
    /// tokens, and should not run where others wait.
    pub fn count_prompt(&self, endpoint: Endpoint, body: &[u8]) -> Option<Counted> {
        let takes = self.template().map_or(Takes::Text, |template| template.takes());
        let of_chat = |chat: fn(&Value, Takes) -> Option<Chat>| {
            let body = tree(body)?;
            self.chat(&body, chat(&body, takes)?)
        };
        match (endpoint.template(), endpoint.work()) {
            ("/v1/messages", _) => of_chat(Chat::anthropic),
            ("/v1/responses", _) => of_chat(Chat::responses),
            ("/api/generate", _) => self.ollama_generate(body, takes),
            // Ollama's templates are its own, and in another language.
            ("/api/chat", _) => inexact(of_chat(Chat::openai)),
            (_, Work::Chat) => of_chat(Chat::openai),
            (_, Work::Completion | Work::Embedding) => self.texts(endpoint, body),
            (_, Work::Other) => None,
        }
    }

    fn chat(&self, body: &Value, chat: Chat) -> Option<Counted> {
        let exact = chat.exact;
        let prompt = match self.rendered(&chat) {
            Ok(prompt) => prompt,
            Err(Unrendered::Refused) => return inexact(Some(self.count(&chat.plain()))),
            Err(Unrendered::TooMuch) => return None,
        };
        let mut counted = self.count(&prompt);
        counted.exact &= exact;
        // The template has them already; who wants them once more says so.
        if member(body, "add_special_tokens").is_some_and(|add| add.is_true()) {
            counted.tokens += self.around();
        }
        Some(counted)
    }

    /// The conversation as the model is given it.
    fn rendered(&self, chat: &Chat) -> Result<String, Unrendered> {
        let mut context = chat.context.clone();
        context.push(("messages".to_owned(), Value::from(chat.messages.clone())));
        let template = self.template().ok_or(Unrendered::Refused)?;
        let mut prompt = match template.render(context) {
            Ok(prompt) => prompt,
            Err(error) => {
                let is_too_much = matches!(error.kind(), ErrorKind::OutOfFuel | ErrorKind::WriteFailure);
                self.template_failed(&error, is_too_much);
                return Err(if is_too_much { Unrendered::TooMuch } else { Unrendered::Refused });
            }
        };
        if chat.continues {
            prompt.truncate(end_of_continued(&prompt, chat).ok_or(Unrendered::Refused)?);
        }
        Ok(prompt)
    }

    /// `prompt`, `input` or `inputs`: a text, texts, tokens, or lists of tokens.
    fn texts(&self, endpoint: Endpoint, body: &[u8]) -> Option<Counted> {
        let [prompt, input, inputs, add_special_tokens, parameters] =
            members(body, ["prompt", "input", "inputs", "add_special_tokens", "parameters"])?;
        let prompt = prompt.or(input).or(inputs)?;
        let is_switched_off = add_special_tokens.is_some_and(|add| !is_true(add));
        let mut counted = self.count_plain(prompt, if is_switched_off { 0 } else { self.around() })?;
        // Cut to a length, filled in the middle, or with more in front than is said here.
        let is_plain = |json: &[u8]| members(json, NOT_PLAIN).is_none_or(|more| more.iter().all(Option::is_none));
        let parameters = parameters.map(|parameters| parameters.get().as_bytes()).unwrap_or_default();
        counted.exact &= is_plain(body) && is_plain(parameters) && endpoint.api() != Api::Ollama;
        Some(counted)
    }

    /// Ollama's completion: a text that goes through a template unless it is said to be raw.
    fn ollama_generate(&self, body: &[u8], takes: Takes) -> Option<Counted> {
        let [prompt, raw, system, suffix, images, context] =
            members(body, ["prompt", "raw", "system", "suffix", "images", "context"])?;
        let prompt = prompt.filter(|prompt| prompt.get().starts_with('"'))?;
        if raw.is_some_and(is_true) {
            let has_more = [suffix, images, context].into_iter().flatten().any(is_true);
            let mut counted = self.count_plain(prompt, self.around())?;
            counted.exact &= !has_more;
            return Some(counted);
        }
        let message = |role: &str, content| Value::from_pairs([("role", Value::from(role)), ("content", content)]);
        let system = match system {
            Some(system) => Some(message("system", tree(system.get().as_bytes())?)),
            None => None,
        };
        let prompt = message("user", tree(prompt.get().as_bytes())?);
        let body = Value::from_pairs([("messages", Value::from_iter(system.into_iter().chain([prompt])))]);
        inexact(self.chat(&body, Chat::openai(&body, takes)?))
    }
}

/// What a template is told of, unless it is too much.
fn tree(json: &[u8]) -> Option<Value> {
    if json.len() > MAX_CHAT {
        return None;
    }
    values(json, MAX_VALUES)?;
    serde_json::from_slice(json).ok()
}

fn inexact(counted: Option<Counted>) -> Option<Counted> {
    counted.map(|counted| Counted { exact: false, ..counted })
}

/// Where the message that the model goes on with ends in `prompt`.
fn end_of_continued(prompt: &str, chat: &Chat) -> Option<usize> {
    let last = chat.messages.last().and_then(|message| member(message, "content"))?;
    let text = match last.as_str() {
        Some(text) => text.to_owned(),
        None => member(entries(&last).last()?, "text")?.to_string(),
    };
    end_of_last(prompt, &text)
}

/// Where the last message's text ends in `prompt`; the template may have stripped spaces from it.
fn end_of_last(prompt: &str, text: &str) -> Option<usize> {
    let at = prompt.rfind(text.trim())?;
    let whole = text.trim_start();
    let len = if prompt[at..].starts_with(whole) { whole.len() } else { text.trim().len() };
    Some(at + len)
}

#[cfg(test)]
mod tests;
