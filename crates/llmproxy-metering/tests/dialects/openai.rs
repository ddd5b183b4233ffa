//! Chat and completions, as vLLM, SGLang, llama.cpp, TGI and Ollama offer them.

use super::*;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const DONE: &str = "data: [DONE]\n\n";

#[tokio::test(start_paused = true)]
async fn usage_at_the_end_counts_and_null_before_it_does_not() {
    let record = check(
        CHAT,
        EVENTS,
        &[
            ("data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\n\n", (GUESS, 0, Estimated)),
            ("data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a \\\"usage\\\":{\"},\"logprobs\":{\"content\":[{\"token\":\"a\",\"logprob\":-0.1,\"bytes\":[97],\"top_logprobs\":[{\"token\":\"b\",\"logprob\":-2.0}]}]}}],\"usage\":null}\n\n", (GUESS, 1, Estimated)),
            ("data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n", (GUESS, 2, Estimated)),
            ("data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"total_tokens\":12,\"completion_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":4},\"completion_tokens_details\":{\"reasoning_tokens\":3}}}\n\n", (5, 7, Backend)),
            (DONE, (5, 7, Backend)),
        ],
        true,
    )
    .await;
    assert_eq!(record.usage.map(|usage| (usage.cached, usage.reasoning)), Some((Some(4), Some(3))));
    assert_eq!((record.served_model.as_deref(), record.upstream_id.as_deref()), (Some("m"), Some("c")));
}

#[tokio::test(start_paused = true)]
async fn running_totals_count_as_far_as_they_came() {
    check(
        CHAT,
        EVENTS,
        &[
            ("data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":{\"prompt_tokens\":5,\"total_tokens\":5,\"completion_tokens\":0}}\n\n", (5, 0, Backend)),
            ("data: {\"choices\":[{\"delta\":{\"content\":\"abc\"}}],\"usage\":{\"prompt_tokens\":5,\"total_tokens\":8,\"completion_tokens\":3}}\n\n", (5, 3, Backend)),
            ("data: {\"choices\":[{\"delta\":{\"content\":\"d\"},\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":5,\"total_tokens\":9,\"completion_tokens\":4}}\n\n", (5, 4, Backend)),
            ("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"total_tokens\":9,\"completion_tokens\":4}}\n\n", (5, 4, Backend)),
            (DONE, (5, 4, Backend)),
        ],
        true,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn every_choice_counts() {
    check(
        CHAT,
        EVENTS,
        &[
            ("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"a\"}}]}\n\n", (GUESS, 2, Estimated)),
            ("data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}]}\n\n", (GUESS, 3, Estimated)),
            ("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}]}\n\n", (GUESS, 4, Estimated)),
            ("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":12,\"total_tokens\":17}}\n\n", (5, 12, Backend)),
            (DONE, (5, 12, Backend)),
        ],
        true,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn reasoning_and_calls_of_tools_are_pieces_of_the_answer() {
    check(
        CHAT,
        EVENTS,
        &[
            ("data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n", (GUESS, 0, Estimated)),
            ("data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n", (GUESS, 1, Estimated)),
            ("data: {\"choices\":[{\"delta\":{\"content\":\"\",\"reasoning\":\"so\"}}]}\n\n", (GUESS, 2, Estimated)),
            ("data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"t\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"\"}}]}}]}\n\n", (GUESS, 3, Estimated)),
            ("data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"usage\\\":{}}\"}}]}}]}\n\n", (GUESS, 4, Estimated)),
            ("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":9}}\n\n", (5, 9, Backend)),
        ],
        false,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn ollamas_zeros_are_a_placeholder_until_the_end() {
    check(
        COMPLETIONS,
        EVENTS,
        &[
            ("data: {\"choices\":[{\"text\":\"a\"}],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0,\"total_tokens\":0}}\n\n", (GUESS, 1, Estimated)),
            ("data: {\"choices\":[{\"text\":\"b\",\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0,\"total_tokens\":0}}\n\n", (GUESS, 2, Estimated)),
            ("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7,\"total_tokens\":12}}\n\n", (5, 7, Backend)),
            (DONE, (5, 7, Backend)),
        ],
        true,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn timings_stand_beside_usage_and_do_not_change_it() {
    let usage = "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7}";
    let timings = "\"timings\":{\"cache_n\":3,\"prompt_n\":2,\"predicted_n\":8}";
    for both in [format!("{usage},{timings}"), format!("{timings},{usage}")] {
        let event = format!("data: {{\"choices\":[],{both}}}\n\n");
        let delta = ("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n", (GUESS, 1, Estimated));
        let record = check(CHAT, EVENTS, &[delta, (&event, (5, 7, Backend)), (DONE, (5, 7, Backend))], true).await;
        assert_eq!(record.usage.unwrap().cached, Some(3));
        check_json(CHAT, &format!("{{\"choices\":[],{both}}}"), (5, 7, Backend)).await;
    }
    check_json(CHAT, &format!("{{\"choices\":[],\"usage\":null,{timings}}}"), (5, 8, Backend)).await;
}

#[tokio::test(start_paused = true)]
async fn a_plain_answer_says_it_at_its_top() {
    let record = check_json(
        CHAT,
        r#"{"id":"c","model":"m","choices":[{"message":{"content":"\"usage\":{\"prompt_tokens\":99}","usage":{"prompt_tokens":98}}}],
            "usage":{"prompt_tokens":5,"completion_tokens":0,"completion_tokens_details":{"reasoning_tokens":0}},"error":null}"#,
        (5, 0, Backend),
    )
    .await;
    assert_eq!(record.usage.unwrap().reasoning, Some(0));
}

#[tokio::test(start_paused = true)]
async fn llama_cpp_s_plain_answer_of_several_choices_has_the_usage_of_one() {
    let answer = |choices: &str| {
        format!(
            r#"{{"choices":[{choices}],"usage":{{"completion_tokens":7,"prompt_tokens":5}},"id":"c","timings":{{"cache_n":3,"prompt_n":2,"predicted_n":7}}}}"#
        )
    };
    let choice = |index: u64| format!(r#"{{"finish_reason":"stop","index":{index},"message":{{"content":"a"}}}}"#);
    check_json(CHAT, &answer(&choice(0)), (5, 7, Backend)).await;
    let three = answer(&[choice(0), choice(1), choice(2)].join(","));
    check_json(CHAT, &three, (5, 21, Estimated)).await;
    check_json(COMPLETIONS, &three, (15, 21, Estimated)).await;
    // Others say it of all.
    let timings = three.find(",\"timings\"").unwrap();
    check_json(CHAT, &format!("{}}}", &three[..timings]), (5, 7, Backend)).await;
}

#[tokio::test(start_paused = true)]
async fn half_a_count_is_completed_by_an_estimate_which_is_then_what_it_is_called() {
    let json = r#"{"choices":[],"usage":{"completion_tokens":7}}"#;
    check_json(CHAT, json, (GUESS, 7, Estimated)).await;
    check_json("/v1/embeddings", r#"{"data":[],"usage":{"prompt_tokens":7}}"#, (7, 0, Backend)).await;
}

#[tokio::test(start_paused = true)]
async fn an_error_is_one_in_every_shape() {
    let delta = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    for (error, words) in [
        (r#"{"error":{"message":"gone","type":"x","param":null,"code":500}}"#, "gone"),
        (r#"{"error":{"message":"gone","code":"server_error"}}"#, "gone"),
        (r#"{"error":{"message":"gone","http_status_code":422}}"#, "gone"),
        (r#"{"error":"gone","error_type":"overloaded"}"#, "gone"),
    ] {
        check_error(CHAT, EVENTS, &format!("{delta}data: {error}\n\n{DONE}"), words).await;
        check_error(CHAT, EVENTS, &format!("data: {error}\n\n"), words).await;
        check_error(CHAT, JSON, error, words).await;
    }
    check_error(CHAT, EVENTS, "data: {\"detail\":\"gone\"}\n\n", "gone").await;
    check_error(CHAT, JSON, r#"{"detail":"gone"}"#, "gone").await;
    check_error(CHAT, EVENTS, &format!("{delta}event: error\ndata: gone\n\n"), "gone").await;
    let record = replay(CHAT, JSON, r#"{"error":"gone"}"#).await;
    assert_eq!(record.usage, None, "nothing was done");
    // A member of that name is no error where something else is asked for.
    let record = replay("/v1/files", JSON, r#"{"error":"gone","detail":"x"}"#).await;
    assert_eq!((record.end, &record.error), (End::Complete, &None));
}

#[tokio::test(start_paused = true)]
async fn running_totals_of_several_choices_are_each_choice_s_until_the_end() {
    let event = |index: u64, content: &str, completion: u64| {
        format!(
            "data: {{\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":\"{content}\"}}}}],\"usage\":{{\"prompt_tokens\":5,\"total_tokens\":{},\"completion_tokens\":{completion}}}}}\n\n",
            5 + completion
        )
    };
    let events = [event(0, "", 0), event(1, "", 0), event(1, "a", 1), event(0, "a", 2), event(1, "b", 3)];
    let last = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":6,\"total_tokens\":11}}\n\n";
    check(
        CHAT,
        EVENTS,
        &[
            (&events[0], (5, 0, Backend)),
            (&events[1], (5, 0, Backend)),
            (&events[2], (5, 1, Backend)),
            (&events[3], (5, 3, Backend)),
            (&events[4], (5, 5, Backend)),
            (last, (5, 6, Backend)),
            (DONE, (5, 6, Backend)),
        ],
        true,
    )
    .await;
    // Of several prompts each has its own tokens.
    let text = |index: u64, prompt: u64| {
        format!(
            "data: {{\"choices\":[{{\"index\":{index},\"text\":\"a\"}}],\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":2}}}}\n\n"
        )
    };
    let texts = [text(0, 5), text(1, 9)];
    check(COMPLETIONS, EVENTS, &[(&texts[0], (5, 2, Backend)), (&texts[1], (14, 4, Backend))], false).await;
}

#[tokio::test(start_paused = true)]
async fn llama_cpp_s_event_of_usage_for_each_choice_adds_up() {
    let delta = |index: u64| {
        format!(
            "data: {{\"choices\":[{{\"finish_reason\":null,\"index\":{index},\"delta\":{{\"content\":\"a\"}}}}]}}\n\n"
        )
    };
    let last = |predicted: u64| {
        format!(
            "data: {{\"choices\":[],\"usage\":{{\"completion_tokens\":{predicted},\"prompt_tokens\":5}},\"timings\":{{\"cache_n\":3,\"prompt_n\":2,\"predicted_n\":{predicted}}}}}\n\n"
        )
    };
    let (zero, one, ends) = (delta(0), delta(1), [last(4), last(3)]);
    check(
        CHAT,
        EVENTS,
        &[
            (&zero, (GUESS, 1, Estimated)),
            (&one, (GUESS, 2, Estimated)),
            (&ends[0], (5, 4, Backend)),
            (&one, (5, 5, Estimated)),
            (&ends[1], (10, 7, Backend)),
            (DONE, (10, 7, Backend)),
        ],
        true,
    )
    .await;
    // Where usage was not asked for, its timings stand beside the last piece of each.
    let stop = |index: u64, predicted: u64| {
        format!(
            "data: {{\"choices\":[{{\"finish_reason\":\"stop\",\"index\":{index},\"delta\":{{}}}}],\"timings\":{{\"cache_n\":3,\"prompt_n\":2,\"predicted_n\":{predicted}}}}}\n\n"
        )
    };
    let stops = [stop(0, 4), stop(1, 3)];
    check(
        CHAT,
        EVENTS,
        &[
            (&zero, (GUESS, 1, Estimated)),
            (&one, (GUESS, 2, Estimated)),
            (&stops[0], (5, 4, Backend)),
            (&stops[1], (5, 7, Backend)),
            (DONE, (5, 7, Backend)),
        ],
        true,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn usage_in_a_chunk_that_is_too_large_to_be_kept_is_read_while_it_passes() {
    let text = "a \\\"usage\\\":{\\\"prompt_tokens\\\":1} [{ ".repeat(10_000);
    let logprobs = "{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97],\"top_logprobs\":[]},".repeat(2_000);
    let chunk = |index: u64, before: &str, behind: &str| {
        format!(
            "data: {{\"id\":\"c\",{before}\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":\"{text}\"}},\"logprobs\":{{\"content\":[{}]}}}}]{behind}}}\n\n",
            logprobs.trim_end_matches(',')
        )
    };
    let usage = |completion: u64| format!("\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":{completion}}}");
    let timings = "\"timings\":{\"cache_n\":3,\"prompt_n\":2,\"predicted_n\":7}";
    let behind = |member: &str| chunk(0, "", &format!(",{member}"));
    let streams = [
        behind(&usage(7)),
        chunk(0, &format!("{},", usage(7)), ""),
        behind(timings),
        [chunk(1, "", &format!(",{}", usage(4))), behind(&usage(3))].concat(),
        // A placeholder does not take the place of what is known.
        [behind(&usage(7)), behind("\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0}")].concat(),
    ];
    for (at, stream) in streams.iter().enumerate() {
        for stream in [stream.clone(), format!("{stream}{DONE}"), stream.replace('\n', "\r\n")] {
            for size in [1460, 50_000] {
                let (out, record) = pass(CHAT, EVENTS, stream.as_bytes().chunks(size).collect()).await;
                assert_eq!(out, stream.as_bytes());
                let counts = record.usage.map(|usage| (usage.prompt, usage.completion - u64::from(at == 4)));
                assert_eq!((counts, record.upstream_id.as_deref()), (Some((5, 7)), Some("c")), "{at}");
            }
        }
        // In one piece, whatever its size.
        let (_, record) = pass(CHAT, EVENTS, vec![stream.as_bytes()]).await;
        assert_eq!(record.usage.map(|usage| (usage.prompt, usage.completion)), Some((5, 7 + u64::from(at == 4))));
    }
    // In one piece, but on two lines.
    let lines = chunk(0, "", &format!("\ndata: ,{}", usage(7)));
    let (_, record) = pass(CHAT, EVENTS, vec![lines.as_bytes()]).await;
    assert_eq!(tokens(&record), Some((5, 7, Backend)));
    // An error, too.
    let error = format!("data: {{\"choices\":[],\"x\":\"{text}\",\"error\":{{\"message\":\"gone\"}}}}\n\n");
    let (_, record) = pass(CHAT, EVENTS, error.as_bytes().chunks(1460).collect()).await;
    assert_eq!((record.end, record.error.as_deref()), (End::BackendFailed, Some("gone")));
}
