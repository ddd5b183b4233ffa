//! How answers are counted, and what is billed of them: `metering:`.

use super::{Key, Kind::*, Words, block, key};

/// What is billed of an answer that its client left.
pub(super) const ON_ABORT: Words = Words::of(&["delivered", "drain"]);

pub(super) const KEYS: &[Key] = &[
    block(
        "metering",
        "how tokens are counted where a backend does not say how many they were, and what is billed of clients that leave",
    ),
    key(
        "metering.on_abort",
        Word(&ON_ABORT),
        "delivered",
        "what is billed when a client leaves before the end: what it was given, and the backend stops; or all that the \
         backend makes, which may finish",
    ),
    key("metering.drain_timeout", Duration, "60s", "how long a backend may take to finish for `drain`"),
    key(
        "metering.drain_max_tokens",
        Integer,
        "4096",
        "tokens of a stream that it may make in that time, as far as the stream's pieces tell",
    ),
    key(
        "metering.drain_max_streams",
        Integer,
        "16",
        "answers that may be finished for `drain` at a time; when one more client leaves, it is billed what it was given",
    ),
    key(
        "metering.tokenizers",
        Blocks,
        "",
        "the served models' own tokenizers, to count with; the first entry that fits a model counts for it. Only a build with `--features tokenizers` takes any",
    ),
    key("metering.tokenizers[].models", Texts, "", "the models that it is for; `*` stands for any characters"),
    key("metering.tokenizers[].file", Text, "", "the model's `tokenizer.json`"),
    key(
        "metering.tokenizers[].config",
        Text,
        "",
        "its `tokenizer_config.json`, or its chat template in a file that ends in `.jinja`; without it `tokenizer_config.json` and `chat_template.jinja` beside `file`, as far as they are there",
    ),
    key(
        "metering.ask_backend",
        Switch,
        "false",
        "whether a backend is asked by its own `/tokenize` (vLLM, SGLang, llama.cpp, TGI) where no tokenizer fits",
    ),
    key("metering.count_threads", Integer, "1", "threads that count, at most 64"),
    key(
        "metering.count_queue",
        Integer,
        "65536",
        "prompts and pieces of answers that may wait to be counted; past that an exchange is estimated",
    ),
    key("metering.count_queue_bytes", Bytes, "64MiB", "how large those that wait may be together"),
];
