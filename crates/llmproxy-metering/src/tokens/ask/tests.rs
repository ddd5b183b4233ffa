//! Backends of each kind, as far as they count.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::Response;
use llmproxy_core::{BoxError, Endpoint};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;

type Answer = Option<(u16, Value)>;

/// What was asked: the path, and the JSON.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// Asks a backend that answers by `answer`, and keeps what it was asked.
fn asker(answer: impl Fn(&str, &Value) -> Answer + Send + Sync + 'static) -> (Asker, Asked) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (seen, answer) = (asked.clone(), Arc::new(answer));
    let client = HttpClient::new(tower::service_fn(move |request: Request<Bytes>| {
        let (seen, answer) = (seen.clone(), answer.clone());
        async move {
            let path = request.uri().path().to_owned();
            let json: Value = serde_json::from_slice(request.body())?;
            seen.lock().unwrap().push((path.clone(), json.clone()));
            let Some((status, body)) = answer(&path, &json) else { std::future::pending().await };
            Ok::<_, BoxError>(Response::builder().status(status).body(Bytes::from(body.to_string()))?)
        }
    }));
    (Asker::new(client), asked)
}

fn backend() -> Arc<Backend> {
    Arc::new(Backend::new("http://127.0.0.1:9").unwrap())
}

fn prompt(path: &str, body: Value) -> Question {
    Question::Prompt { endpoint: Endpoint::of(path), body: Bytes::from(body.to_string()) }
}

fn vllm(path: &str, json: &Value) -> Answer {
    match (path, json.get("messages"), json.get("prompt")) {
        ("/tokenize", Some(_), None) => Some((200, json!({"count": 20, "max_model_len": 2048, "tokens": [1, 2]}))),
        ("/tokenize", None, Some(prompt)) => {
            let around = usize::from(json["add_special_tokens"] == true);
            Some((200, json!({"count": prompt.as_str().unwrap().len() + around, "tokens": []})))
        }
        _ => Some((404, json!({"detail": "Not Found"}))),
    }
}

fn llama_cpp(path: &str, json: &Value) -> Answer {
    match path {
        "/apply-template" => Some((200, json!({"prompt": "<user>Hi"}))),
        "/tokenize" => {
            let around = usize::from(json["add_special"] == true);
            Some((200, json!({"tokens": vec![7; json["content"].as_str().unwrap().len() + around]})))
        }
        _ => Some((404, json!({}))),
    }
}

fn tgi(path: &str, json: &Value) -> Answer {
    let token = json!({"id": 1, "text": "x", "start": 0, "stop": 1});
    match path {
        "/chat_tokenize" => Some((200, json!({"tokenize_response": vec![token; 9], "templated_text": "x"}))),
        "/tokenize" => Some((200, json!(vec![token; json["inputs"].as_str().unwrap().len()]))),
        _ => Some((404, json!({}))),
    }
}

fn exactly(tokens: u64) -> Result<Counted, Uncounted> {
    Ok(Counted { tokens, exact: true })
}

#[tokio::test(start_paused = true)]
async fn each_kind_is_known_by_its_first_answer_and_asked_in_its_way() {
    let chat = prompt(
        "/v1/chat/completions",
        json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": true}),
    );
    let text = prompt("/v1/completions", json!({"prompt": "four"}));
    let answer = Question::Text("six...".into());
    let check = async |server: fn(&str, &Value) -> Answer, of_chat, of_text, paths: &[&str]| {
        let (asker, asked) = asker(server);
        assert_eq!(asker.ask(&backend(), Some("served"), &chat).await, exactly(of_chat));
        assert_eq!(asker.ask(&backend(), Some("served"), &text).await, exactly(of_text));
        assert_eq!(asker.ask(&backend(), None, &answer).await, exactly(6));
        let asked = asked.lock().unwrap();
        assert_eq!(asked.iter().map(|(path, _)| &**path).collect::<Vec<_>>(), paths);
        assert!(asked.iter().all(|(_, json)| json.get("stream").is_none()));
    };
    check(vllm, 20, 5, &["/tokenize"; 4]).await;
    check(llama_cpp, 9, 5, &["/tokenize", "/apply-template", "/tokenize", "/tokenize", "/tokenize"]).await;
    check(tgi, 9, 4, &["/tokenize", "/chat_tokenize", "/tokenize", "/tokenize"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_space_that_the_model_has_begun_with_is_not_put_there_again() {
    let check = async |shown: Value, text: &str, expected: &str| {
        let answer = shown.clone();
        let (asker, asked) = asker(move |_, json| {
            let is_first = json["with_pieces"] == true && json["return_token_strs"] == true;
            Some((200, if is_first { answer.clone() } else { json!({"count": 3, "tokens": [1, 2, 3]}) }))
        });
        assert_eq!(asker.ask(&backend(), None, &Question::Text(text.into())).await, exactly(3));
        let asked = asked.lock().unwrap();
        let (_, json) = &asked[1];
        assert_eq!(json.get("content").or(json.get("prompt")), Some(&json!(expected)), "{shown}");
    };
    let llama = |pieces: &[&str]| {
        let tokens: Vec<_> = pieces.iter().map(|piece| json!({"id": 1, "piece": piece})).collect();
        json!({"tokens": tokens})
    };
    let vllm = |pieces: &[&str]| json!({"count": 2, "max_model_len": 9, "tokens": [1, 2], "token_strs": pieces});
    for (shown, doubles) in [
        (llama(&[" ", " a"]), true),
        (llama(&["  ", "a"]), true),
        (vllm(&["▁", "▁a"]), true),
        (llama(&[" a"]), false),
        (llama(&[" ", "a"]), false),
        (vllm(&["Ġa"]), false),
        (json!({"tokens": [1, 2]}), false),
        (json!({"count": 2, "tokens": [1, 2], "token_strs": null}), false),
        (json!({"tokens": [{"id": 1, "piece": [32, 32]}]}), false),
    ] {
        check(shown.clone(), " the", if doubles { "the" } else { " the" }).await;
        check(shown.clone(), "the", "the").await;
        check(shown, " ", " ").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_chat_is_asked_for_with_all_that_its_template_is_told() {
    let (asker, asked) = asker(vllm);
    let body = json!({
        "model": "alias", "messages": [{"role": "user", "content": "Hi"}], "tools": [{"type": "function"}], "temperature": 1,
        "add_generation_prompt": false, "chat_template_kwargs": {"enable_thinking": false},
    });
    let chat = prompt("/v1/chat/completions", body.clone());
    assert_eq!(asker.ask(&backend(), Some("served"), &chat).await, exactly(20));
    assert_eq!(asker.ask(&backend(), None, &chat).await, exactly(20));
    let mut expected = body;
    expected.as_object_mut().unwrap().remove("temperature");
    assert_eq!(asked.lock().unwrap()[2].1, expected);
    expected["model"] = "served".into();
    assert_eq!(asked.lock().unwrap()[1].1, expected);
}

#[tokio::test(start_paused = true)]
async fn what_the_question_leaves_out_is_not_counted_exactly() {
    type Server = fn(&str, &Value) -> Answer;
    let check = async |server: Server, path: &str, more: Value, told: &[&str], exact: bool| {
        let (asker, asked) = asker(server);
        let mut body =
            json!({"messages": [{"role": "user", "content": "Hi"}], "tools": [{}], "prompt": "Hi", "inputs": "Hi"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let counted = asker.ask(&backend(), None, &prompt(path, body)).await;
        assert_eq!(counted.map(|counted| counted.exact), Ok(exact), "{path} {more}");
        let asked = asked.lock().unwrap();
        // The first question is what it is.
        let has = |name: &str| asked[1].1.get(name).is_some();
        assert!(
            told.iter().all(|name| has(name))
                && told.len() == more.as_object().unwrap().keys().filter(|name| has(name)).count()
        );
    };
    let chat = "/v1/chat/completions";
    let none = json!({"documents": null, "truncate_prompt_tokens": null, "chat_template": null, "tool_choice": "auto"});
    check(vllm, chat, none, &["chat_template"], true).await;
    check(vllm, chat, json!({"chat_template": "x"}), &["chat_template"], true).await;
    check(tgi, chat, json!({"chat_template": "x"}), &[], false).await;
    for server in [vllm as Server, llama_cpp, tgi] {
        check(server, chat, json!({"truncate_prompt_tokens": 1}), &[], false).await;
        check(server, chat, json!({"documents": [{"text": "a"}]}), &[], false).await;
    }
    check(vllm, chat, json!({"reasoning_effort": "high"}), &[], false).await;
    check(llama_cpp, chat, json!({"reasoning_effort": "high"}), &["reasoning_effort"], true).await;
    check(vllm, chat, json!({"tool_choice": "none"}), &[], false).await;
    check(tgi, chat, json!({"tool_choice": "none"}), &["tool_choice"], true).await;

    let completion = "/v1/completions";
    check(vllm, completion, json!({"suffix": "x"}), &[], false).await;
    check(vllm, completion, json!({"truncate_prompt_tokens": 1}), &[], false).await;
    check(vllm, completion, json!({"echo": true, "suffix": null}), &[], true).await;
    check(tgi, "/generate", json!({"parameters": {"truncate": 2}}), &[], false).await;
    check(tgi, "/generate", json!({"parameters": {"max_new_tokens": 2}}), &[], true).await;
    let tokens = prompt(completion, json!({"prompt": [1, 2], "suffix": "x"}));
    assert_eq!(asker(vllm).0.ask(&backend(), None, &tokens).await, Ok(Counted { tokens: 2, exact: false }));
}

#[tokio::test(start_paused = true)]
async fn tokens_around_a_text_are_left_out_where_the_server_does() {
    let switched_off = prompt("/v1/completions", json!({"prompt": "four", "add_special_tokens": false}));
    assert_eq!(asker(vllm).0.ask(&backend(), None, &switched_off).await, exactly(4));
    assert_eq!(asker(llama_cpp).0.ask(&backend(), None, &switched_off).await, exactly(5));
}

#[tokio::test(start_paused = true)]
async fn a_picture_is_not_counted_exactly() {
    let (asker, _) = asker(vllm);
    let parts = json!([{"type": "image_url", "image_url": {"url": "data:x"}}]);
    let chat = prompt("/v1/chat/completions", json!({"messages": [{"role": "user", "content": parts}]}));
    assert_eq!(asker.ask(&backend(), None, &chat).await, Ok(Counted { tokens: 20, exact: false }));
}

#[tokio::test(start_paused = true)]
async fn who_offers_nothing_is_left_alone_for_a_while() {
    let (asker, asked) = asker(|_, _| Some((404, json!({"error": "no"}))));
    let question = Question::Text("a".into());
    for _ in 0..3 {
        assert_eq!(asker.ask(&backend(), None, &question).await, Err(Uncounted::Failed));
    }
    assert_eq!(asked.lock().unwrap().len(), 1);
    tokio::time::advance(LEFT_ALONE + Duration::from_secs(1)).await;
    assert_eq!(asker.ask(&backend(), None, &question).await, Err(Uncounted::Failed));
    assert_eq!(asked.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_not_waited_for_and_asked_again_soon() {
    let down = Arc::new(AtomicUsize::new(1));
    let is_down = down.clone();
    let (asker, _) =
        asker(move |path, json| (is_down.load(Ordering::Relaxed) == 0).then(|| vllm(path, json)).flatten());
    let question = Question::Text("a".into());
    let began = Instant::now();
    assert_eq!(asker.ask(&backend(), None, &question).await, Err(Uncounted::Failed));
    assert_eq!(began.elapsed(), TIMEOUT);
    down.store(0, Ordering::Relaxed);
    assert_eq!(asker.ask(&backend(), None, &question).await, Err(Uncounted::Failed));
    tokio::time::advance(BREATHER + Duration::from_secs(1)).await;
    assert_eq!(asker.ask(&backend(), None, &question).await, exactly(1));
}

#[tokio::test(start_paused = true)]
async fn nonsense_is_no_answer() {
    for nonsense in
        [json!(7), json!({}), json!({"count": -1}), json!({"tokens": "x"}), json!({"count": "3"}), json!(null)]
    {
        let (asker, _) = asker(move |_, _| Some((200, nonsense.clone())));
        assert_eq!(asker.ask(&backend(), None, &Question::Text("a".into())).await, Err(Uncounted::Failed));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_as_wrong_does_not_speak_against_the_backend() {
    let (asker, _) = asker(|path, json| match json.get("messages") {
        Some(_) => Some((400, json!({"error": {"message": "too long"}}))),
        None => vllm(path, json),
    });
    let chat = prompt("/v1/chat/completions", json!({"messages": []}));
    assert_eq!(asker.ask(&backend(), None, &chat).await, Err(Uncounted::Failed));
    assert_eq!(asker.ask(&backend(), None, &Question::Text("a".into())).await, exactly(1));
}

#[tokio::test(start_paused = true)]
async fn tokens_are_counted_without_asking_and_what_can_not_be_asked_is_not() {
    let (asker, asked) = asker(vllm);
    let ask = async |path, body| asker.ask(&backend(), None, &prompt(path, body)).await;
    assert_eq!(ask("/v1/completions", json!({"prompt": [1, 2, 3]})).await, exactly(3));
    assert_eq!(ask("/v1/embeddings", json!({"input": [[1], [2, 3]]})).await, exactly(3));
    assert!(asked.lock().unwrap().is_empty());
    assert_eq!(ask("/v1/completions", json!({"prompt": ["a", "bc"]})).await, exactly(5));
    let before = asked.lock().unwrap().len();
    for (path, body) in [
        ("/v1/messages", json!({"messages": []})),
        ("/api/chat", json!({"messages": []})),
        ("/v1/responses", json!({"input": "Hi"})),
        ("/v1/completions", json!({"prompt": vec!["a"; 100]})),
        ("/v1/completions", json!({"prompt": "a".repeat(2 * 1024 * 1024)})),
    ] {
        assert_eq!(ask(path, body).await, Err(Uncounted::Failed), "{path}");
    }
    assert_eq!(asked.lock().unwrap().len(), before);
}

#[tokio::test(start_paused = true)]
async fn what_is_submitted_ends_once_and_past_the_places_at_once() {
    let (asker, asked) = asker(|_, _| None);
    let (ended, mut ends) = mpsc::channel(1000);
    let submit = |asker: &Asker| {
        let ended = ended.clone();
        asker.submit(backend(), None, Question::Text("a".into()), move |result| ended.try_send(result).unwrap());
    };
    (0..PLACES + 1).for_each(|_| submit(&asker));
    assert_eq!(ends.try_recv(), Ok(Err(Uncounted::Full)));
    assert!(ends.try_recv().is_err());
    tokio::task::yield_now().await;
    assert!(asked.lock().unwrap().len() <= AT_ONCE);
    assert_eq!(asker.drain(Instant::now() + Duration::from_secs(60)).await, 0);
    for _ in 0..PLACES {
        assert_eq!(ends.recv().await, Some(Err(Uncounted::Failed)));
    }
    submit(&asker);
    assert_eq!(ends.try_recv(), Ok(Err(Uncounted::Stopped)));
}

#[tokio::test(start_paused = true)]
async fn what_is_open_when_the_time_is_over_is_told_before_that_goes_on() {
    let (asker, _) = asker(|_, _| None);
    let (ended, mut ends) = mpsc::channel(1000);
    for _ in 0..PLACES {
        // What comes after it is no question any more.
        let (again, ended) = (asker.clone(), ended.clone());
        asker.submit(backend(), None, Question::Text("a".into()), move |first| {
            again.submit(backend(), None, Question::Text("b".into()), move |then| {
                ended.try_send((first, then)).unwrap();
            });
        });
    }
    // Those under way, and those that wait for their turn.
    assert_eq!(asker.drain(Instant::now() + TIMEOUT / 2).await, PLACES);
    for _ in 0..PLACES {
        assert_eq!(ends.try_recv(), Ok((Err(Uncounted::Stopped), Err(Uncounted::Stopped))));
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_after_an_answer_is_asked_while_a_stop_has_time() {
    let (asker, _) = asker(vllm);
    let (ended, mut ends) = mpsc::channel(1);
    let again = asker.clone();
    asker.submit(backend(), None, Question::Text("one".into()), move |first| {
        again.submit(backend(), None, Question::Text("four".into()), move |then| {
            ended.try_send((first, then)).unwrap();
        });
    });
    assert_eq!(asker.drain(Instant::now() + Duration::from_secs(5)).await, 0);
    assert_eq!(ends.try_recv(), Ok((exactly(3), exactly(4))));
}

#[test]
fn what_the_runtime_takes_along_is_told() {
    let (asker, _) = asker(|_, _| None);
    let (ended, mut ends) = mpsc::channel(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        asker.submit(backend(), None, Question::Text("a".into()), move |result| ended.try_send(result).unwrap());
        tokio::task::yield_now().await;
    });
    drop(runtime);
    assert_eq!(ends.try_recv(), Ok(Err(Uncounted::Stopped)));
}

#[test]
fn no_more_backends_are_remembered_than_there_may_be() {
    let (asker, _) = asker(vllm);
    for index in 0..MAX_BACKENDS + 10 {
        asker.remember(format!("http://b{index}"), Some(Server { kind: Kind::Tgi, doubles_space: false }), REMEMBERED);
    }
    assert_eq!(asker.0.known.lock().unwrap().len(), MAX_BACKENDS);
}
