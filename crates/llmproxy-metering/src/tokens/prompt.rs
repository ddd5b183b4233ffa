//! The tokens of a request's prompt.
//!
//! What is counted is what a server that serves the model by these files makes of the request: a conversation goes through
//! the chat template, as transformers and vLLM do it; a text has the tokens around it that the tokenizer puts there.

use llmproxy_core::{Api, Endpoint, Work};
use minijinja::{Value, value::ValueKind};

use super::{
    Counted, Tokenizer,
    chat::{Chat, entries, member},
    template::Takes,
};

// === impl Tokenizer ===

impl Tokenizer {
    /// The tokens of the prompt in `body`, the JSON of a request to `endpoint`. `None` where there is no prompt in it that is
    /// known. It takes a millisecond for each few hundred tokens, and should not run where others wait.
    pub fn count_prompt(&self, endpoint: Endpoint, body: &[u8]) -> Option<Counted> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let takes = self.template().map_or(Takes::Text, |template| template.takes());
        match (endpoint.template(), endpoint.work()) {
            ("/v1/messages", _) => self.chat(&body, Chat::anthropic(&body, takes)?),
            ("/v1/responses", _) => self.chat(&body, Chat::responses(&body, takes)?),
            ("/api/generate", _) => self.ollama_generate(&body, takes),
            // Ollama's templates are its own, and in another language.
            ("/api/chat", _) => inexact(self.chat(&body, Chat::openai(&body, takes)?)),
            (_, Work::Chat) => self.chat(&body, Chat::openai(&body, takes)?),
            (_, Work::Completion | Work::Embedding) => self.texts(endpoint, &body),
            (_, Work::Other) => None,
        }
    }

    fn chat(&self, body: &Value, chat: Chat) -> Option<Counted> {
        let exact = chat.exact;
        let Some(prompt) = self.rendered(&chat) else { return inexact(Some(self.count(&chat.plain()))) };
        let mut counted = self.count(&prompt);
        counted.exact &= exact;
        // The template has them already; who wants them once more says so.
        if member(body, "add_special_tokens").is_some_and(|add| add.is_true()) {
            counted.tokens += self.around();
        }
        Some(counted)
    }

    /// The conversation as the model is given it; `None` where there is no template for it, or that refuses it.
    fn rendered(&self, chat: &Chat) -> Option<String> {
        let mut context = chat.context.clone();
        context.push(("messages".to_owned(), Value::from(chat.messages.clone())));
        let mut prompt = match self.template()?.render(context) {
            Ok(prompt) => prompt,
            Err(error) => {
                self.template_failed(&error);
                return None;
            }
        };
        if chat.continues {
            let last = chat.messages.last().and_then(|message| member(message, "content"))?;
            let text = match last.as_str() {
                Some(text) => text.to_owned(),
                None => member(entries(&last).last()?, "text")?.to_string(),
            };
            prompt.truncate(end_of_last(&prompt, &text)?);
        }
        Some(prompt)
    }

    /// `prompt`, `input` or `inputs`: a text, texts, tokens, or lists of tokens.
    fn texts(&self, endpoint: Endpoint, body: &Value) -> Option<Counted> {
        let prompt = ["prompt", "input", "inputs"].into_iter().find_map(|name| member(body, name))?;
        let is_switched_off = member(body, "add_special_tokens").is_some_and(|add| !add.is_true());
        let around = if is_switched_off { 0 } else { self.around() };
        let mut counted = self.of_texts(&prompt, around)?;
        let parameters = member(body, "parameters").unwrap_or_default();
        // Cut to a length, filled in the middle, or with more in front than is said here.
        let is_plain = ["truncate_prompt_tokens", "truncate", "suffix", "prompt_embeds", "input_prefix"]
            .iter()
            .all(|name| member(body, name).is_none() && member(&parameters, name).is_none());
        counted.exact &= is_plain && endpoint.api() != Api::Ollama;
        Some(counted)
    }

    fn of_texts(&self, prompt: &Value, around: u64) -> Option<Counted> {
        let one = |text: &str| {
            let counted = self.count(text);
            Counted { tokens: counted.tokens + around, ..counted }
        };
        if let Some(text) = prompt.as_str() {
            return Some(one(text));
        }
        if prompt.kind() != ValueKind::Seq {
            return None;
        }
        let entries = entries(prompt);
        if !entries.iter().any(Value::is_number) {
            let mut counted = entries.iter().map(|entry| self.of_texts(entry, around));
            return counted.try_fold(Counted::NONE, |sum, counted| Some(sum.and(counted?)));
        }
        // Tokens already; llama.cpp takes texts between them.
        let numbers = entries.iter().filter(|entry| entry.is_number()).count() as u64;
        let texts = entries.iter().filter_map(Value::as_str).map(|text| self.count(text));
        let begins_with_text = entries.first().is_some_and(|entry| entry.as_str().is_some());
        let around = if begins_with_text { around } else { 0 };
        Some(texts.fold(Counted { tokens: numbers + around, exact: true }, Counted::and))
    }

    /// Ollama's completion: a text that goes through a template unless it is said to be raw.
    fn ollama_generate(&self, body: &Value, takes: Takes) -> Option<Counted> {
        let prompt = member(body, "prompt").filter(|prompt| prompt.kind() == ValueKind::String)?;
        let has_more =
            ["suffix", "images", "context"].iter().any(|name| member(body, name).is_some_and(|more| more.is_true()));
        if member(body, "raw").is_some_and(|raw| raw.is_true()) {
            let mut counted = self.of_texts(&prompt, self.around())?;
            counted.exact &= !has_more;
            return Some(counted);
        }
        let message = |role: &str, content| Value::from_pairs([("role", Value::from(role)), ("content", content)]);
        let system = member(body, "system").map(|system| message("system", system));
        let messages = Value::from_iter(system.into_iter().chain([message("user", prompt)]));
        let body = Value::from_pairs([("messages", messages)]);
        inexact(self.chat(&body, Chat::openai(&body, takes)?))
    }
}

fn inexact(counted: Option<Counted>) -> Option<Counted> {
    counted.map(|counted| Counted { exact: false, ..counted })
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
