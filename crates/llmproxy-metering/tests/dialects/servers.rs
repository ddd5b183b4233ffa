//! What the servers really send, member by member: each one's own way to say the same. The count is right behind every
//! event, at every split, and however it is compressed.

use super::*;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const DONE: &str = "data: [DONE]\n\n";

/// Chunks that share these members, each with these choices and what stands behind them.
fn chunks(shared: &str, parts: &[(&str, &str)]) -> Vec<String> {
    parts
        .iter()
        .map(|(choices, behind)| format!("data: {{\"id\":\"c\",{shared},\"choices\":[{choices}]{behind}}}\n\n"))
        .collect()
}

/// Counted like this behind each event, and complete with the last one or with `[DONE]` where it `ends`.
async fn check_all(path: &str, events: &[String], expected: &[Tokens], ends: bool) -> Arc<UsageRecord> {
    assert_eq!(events.len(), expected.len());
    let mut pieces: Vec<(&str, Tokens)> = events.iter().map(|event| &**event).zip(expected.iter().copied()).collect();
    if ends {
        pieces.push((DONE, expected[expected.len() - 1]));
    }
    check(path, EVENTS, &pieces, ends).await
}

#[tokio::test(start_paused = true)]
async fn vllm_with_two_choices_and_log_probabilities() {
    let logprobs = "\"logprobs\":{\"content\":[{\"token\":\"a\",\"logprob\":-0.01,\"bytes\":[97],\"top_logprobs\":[{\"token\":\"a\",\"logprob\":-0.01,\"bytes\":[97]}]}]}";
    let text = |index: u64, reason: &str| {
        format!(
            "{{\"index\":{index},\"delta\":{{\"content\":\"a\"}},{logprobs},\"finish_reason\":{reason},\"token_ids\":null}}"
        )
    };
    let role = |index: u64| {
        format!(
            "{{\"index\":{index},\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\"finish_reason\":null}}"
        )
    };
    let shared = "\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\"";
    let usage =
        ",\"usage\":{\"prompt_tokens\":5,\"total_tokens\":17,\"completion_tokens\":12,\"prompt_tokens_details\":null}";
    let events = chunks(
        shared,
        &[
            (&role(0), ",\"prompt_token_ids\":null"),
            (&role(1), ""),
            (&text(1, "null"), ""),
            (&text(0, "null"), ""),
            (&text(0, "\"length\""), ""),
            (&text(1, "\"stop\""), ""),
            ("", usage),
        ],
    );
    let guess = |pieces| (GUESS, pieces, Estimated);
    let expected = [guess(0), guess(0), guess(1), guess(2), guess(3), guess(4), (5, 12, Backend)];
    let record = check_all(CHAT, &events, &expected, true).await;
    assert_eq!(record.served_model.as_deref(), Some("m"));
}

#[tokio::test(start_paused = true)]
async fn vllm_that_thinks_and_then_calls_a_tool() {
    let shared = "\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\"";
    let of = |delta: &str| format!("{{\"index\":0,\"delta\":{{{delta}}},\"logprobs\":null,\"finish_reason\":null}}");
    let deltas = [
        of("\"role\":\"assistant\",\"content\":\"\""),
        of("\"reasoning\":\"hm\",\"reasoning_content\":\"hm\""),
        of("\"tool_calls\":[{\"id\":\"call_1\",\"type\":\"function\",\"index\":0,\"function\":{\"name\":\"f\"}}]"),
        of("\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"usage\\\": {\\\"prompt_tokens\\\": 1\"}}]"),
        of("\"tool_calls\":[{\"index\":1,\"function\":{\"arguments\":\"}}\"}}]"),
        "{\"index\":0,\"delta\":{\"content\":\"\"},\"finish_reason\":\"tool_calls\",\"stop_reason\":null}".to_owned(),
    ];
    let usage = ",\"usage\":{\"prompt_tokens\":5,\"total_tokens\":36,\"completion_tokens\":31,\"prompt_tokens_details\":{\"cached_tokens\":0}}";
    let parts: Vec<(&str, &str)> = deltas.iter().map(|delta| (&**delta, "")).chain([("", usage)]).collect();
    let guess = |pieces| (GUESS, pieces, Estimated);
    let expected = [guess(0), guess(1), guess(2), guess(3), guess(4), guess(4), (5, 31, Backend)];
    let record = check_all(CHAT, &chunks(shared, &parts), &expected, true).await;
    assert_eq!(record.usage.unwrap().cached, Some(0), "an explicit zero");
}

#[tokio::test(start_paused = true)]
async fn vllm_that_fails_late_still_says_that_it_is_done() {
    let delta = "data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
    let error =
        "data: {\"error\":{\"message\":\"gone\",\"type\":\"InternalServerError\",\"param\":null,\"code\":500}}\n\n";
    check_error(CHAT, EVENTS, &[delta, error, DONE].concat(), "gone").await;
    let record = cut(CHAT, EVENTS, &[delta, error, DONE].concat()).await;
    assert_eq!((record.end, tokens(&record)), (End::BackendFailed, Some((GUESS, 1, Estimated))));
}

#[tokio::test(start_paused = true)]
async fn sglang_says_null_until_the_end() {
    let shared = "\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\"";
    let of = |delta: &str| {
        format!("{{\"index\":0,\"delta\":{{{delta}}},\"logprobs\":null,\"finish_reason\":null,\"matched_stop\":null}}")
    };
    let deltas = [
        of("\"role\":\"assistant\",\"content\":\"\",\"reasoning_content\":null,\"tool_calls\":null"),
        of("\"role\":null,\"content\":null,\"reasoning_content\":\"hm\",\"tool_calls\":null"),
        of("\"role\":null,\"content\":\"a\",\"reasoning_content\":null,\"tool_calls\":null"),
    ];
    let usage = ",\"usage\":{\"prompt_tokens\":5,\"total_tokens\":12,\"completion_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":4},\"reasoning_tokens\":0}";
    let parts: Vec<(&str, &str)> =
        deltas.iter().map(|delta| (&**delta, ",\"usage\":null")).chain([("", usage)]).collect();
    let expected = [(GUESS, 0, Estimated), (GUESS, 1, Estimated), (GUESS, 2, Estimated), (5, 7, Backend)];
    let record = check_all(CHAT, &chunks(shared, &parts), &expected, true).await;
    assert_eq!(record.usage.unwrap().cached, Some(4));
}

#[tokio::test(start_paused = true)]
async fn sglang_with_running_totals_of_two_choices() {
    let shared = "\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\"";
    let choice = |index: u64| format!("{{\"index\":{index},\"delta\":{{\"role\":null,\"content\":\"a\"}}}}");
    let usage = |completion: u64| {
        format!(
            ",\"usage\":{{\"prompt_tokens\":5,\"total_tokens\":{},\"completion_tokens\":{completion},\"prompt_tokens_details\":null}}",
            5 + completion
        )
    };
    let (zero, one) = (choice(0), choice(1));
    let (two, three, five) = (usage(2), usage(3), usage(5));
    let events = chunks(shared, &[(&zero, &two), (&one, &two), (&zero, &three), ("", &five)]);
    check_all(CHAT, &events, &[(5, 2, Backend), (5, 4, Backend), (5, 5, Backend), (5, 5, Backend)], true).await;
}

#[tokio::test(start_paused = true)]
async fn llama_server_that_tells_of_its_progress_and_pings() {
    let head =
        "\"created\":1,\"id\":\"c\",\"model\":\"m\",\"system_fingerprint\":\"b1\",\"object\":\"chat.completion.chunk\"";
    let of = |delta: &str, reason: &str, behind: &str| {
        format!(
            "data: {{\"choices\":[{{\"finish_reason\":{reason},\"index\":0,\"delta\":{{{delta}}}}}],{head}{behind}}}\n\n"
        )
    };
    let role = of("\"role\":\"assistant\",\"content\":null", "null", "");
    let progress = of("", "null", ",\"prompt_progress\":{\"total\":24,\"cache\":23,\"processed\":24,\"time_ms\":3}");
    // Two events come in one chunk.
    let first = format!("{role}{}", of("\"content\":\"a\"", "null", ""));
    let ping = ":\n\n".to_owned();
    let timings = ",\"timings\":{\"cache_n\":23,\"prompt_n\":1,\"prompt_ms\":1.5,\"prompt_per_second\":6.6,\"predicted_n\":7,\"predicted_ms\":9.5}";
    let usage = format!(
        "data: {{\"choices\":[],{head},\"usage\":{{\"completion_tokens\":7,\"prompt_tokens\":24,\"total_tokens\":31,\"prompt_tokens_details\":{{\"cached_tokens\":23}}}}{timings}}}\n\n"
    );
    let last = format!("{}{usage}", of("", "\"stop\"", ""));
    let guess = |pieces| (GUESS, pieces, Estimated);
    let events = [progress.clone(), first.clone(), ping.clone(), last];
    let record = check_all(CHAT, &events, &[guess(0), guess(1), guess(1), (24, 7, Backend)], true).await;
    assert_eq!(record.usage.unwrap().cached, Some(23));
    // Where usage was not asked for, and the timings of each token where they were.
    let running = |predicted: u64| {
        of(
            "\"content\":\"a\"",
            "null",
            &format!(",\"timings\":{{\"cache_n\":23,\"prompt_n\":1,\"predicted_n\":{predicted}}}"),
        )
    };
    let events = [role, running(2), running(3), of("", "\"length\"", timings)];
    check_all(CHAT, &events, &[guess(0), (24, 2, Backend), (24, 3, Backend), (24, 7, Backend)], true).await;
    // Its own completions in OpenAI's form have the usage beside the last choice.
    let text = "data: {\"choices\":[{\"text\":\"a\",\"index\":0,\"logprobs\":null,\"finish_reason\":null}],\"created\":1,\"model\":\"m\",\"object\":\"text_completion\",\"id\":\"c\"}\n\n".to_owned();
    let last = format!(
        "data: {{\"choices\":[{{\"text\":\"\",\"index\":0,\"logprobs\":null,\"finish_reason\":\"stop\"}}],\"created\":1,\"model\":\"m\",\"usage\":{{\"completion_tokens\":7,\"prompt_tokens\":24,\"total_tokens\":31}},\"id\":\"c\"{timings}}}\n\n"
    );
    check_all(COMPLETIONS, &[text, last], &[guess(1), (24, 7, Backend)], true).await;
}

#[tokio::test(start_paused = true)]
async fn llama_cpp_python_says_nothing_of_tokens() {
    let shared = "\"object\": \"chat.completion.chunk\", \"created\": 1, \"model\": \"m\"";
    let of =
        |delta: &str| format!("{{\"index\": 0, \"delta\": {{{delta}}}, \"logprobs\": null, \"finish_reason\": null}}");
    let (role, text) = (of("\"role\": \"assistant\""), of("\"content\": \"\\u00e4\""));
    let events: Vec<String> = chunks(shared, &[(&role, ""), (&text, ""), (&text, "")])
        .iter()
        .map(|event| event.replace("\":", "\": ").replace('\n', "\r\n"))
        .collect();
    let expected = [0, 1, 2].map(|pieces| (GUESS, pieces, Estimated));
    check_all(CHAT, &events, &expected, true).await;
    // Too long a prompt is an answer without a single event.
    let record = replay(CHAT, EVENTS, DONE).await;
    assert_eq!((tokens(&record), record.end), (Some((GUESS, 0, Estimated)), End::Complete));
    assert_eq!(tokens(&*replay(CHAT, EVENTS, "").await), Some((GUESS, 0, Estimated)));
}

#[tokio::test(start_paused = true)]
async fn transformers_ends_with_its_usage_and_nothing_else() {
    let shared = "\"created\":1,\"model\":\"hf@main\",\"object\":\"chat.completion.chunk\"";
    let usage = ",\"usage\":{\"completion_tokens\":7,\"prompt_tokens\":5,\"total_tokens\":12}";
    let events = chunks(
        shared,
        &[
            ("{\"delta\":{\"role\":\"assistant\"},\"index\":0}", ""),
            ("{\"delta\":{\"content\":\"a\"},\"index\":0}", ""),
            ("{\"delta\":{},\"finish_reason\":\"stop\",\"index\":0}", usage),
        ],
    );
    check_all(CHAT, &events, &[(GUESS, 0, Estimated), (GUESS, 1, Estimated), (5, 7, Backend)], false).await;
    // Its error is FastAPI's.
    check_error(CHAT, JSON, r#"{"detail":"gone"}"#, "gone").await;
}

#[tokio::test(start_paused = true)]
async fn tgi_has_null_or_no_usage_and_an_error_that_is_done() {
    let shared = "\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"system_fingerprint\":\"3\"";
    let text =
        "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"a\"},\"logprobs\":null,\"finish_reason\":null}";
    let tool = "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"tool_calls\":[{\"index\":0,\"id\":\"\",\"type\":\"function\",\"function\":{\"name\":null,\"arguments\":\"{\\\"a\\\":\"}}]},\"finish_reason\":null}";
    let last = "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":\"stop\"}";
    let usage = ",\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7,\"total_tokens\":12}";
    let null = ",\"usage\":null";
    let events = chunks(shared, &[(text, null), (tool, ""), (last, null), ("", usage)]);
    let guess = |pieces| (GUESS, pieces, Estimated);
    check_all(CHAT, &events, &[guess(1), guess(2), guess(2), (5, 7, Backend)], true).await;
    let error = "data: {\"error\":{\"message\":\"gone\",\"http_status_code\":422}}\n\n";
    check_error(CHAT, EVENTS, &format!("{}{error}{DONE}", events[0]), "gone").await;
}

#[tokio::test(start_paused = true)]
async fn ollama_in_openai_s_form() {
    let shared =
        "\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"system_fingerprint\":\"fp_ollama\"";
    let of = |delta: &str, reason: &str| {
        format!("{{\"index\":0,\"delta\":{{\"role\":\"assistant\",{delta}}},\"finish_reason\":{reason}}}")
    };
    let thinks = of("\"content\":\"\",\"reasoning\":\"hm\"", "null");
    let tool = of(
        "\"content\":\"\",\"tool_calls\":[{\"id\":\"call_1\",\"index\":0,\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]",
        "null",
    );
    let last = of("\"content\":\"\"", "\"tool_calls\"");
    let usage = ",\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7,\"total_tokens\":12}";
    let events = chunks(shared, &[(&thinks, ""), (&tool, ""), (&last, ""), ("", usage)]);
    let guess = |pieces| (GUESS, pieces, Estimated);
    check_all(CHAT, &events, &[guess(1), guess(2), guess(2), (5, 7, Backend)], true).await;
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_a_stream_though_none_was_asked_for() {
    // transformers: reasoning, text, and a usage in which nothing was cached.
    let stream = concat!(
        "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"id\":\"r\",\"model\":\"hf@main\",\"status\":\"queued\",\"output\":[],\"usage\":null}}\n\n",
        "event: response.reasoning_summary_text.delta\ndata: {\"type\":\"response.reasoning_summary_text.delta\",\"sequence_number\":1,\"delta\":\"hm\"}\n\n",
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"sequence_number\":2,\"delta\":\"a\",\"logprobs\":[]}\n\n",
        "event: response.completed\ndata: {\"type\":\"response.completed\",\"sequence_number\":3,\"response\":{\"id\":\"r\",\"model\":\"hf@main\",\"status\":\"completed\",\"output\":[{\"type\":\"message\",\"content\":[{\"type\":\"output_text\",\"text\":\"a\"}]}],\"usage\":{\"input_tokens\":5,\"input_tokens_details\":{\"cached_tokens\":0},\"output_tokens\":7,\"output_tokens_details\":{\"reasoning_tokens\":3},\"total_tokens\":12}}}\n\n",
    );
    let record = replay("/v1/responses", EVENTS, stream).await;
    assert_eq!(tokens(&record), Some((5, 7, Backend)));
    assert_eq!(record.usage.map(|usage| (usage.cached, usage.reasoning)), Some((Some(0), Some(3))));
    assert_eq!(cut("/v1/responses", EVENTS, stream).await.end, End::Complete);
}

#[tokio::test(start_paused = true)]
async fn plain_answers_with_everything_in_them() {
    for (json, expected) in [
        // vLLM.
        (
            r#"{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"a","refusal":null,"tool_calls":[],"reasoning":null},"logprobs":{"content":[{"token":"a","logprob":-0.1,"bytes":[97],"top_logprobs":[]}]},"finish_reason":"stop"},{"index":1,"message":{"content":"b"}}],"service_tier":null,"usage":{"prompt_tokens":5,"total_tokens":17,"completion_tokens":12,"prompt_tokens_details":null},"prompt_logprobs":null,"kv_transfer_params":null}"#,
            (5, 12, Backend),
        ),
        // llama.cpp.
        (
            r#"{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"a"}}],"created":1,"model":"m","usage":{"completion_tokens":7,"prompt_tokens":24,"total_tokens":31,"prompt_tokens_details":{"cached_tokens":23}},"id":"c","timings":{"cache_n":23,"prompt_n":1,"predicted_n":7}}"#,
            (24, 7, Backend),
        ),
        // A prompt of which all is refused, or an answer that is empty.
        (
            r#"{"id":"c","choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}"#,
            (0, 0, Backend),
        ),
    ] {
        check_json(CHAT, json, expected).await;
    }
}
