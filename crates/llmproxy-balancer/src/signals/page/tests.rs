//! Pages of real servers, and of none.

use proptest::prelude::*;

use super::Page;

fn check(page: &str, running: Option<u64>, waiting: Option<u64>, kv_usage: Option<f64>) {
    let expected = Page { running, waiting, kv_usage };
    assert_eq!(Page::read(page.as_bytes()), Some(expected).filter(|page| *page != Page::default()), "{page}");
}

#[test]
fn vllm_tells_its_load() {
    let page = r#"# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen2.5-Coder-32B-Instruct"} 8.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen2.5-Coder-32B-Instruct"} 2.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen/Qwen2.5-Coder-32B-Instruct",reason="capacity"} 2.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen2.5-Coder-32B-Instruct"} 0.37
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="Qwen/Qwen2.5-Coder-32B-Instruct"} 3.0
"#;
    check(page, Some(8), Some(2), Some(0.37));
}

#[test]
fn engines_of_one_vllm_are_added_up_and_their_caches_averaged() {
    let page = r#"vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting{engine="1",model_name="m"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.2
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.6
"#;
    check(page, Some(7), Some(1), Some(0.4));
}

#[test]
fn the_new_name_of_vllms_cache_goes_before_the_old_one() {
    let old = "vllm:num_requests_running 1.0\nvllm:gpu_cache_usage_perc{model_name=\"m\"} 0.5\n";
    check(old, Some(1), None, Some(0.5));
    check(&format!("{old}vllm:kv_cache_usage_perc{{model_name=\"m\"}} 0.25\n"), Some(1), None, Some(0.25));
}

#[test]
fn sglang_tells_its_load() {
    let page = r#"# HELP sglang:token_usage The token usage
# TYPE sglang:token_usage gauge
sglang:token_usage{model_name="meta-llama/Llama-3.1-8B-Instruct"} 0.28
# HELP sglang:num_running_reqs The number of running requests
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="meta-llama/Llama-3.1-8B-Instruct"} 162.0
# HELP sglang:num_queue_reqs The number of requests in the waiting queue
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{model_name="meta-llama/Llama-3.1-8B-Instruct"} 2826.0
"#;
    check(page, Some(162), Some(2826), Some(0.28));
}

#[test]
fn what_sglangs_workers_say_of_one_engine_is_said_once() {
    let page = r#"sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 5.0
sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="m",pp_rank="0",tp_rank="1"} 5.0
sglang:num_running_reqs{dp_rank="1",engine_type="unified",model_name="m",pp_rank="0",tp_rank="2"} 7.0
sglang:num_running_reqs{dp_rank="1",engine_type="unified",model_name="m",pp_rank="0",tp_rank="3"} 7.0
"#;
    check(page, Some(12), None, None);
}

#[test]
fn what_sglang_says_of_each_priority_is_part_of_the_whole() {
    let page = r#"sglang:num_queue_reqs{model_name="m",priority="",tp_rank="0"} 9.0
sglang:num_queue_reqs{model_name="m",priority="0",tp_rank="0"} 4.0
sglang:num_queue_reqs{model_name="m",priority="10",tp_rank="0"} 5.0
"#;
    check(page, None, Some(9), None);
}

#[test]
fn tgi_tells_its_load() {
    let page = "# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size 4\n\n# TYPE tgi_queue_size gauge\ntgi_queue_size 7\n\
                tgi_batch_current_max_tokens 5120\n";
    check(page, Some(4), Some(7), None);
}

#[test]
fn llama_server_tells_its_load_and_its_cache_is_no_part_of_it() {
    let page = "# HELP llamacpp:requests_processing Number of requests processing.\n\
                # TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 2\n\
                # HELP llamacpp:requests_deferred Number of requests deferred.\n\
                # TYPE llamacpp:requests_deferred gauge\nllamacpp:requests_deferred 1\n\
                llamacpp:kv_cache_usage_ratio 0.98\n";
    check(page, Some(2), Some(1), None);
}

#[test]
fn slots_say_who_works_and_not_who_waits() {
    let page = r#"[{"id":0,"id_task":135,"n_ctx":65536,"speculative":false,"is_processing":true,"params":{"n_predict":-1}},
        {"id":1,"n_ctx":65536,"is_processing":false},{"id":2,"is_processing":true}]"#;
    check(page, Some(2), None, None);
    check("[]", None, None, None);
    check(r#"[{"id":0,"state":1}]"#, None, None, None);
}

#[test]
fn any_spelling_that_the_format_allows_is_read() {
    let labels = r#"vllm:num_requests_running { model_name = "a\"}\\" , engine="0", } 3 1719937482000"#;
    check(labels, Some(3), None, None);
    check("vllm:num_requests_running\t4e0\r\n", Some(4), None, None);
    check("sglang:token_usage{} 1.0", None, None, Some(1.0));
}

#[test]
fn what_is_missing_or_no_number_of_requests_is_not_taken_for_none() {
    for page in [
        "",
        " ",
        "not found",
        "<html>vllm:num_requests_running 3</html>",
        "# vllm:num_requests_running 3",
        "vllm:num_requests_running",
        "vllm:num_requests_running ",
        "vllm:num_requests_running NaN",
        "vllm:num_requests_running +Inf",
        "vllm:num_requests_running -1",
        "vllm:num_requests_running 1e30",
        "vllm:num_requests_running many",
        "vllm:num_requests_running{",
        "vllm:num_requests_running{a",
        "vllm:num_requests_running{a=",
        "vllm:num_requests_running{a=\"",
        "vllm:num_requests_running{a=\"\\",
        "vllm:num_requests_running{a=\"b\"",
        "vllm:num_requests_running{a=\"b\"} ",
        "vllm:num_requests_running_total 3",
        "vllm:kv_cache_usage_perc 37.5",
        "[",
        "[1]",
        "{\"running\": 3}",
        "\u{feff}[]",
    ] {
        check(page, None, None, None);
    }
    check(
        "vllm:num_requests_running 3\nvllm:num_requests_waiting NaN\nvllm:kv_cache_usage_perc 55",
        Some(3),
        None,
        None,
    );
}

#[test]
fn lines_of_other_than_text_are_left_out() {
    let page = b"vllm:num_requests_running{a=\"\xff\xfe\"} 3\nvllm:num_requests_waiting 1\n";
    assert_eq!(Page::read(page), Some(Page { waiting: Some(1), ..Page::default() }));
}

#[test]
fn a_page_of_a_million_series_is_read_in_bounded_memory() {
    let page: String = (0..1_000_000).map(|at| format!("tgi_queue_size{{a=\"{at}\"}} 1\n")).collect();
    assert_eq!(Page::read(page.as_bytes()).and_then(|page| page.waiting), Some(1024));
}

proptest! {
    #[test]
    fn no_page_is_a_panic(page in r#"((vllm:num_requests_(running|waiting)|sglang:token_usage|tgi_queue_size)?[{}="\\, a\n0-9.e+-é]{0,24}){0,8}"#) {
        if let Some(page) = Page::read(page.as_bytes()) {
            prop_assert!(page != Page::default());
            prop_assert!(page.kv_usage.is_none_or(|usage| (0.0..=1.0).contains(&usage)));
        }
    }

    #[test]
    fn no_bytes_are_a_panic(page in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Page::read(&page);
    }
}
