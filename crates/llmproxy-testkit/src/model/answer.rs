//! Answers, word by word, in vLLM's shapes. The JSON is written by hand: its keys come in the order in which vLLM has them.

use std::{io, sync::atomic::Ordering, time::Duration};

use tokio::time::Instant;

use super::{
    Shared,
    ask::{Ask, ToolCall},
    engine::Place,
    quote, respond,
    text::{self, Babble},
    unix_seconds,
};
use crate::{DONE, Seen, Wire};

/// How much of a tool's arguments one token is.
const ARGUMENT_PIECE: usize = 4;

/// What one step of generation brings.
enum Piece {
    Text(String),
    ToolName(String),
    Arguments(String),
}

/// One of the answers to one request, on its way.
struct Choice {
    index: u64,
    said: Said,
    budget: u64,
    done: u64,
    /// Why it ends.
    reason: &'static str,
}

enum Said {
    Words(Babble),
    Tool(std::vec::IntoIter<Piece>),
}

/// Says when the next word is due.
struct Pace {
    next: Instant,
    step: Duration,
}

/// What all parts of an answer have in common.
struct Frame {
    id: String,
    created: u64,
    chat: bool,
    model: String,
}

pub(super) async fn answer(shared: &Shared, ask: Ask, seen: &Seen, wire: Wire) -> io::Result<()> {
    let prefix = if ask.chat { "chatcmpl" } else { "cmpl" };
    let frame = Frame {
        id: quote(&format!("{prefix}-{}", shared.id(seen))),
        created: unix_seconds(),
        chat: ask.chat,
        model: quote(&ask.model),
    };
    if ask.stream {
        stream(shared, &ask, &frame, seen, wire).await
    } else {
        whole(shared, &ask, &frame, seen, wire).await
    }
}

async fn stream(shared: &Shared, ask: &Ask, frame: &Frame, seen: &Seen, mut wire: Wire) -> io::Result<()> {
    let mut headers = vec![("content-type", "text/event-stream; charset=utf-8")];
    headers.extend(seen.header("x-request-id").map(|id| ("x-request-id", id)));
    wire.head(200, &headers).await?;
    let Some(_place) = admitted(shared, ask, &mut wire).await else { return Ok(()) };
    let mut choices: Vec<_> = (0..ask.choices).map(|index| Choice::new(shared, ask, index)).collect();
    let mut pace = Pace::new(shared);
    if !pace.wait(&mut wire).await {
        return Ok(());
    }
    let usage = |completion| ask.continuous_usage.then(|| usage(ask.prompt_tokens, completion));
    if ask.chat {
        for choice in &choices {
            wire.chunk(frame.event(&role_delta(choice.index), usage(0))).await?;
        }
    }
    let mut completion = 0;
    while choices.iter().any(|choice| !choice.is_done()) {
        for choice in choices.iter_mut().filter(|choice| !choice.is_done()) {
            let piece = choice.step(shared);
            completion += 1;
            let running = usage(if ask.choices == 1 { completion } else { choice.done });
            wire.chunk(frame.event(&choice.delta(ask.chat, frame, &piece), running)).await?;
        }
        if !pace.wait(&mut wire).await {
            return Ok(());
        }
    }
    if ask.include_usage {
        wire.chunk(frame.event("", Some(self::usage(ask.prompt_tokens, completion)))).await?;
    }
    wire.chunk(DONE).await?;
    wire.finish().await
}

/// A place in the batch, its prompt read; `None` if the client has left before.
async fn admitted<'a>(shared: &'a Shared, ask: &Ask, wire: &mut Wire) -> Option<Place<'a>> {
    tokio::select! {
        biased;
        () = wire.client_gone() => None,
        place = shared.engine.admit(ask) => Some(place),
    }
}

async fn whole(shared: &Shared, ask: &Ask, frame: &Frame, seen: &Seen, mut wire: Wire) -> io::Result<()> {
    let Some(_place) = admitted(shared, ask, &mut wire).await else { return Ok(()) };
    let mut choices: Vec<_> = (0..ask.choices).map(|index| (Choice::new(shared, ask, index), String::new())).collect();
    let mut pace = Pace::new(shared);
    let mut completion = 0;
    while choices.iter().any(|(choice, _)| !choice.is_done()) {
        if !pace.wait(&mut wire).await {
            return Ok(());
        }
        for (choice, said) in choices.iter_mut().filter(|(choice, _)| !choice.is_done()) {
            completion += 1;
            match choice.step(shared) {
                Piece::Text(text) | Piece::Arguments(text) => said.push_str(&text),
                Piece::ToolName(_) => {}
            }
        }
    }
    let choices: Vec<_> = choices.iter().map(|(choice, said)| choice.whole(ask, frame, said)).collect();
    let (choices, usage) = (choices.join(","), usage(ask.prompt_tokens, completion));
    let object = if ask.chat { "chat.completion" } else { "text_completion" };
    let Frame { id, created, model, .. } = frame;
    let body = format!(
        r#"{{"id":{id},"object":"{object}","created":{created},"model":{model},"choices":[{choices}],"usage":{usage}}}"#
    );
    respond(wire, seen, 200, &[], &body).await
}

fn role_delta(index: u64) -> String {
    format!(r#"{{"index":{index},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}"#)
}

fn usage(prompt: u64, completion: u64) -> String {
    let total = prompt + completion;
    format!(r#"{{"prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{completion}}}"#)
}

// === impl Choice ===

impl Choice {
    fn new(shared: &Shared, ask: &Ask, index: u64) -> Self {
        let (said, natural, natural_reason) = match &ask.tool {
            Some(tool) => {
                let pieces = tool.pieces();
                let length = pieces.len() as u64;
                (Said::Tool(pieces.into_iter()), length, "tool_calls")
            }
            None => {
                let babble = shared.source.babble(text::hash(ask.prompt_hash, &[index]));
                let natural = shared.source.natural_length(&babble).max(ask.min_tokens);
                (Said::Words(babble), natural, "stop")
            }
        };
        let endless = ask.ignore_eos && ask.tool.is_none();
        let (budget, reason) = match ask.max_tokens {
            Some(max) if max < natural || endless => (max, "length"),
            _ => (natural, natural_reason),
        };
        Self { index, said, budget, done: 0, reason }
    }

    fn is_done(&self) -> bool {
        self.done >= self.budget
    }

    fn step(&mut self, shared: &Shared) -> Piece {
        self.done += 1;
        shared.generated.fetch_add(1, Ordering::Relaxed);
        match &mut self.said {
            Said::Words(babble) => Piece::Text(shared.source.word(babble)),
            // The budget ends with the pieces.
            Said::Tool(pieces) => pieces.next().unwrap_or(Piece::Arguments(String::new())),
        }
    }

    /// One event's choice: the last one carries text and finish_reason, as vLLM's does.
    fn delta(&self, chat: bool, frame: &Frame, piece: &Piece) -> String {
        let index = self.index;
        let end = if self.is_done() {
            format!(r#""finish_reason":"{}","stop_reason":null"#, self.reason)
        } else {
            r#""finish_reason":null"#.to_owned()
        };
        if !chat {
            let Piece::Text(text) = piece else { return String::new() };
            return format!(r#"{{"index":{index},"text":{},"logprobs":null,{end}}}"#, quote(text));
        }
        let delta = match piece {
            Piece::Text(text) => format!(r#""content":{}"#, quote(text)),
            Piece::ToolName(name) => format!(
                r#""tool_calls":[{{"id":{},"type":"function","index":0,"function":{{"name":{},"arguments":""}}}}]"#,
                frame.tool_id(index),
                quote(name)
            ),
            Piece::Arguments(part) => {
                format!(r#""tool_calls":[{{"index":0,"function":{{"arguments":{}}}}}]"#, quote(part))
            }
        };
        format!(r#"{{"index":{index},"delta":{{{delta}}},"logprobs":null,{end}}}"#)
    }

    /// The choice of an answer that comes in one.
    fn whole(&self, ask: &Ask, frame: &Frame, said: &str) -> String {
        let (index, said) = (self.index, quote(said));
        let said = match &ask.tool {
            _ if !ask.chat => format!(r#""text":{said}"#),
            None => format!(r#""message":{{"role":"assistant","content":{said},"tool_calls":[]}}"#),
            Some(tool) => format!(
                r#""message":{{"role":"assistant","content":null,"tool_calls":[{{"id":{},"type":"function","function":{{"name":{},"arguments":{said}}}}}]}}"#,
                frame.tool_id(index),
                quote(&tool.name)
            ),
        };
        let reason = self.reason;
        format!(r#"{{"index":{index},{said},"logprobs":null,"finish_reason":"{reason}","stop_reason":null}}"#)
    }
}

// === impl ToolCall ===

impl ToolCall {
    fn pieces(&self) -> Vec<Piece> {
        let characters: Vec<char> = self.arguments.chars().collect();
        let arguments = characters.chunks(ARGUMENT_PIECE).map(|part| Piece::Arguments(part.iter().collect()));
        std::iter::once(Piece::ToolName(self.name.clone())).chain(arguments).collect()
    }
}

// === impl Frame ===

impl Frame {
    /// One event with this choice, or with none.
    fn event(&self, choice: &str, usage: Option<String>) -> String {
        let Self { id, created, chat, model } = self;
        let object = if *chat { "chat.completion.chunk" } else { "text_completion" };
        let usage = usage.map_or_else(String::new, |usage| format!(r#","usage":{usage}"#));
        format!(
            "data: {{\"id\":{id},\"object\":\"{object}\",\"created\":{created},\"model\":{model},\
             \"choices\":[{choice}]{usage}}}\n\n"
        )
    }

    fn tool_id(&self, index: u64) -> String {
        quote(&format!("call_{}_{index}", self.id.trim_matches('"')))
    }
}

// === impl Pace ===

impl Pace {
    fn new(shared: &Shared) -> Self {
        Self { next: Instant::now() + shared.prefill, step: shared.pace }
    }

    /// Waits until the next word is due; false if the client has left before.
    async fn wait(&mut self, wire: &mut Wire) -> bool {
        let due = self.next;
        // What a slow client has made late is not caught up in a burst.
        self.next = due.max(Instant::now()) + self.step;
        let pause = async {
            if due > Instant::now() {
                tokio::time::sleep_until(due).await;
            } else {
                // At an infinite pace too the client is looked for, and others have their turn.
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = wire.client_gone() => false,
            () = pause => true,
        }
    }
}
