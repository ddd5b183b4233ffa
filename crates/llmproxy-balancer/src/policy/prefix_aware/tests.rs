//! Who is asked, and why.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use llmproxy_core::{Backend, Call, Endpoint, Prompt};

use super::*;

const PATH: &str = "/v1/chat/completions";

/// Some backends and the policy that picks among them.
struct Field {
    policy: PrefixAware,
    backend: Arc<Backend>,
    weights: Vec<f64>,
    in_flight: Vec<usize>,
    waiting: Vec<u64>,
    tokens: Vec<u64>,
    tried: Vec<bool>,
}

impl Field {
    fn new(weights: &[u32]) -> Self {
        Self {
            policy: PrefixAware::new(&PrefixAwareConfig { memory: 1 << 20, ..PrefixAwareConfig::default() }),
            backend: Arc::new(Backend::new("http://a").unwrap()),
            weights: weights.iter().map(|weight| f64::from(*weight)).collect(),
            in_flight: vec![0; weights.len()],
            waiting: vec![0; weights.len()],
            tokens: vec![0; weights.len()],
            tried: vec![true; weights.len()],
        }
    }

    fn candidates(&self) -> Vec<Candidate<'_>> {
        let candidate = |index: usize| Candidate {
            weight: self.weights[index],
            in_flight: self.in_flight[index],
            tokens_waiting: self.waiting[index],
            tokens_in_flight: self.tokens[index],
            tried: self.tried[index],
            ..Candidate::new(&self.backend, index)
        };
        (0..self.weights.len()).map(candidate).collect()
    }

    fn choose(&self, work: &Work) -> Choice {
        self.policy.pick(work, &self.candidates())
    }

    /// Where a conversation in which this was said goes, of 4 bytes a token.
    fn ask(&self, said: &[&str]) -> usize {
        self.choose(&self.work(said)).at
    }

    fn work(&self, said: &[&str]) -> Work {
        let messages: Vec<_> = said.iter().map(|text| serde_json::json!({"role": "user", "content": text})).collect();
        let text = serde_json::to_string(&messages).unwrap();
        let body = format!(r#"{{"messages":{text},"model":"m"}}"#);
        let start = body.find('[').unwrap();
        let prompt = Prompt { text: start..start + text.len(), ..Prompt::default() };
        self.work_of(&body, prompt, "m")
    }

    fn work_of(&self, body: &str, prompt: Prompt, model: &str) -> Work {
        let call = Call {
            model: Some(model.into()),
            prompt_estimate: body.len() as u64 / 4,
            prompt: Some(prompt),
            ..Call::new(Endpoint::of(PATH))
        };
        let (head, ()) = Request::new(()).into_parts();
        let body = Bytes::copy_from_slice(body.as_bytes());
        let affinity =
            self.policy.affinity(&Incoming { head: &head, call: Some(&call), model: Some(model), body: Some(&body) });
        Work::of(Some(&call), affinity)
    }
}

/// So many bytes that are nobody else's.
fn words(of: &str, bytes: usize) -> String {
    let mut text = String::new();
    for word in 0.. {
        if text.len() >= bytes {
            break;
        }
        text.push_str(&format!("{of} {word} "));
    }
    text
}

#[test]
fn a_conversation_stays_where_it_is() {
    let field = Field::new(&[1, 1, 1]);
    let (question, more) = (words("question", 4000), words("more", 1000));
    let other = words("other", 4000);
    let first = field.ask(&[&question]);
    for turn in 0..5 {
        assert_ne!(field.ask(&[&words(&format!("{other} {turn}"), 3000)]), 9, "others come and go");
        assert_eq!(field.ask(&[&question, "An answer.", &more]), first);
    }
}

#[test]
fn an_answer_that_was_refused_takes_no_room_from_what_is_cached() {
    let mut field = Field::new(&[1, 1]);
    let question = words("question", 8000);
    let home = field.ask(&[&question]);
    // All goes there, or is to; of a prompt that is too short for a block as of any.
    field.in_flight[1 - home] = 1000;
    for said in ["hi", &words("long", 8000)] {
        let mut large = field.work(&[said]);
        large.output_tokens = 600_000;
        for _ in 0..3 {
            assert_eq!(field.choose(&large).at, home);
            field.policy.failed(&large, home);
        }
        assert!(field.choose(&field.work(&[&question])).cached > 0, "{} blocks", large.affinity.blocks.len());
    }
}

#[test]
fn the_reason_says_what_is_cached() {
    let field = Field::new(&[1, 1]);
    let question = words("question", 8000);
    let first = field.choose(&field.work(&[&question]));
    assert_eq!((&*first.reason, first.cached), ("least to compute", 0));
    let next = field.work(&[&question, "And?"]);
    let again = field.choose(&next);
    assert_eq!((&*again.reason, again.at), ("most of the prompt cached", first.at));
    assert!((next.prompt_tokens * 8 / 10..=next.prompt_tokens).contains(&again.cached), "{}", again.cached);
    let long = field.choose(&field.work(&[&question, &words("new", 60_000)]));
    assert_eq!((&*long.reason, long.at), ("some of the prompt cached", first.at));
}

#[test]
fn affinity_yields_where_more_waits_than_it_saves() {
    let mut field = Field::new(&[1, 1]);
    let question = words("question", 8000);
    let home = field.ask(&[&question]);
    field.in_flight[home] = 1;
    field.waiting[home] = 500;
    assert_eq!(field.ask(&[&question, "And?"]), home, "2,000 are saved");
    field.waiting[home] = 3000;
    let choice = field.choose(&field.work(&[&question, "And?"]));
    assert_eq!(choice.at, 1 - home);
    assert!(choice.reason.contains("more waits"), "{}", choice.reason);
    field.waiting[home] = 0;
    assert!((0..20).any(|_| field.ask(&[&question, "And?"]) == 1 - home), "from now on it is at both");
}

#[test]
fn what_all_have_cached_is_spread_by_load() {
    let mut field = Field::new(&[1, 1, 1, 1]);
    let system = words("you are", 6000);
    // They come together, and nobody has had an answer yet.
    let mut picked = vec![0; 4];
    for number in 0..400 {
        let work = field.work(&[&system, &words(&format!("question {number}"), 600)]);
        let choice = field.choose(&work);
        picked[choice.at] += 1;
        field.in_flight[choice.at] += 1;
        field.waiting[choice.at] += work.prompt_tokens - choice.cached;
    }
    assert!(picked.iter().all(|count| (90..=110).contains(count)), "{picked:?}");
}

#[test]
fn prompts_with_nothing_in_common_go_where_the_least_is_to_be_computed() {
    let mut field = Field::new(&[1, 1, 1]);
    field.waiting = vec![4000, 1000, 2000];
    field.in_flight = vec![1, 9, 1];
    assert_eq!(field.ask(&["Hello"]), 1);
    field.waiting = vec![0; 3];
    field.in_flight = vec![3, 2, 4];
    assert_eq!(field.ask(&["Hello"]), 1);
    field.tokens = vec![9000, 60_000, 3000];
    assert_eq!(field.ask(&["Hello"]), 2, "answers of long contexts are more to do");
}

#[test]
fn equals_take_turns_by_weight() {
    let field = Field::new(&[3, 1]);
    let mut picked = [0, 0];
    for _ in 0..40 {
        picked[field.choose(&Work::default()).at] += 1;
    }
    assert_eq!(picked, [30, 10]);
}

#[test]
fn prompts_one_after_the_other_take_turns_by_weight_where_nothing_of_them_is_cached() {
    let mut field = Field::new(&[3, 2]);
    let mut picked = [0, 0];
    for number in 0..50 {
        picked[field.ask(&[&words(&format!("question {number}"), 2000)])] += 1;
    }
    assert_eq!(picked, [30, 20]);
    field.in_flight = vec![1, 1];
    assert_eq!(field.ask(&[&words("else", 2000)]), 0, "where both are busy the faster one is done sooner");
}

#[test]
fn what_waits_counts_by_weight() {
    let mut field = Field::new(&[4, 1]);
    field.waiting = vec![4000, 2000];
    assert_eq!(field.ask(&[&words("some", 2000)]), 0);
    field.waiting = vec![12_000, 2000];
    assert_eq!(field.ask(&[&words("else", 2000)]), 1);
}

#[test]
fn without_a_prompt_load_is_all_that_counts() {
    let mut field = Field::new(&[1, 1]);
    let (head, ()) = Request::new(()).into_parts();
    let call = Call::new(Endpoint::of(PATH));
    let body = Bytes::from_static(b"{}");
    for call in [None, Some(&call)] {
        let affinity = field.policy.affinity(&Incoming { head: &head, call, model: None, body: Some(&body) });
        assert_eq!(affinity, Affinity::default());
    }
    field.waiting = vec![10, 0];
    let work = Work { prompt_tokens: 500, ..Work::default() };
    assert_eq!([0; 5].map(|_| field.choose(&work).at), [1; 5]);
}

#[test]
fn tools_and_system_tie_as_the_messages_do_and_another_model_does_not() {
    let field = Field::new(&[1, 1, 1]);
    let (tools, system) = (words("tool", 3000), words("system", 2000));
    let work = |model: &str, system: &str, said: &str| {
        let body = format!(r#"{{"tools":"{tools}","system":"{system}","messages":["{said}"]}}"#);
        let of = |part: &str| {
            let start = body.find(part).unwrap();
            start..start + part.len()
        };
        let text = of(&format!(r#"["{said}"]"#));
        field.work_of(&body, Prompt { before: [Some(of(&tools)), Some(of(system))], text, ..Prompt::default() }, model)
    };
    let first = field.choose(&work("m", &system, "Hello")).at;
    for _ in 0..3 {
        let other = field.choose(&work("m", &system, "Good day"));
        assert!(other.at == first && other.cached > 1000, "{other:?}");
    }
    let same_tools = field.choose(&work("m", "none", "Hello"));
    assert!(same_tools.at == first && (600..1000).contains(&same_tools.cached), "{same_tools:?}");
    assert_eq!(field.choose(&work("n", &system, "Hello")).cached, 0);
}

#[test]
fn a_backend_that_is_gone_or_has_come_back_has_nothing() {
    let field = Field::new(&[1, 1]);
    let question = words("question", 8000);
    let home = field.ask(&[&question]);
    field.policy.forget(home);
    assert_eq!(field.choose(&field.work(&[&question])).cached, 0);
    let next = field.work(&[&question, "And?"]);
    assert!(field.choose(&next).cached > 0, "it has been asked since");
}
