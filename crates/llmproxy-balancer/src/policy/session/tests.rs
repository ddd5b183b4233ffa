//! Where sessions go, and that they stay there.

use std::collections::HashMap;

use bytes::Bytes;
use http::{Request, request::Parts};
use llmproxy_core::{Call, Endpoint, Prompt};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::policy::tests::Field;

fn session() -> Session {
    Session::new(&SessionConfig { cookie: Some("sid".into()), ..SessionConfig::default() })
}

fn head(headers: &[(&str, &str)]) -> Parts {
    let request = headers.iter().fold(Request::builder(), |request, (name, value)| request.header(*name, *value));
    request.body(()).unwrap().into_parts().0
}

fn of(key: u64) -> Work {
    Work { affinity: Affinity { session: Some(key), ..Affinity::default() }, ..Work::default() }
}

fn key(headers: &[(&str, &str)], call: Option<&Call>, body: Option<&Bytes>) -> Option<u64> {
    session()
        .affinity(&Incoming { head: &head(headers), call, model: call.and_then(|call| call.model.as_deref()), body })
        .session
}

/// Where each of these sessions goes while nobody is busy.
fn homes(field: &Field, sessions: u64) -> Vec<usize> {
    let (policy, candidates) = (session(), field.candidates());
    (0..sessions).map(|key| candidates[policy.pick(&of(scattered(key)), &candidates).at].index).collect()
}

/// A conversation: the system's word, the first question and what follows.
fn talk(system: &str, first: &str, rest: &str, model: &str) -> (Call, Bytes) {
    let opening = format!(r#"{{"role":"system","content":"{system}"}},{{"role":"user","content":"{first}"}}"#);
    let body = format!(r#"{{"messages":[{opening}{rest}],"model":"{model}"}}"#);
    let prompt = Prompt { before: [None, None], text: 12..12, opening: 13..13 + opening.len() };
    let call =
        Call { model: Some(model.into()), prompt: Some(prompt), ..Call::new(Endpoint::of("/v1/chat/completions")) };
    (call, body.into())
}

#[test]
fn the_first_that_is_there_is_the_key() {
    let (mut call, body) = talk("be kind", "hello", "", "m");
    call.user = Some("alice".into());
    let all = [("x-session-id", "1"), ("x-session-affinity", "2"), ("cookie", "a=b; sid=3")];
    let keys = [
        key(&all, Some(&call), Some(&body)),
        key(&all[1..], Some(&call), Some(&body)),
        key(&all[2..], Some(&call), Some(&body)),
        key(&[], Some(&call), Some(&body)),
        key(&[], Some(&Call { user: None, ..call.clone() }), Some(&body)),
    ];
    for (at, key) in keys.iter().enumerate() {
        assert!(key.is_some() && !keys[..at].contains(key), "{keys:?}");
    }
    assert_eq!(keys[0], key(&all[..1], None, None), "the rest does not count then");
    assert_eq!(keys[3], key(&[("x-session-id", " "), ("cookie", "sid=; sidx=1")], Some(&call), None), "empty is none");
}

#[test]
fn without_any_of_them_there_is_no_session() {
    assert_eq!(key(&[], None, None), None);
    let (call, _) = talk("be kind", "hello", "", "m");
    assert_eq!(key(&[], Some(&call), None), None, "the body passes through");
    assert_eq!(key(&[], Some(&call), Some(&Bytes::from_static(b"{}"))), None, "facts of another body");
    assert_eq!(key(&[("cookie", "sid=1")], None, None), key(&[("cookie", "x=2;sid=1 ")], None, None));
    let plain = Session::new(&SessionConfig::default());
    let head = head(&[("cookie", "sid=1")]);
    assert_eq!(
        plain.affinity(&Incoming { head: &head, call: None, model: None, body: None }).session,
        None,
        "no cookie is named"
    );
}

#[test]
fn a_conversation_is_known_by_its_opening_and_its_model() {
    let of = |(call, body): (Call, Bytes)| key(&[], Some(&call), Some(&body)).unwrap();
    let first = of(talk("be kind", "hello", "", "m"));
    let rest = r#",{"role":"assistant","content":"hi"},{"role":"user","content":"more"}"#;
    assert_eq!(first, of(talk("be kind", "hello", rest, "m")));
    assert_ne!(first, of(talk("be kind", "hallo", rest, "m")));
    assert_ne!(first, of(talk("be kind", "hello", rest, "n")));
}

#[test]
fn marks_of_what_is_to_be_cached_are_no_part_of_a_conversation() {
    let plain = r#"{"role":"user","content":[{"type":"text","text":"hi"}]}"#;
    let is_same = |marked: &str| without_markers(marked.as_bytes()) == plain.as_bytes();
    assert!(matches!(without_markers(plain.as_bytes()), Cow::Borrowed(_)));
    for mark in [r#""cache_control":{"type":"ephemeral"}"#, r#""cache_control" : {"type": "ephemeral", "ttl": "1h"}"#] {
        assert!(is_same(&plain.replace(r#""hi"}"#, &format!(r#""hi",{mark}}}"#))), "{mark} at the end");
        assert!(is_same(&plain.replace(r#"{"type""#, &format!(r#"{{{mark}, "type""#))), "{mark} in the beginning");
        assert!(is_same(&plain.replace(r#","text""#, &format!(r#", {mark},"text""#))), "{mark} between");
    }
    assert!(is_same(&plain.replace(r#""hi"}"#, r#""hi","cache_control":null}"#)));
    for text in [r#"{"text":"\"cache_control\":{}"}"#, r#"{"type":"cache_control"}"#, r#"{"cache_control":{"#, "_", ""]
    {
        assert_eq!(without_markers(text.as_bytes()), text.as_bytes(), "none");
    }

    let of = |(call, body): (Call, Bytes)| key(&[], Some(&call), Some(&body)).unwrap();
    let marked = talk("be kind", r#"hi","cache_control":{"type":"ephemeral"},"x":"y"#, "", "m");
    assert_eq!(of(marked), of(talk("be kind", r#"hi","x":"y"#, "", "m")));
}

/// Pinned: a session that moves with an update of the proxy has lost its cache, and two versions side by side disagree.
#[test]
fn keys_and_homes_are_the_same_in_every_process_and_version() {
    assert_eq!(key(&[("x-session-id", "abc")], None, None), Some(7_431_479_699_503_227_426));
    assert_eq!(homes(&Field::new(&[1, 1, 1, 1]), 16), [0, 0, 1, 0, 2, 1, 2, 2, 3, 0, 2, 3, 0, 1, 3, 0]);
}

#[test]
fn every_byte_and_the_length_count() {
    let of = |bytes: &[u8]| hash(Source::Header, &[bytes]);
    let long = b"a session's key of some length, with a rest";
    let mut seen: Vec<u64> = (0..=long.len()).map(|end| of(&long[..end])).collect();
    seen.extend([&b"a\0"[..], b"a\0\0", b"a session\0", b"\0", b"\0\0"].map(of));
    for at in 0..long.len() {
        let mut other = *long;
        other[at] ^= 1;
        seen.push(of(&other));
    }
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), count);
    assert_ne!(hash(Source::Opening, &[b"ab", b"c"]), hash(Source::Opening, &[b"a", b"bc"]));
}

#[test]
fn the_order_and_the_numbers_of_the_backends_do_not_count() {
    let field = Field::new(&[1, 2, 3]);
    let mut turned = field.candidates();
    turned.reverse();
    for (number, candidate) in turned.iter_mut().enumerate() {
        candidate.index = number;
    }
    let (policy, candidates) = (session(), field.candidates());
    for key in (0..200).map(scattered) {
        let [a, b] = [&candidates, &turned].map(|all| &all[policy.pick(&of(key), all).at].backend.name);
        assert_eq!(a, b);
    }
}

#[test]
fn weights_are_shares_of_the_sessions() {
    for weights in [&[1, 1, 1, 1][..], &[3, 1], &[5, 3, 2], &[1, 20]] {
        let mut counts = vec![0; weights.len()];
        homes(&Field::new(weights), 10_000).into_iter().for_each(|home| counts[home] += 1);
        let total: u32 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let share = 10_000.0 * f64::from(*weight) / f64::from(total);
            assert!((f64::from(*count) - share).abs() < 200.0, "{weights:?}: {counts:?}");
        }
    }
}

#[test]
fn a_busy_backend_passes_a_session_on_and_always_to_the_same_one() {
    let (policy, mut field) = (session(), Field::new(&[1, 1, 1, 1]));
    field.in_flight = vec![10; 4];
    let mut next = HashMap::new();
    for key in (0..400).map(scattered) {
        let home = policy.pick(&of(key), &field.candidates());
        assert_eq!(home.reason, "its session's");
        // A quarter more than its share of 46.
        field.in_flight[home.at] = 15;
        let other = policy.pick(&of(key), &field.candidates());
        assert_eq!(field.pick_of(&policy, &of(key)), other.at);
        assert!(other.at != home.at && other.reason.contains("the next"));
        *next.entry((home.at, other.at)).or_insert(0) += 1;
        field.in_flight[home.at] = 14;
        assert_eq!(field.pick_of(&policy, &of(key)), home.at);
        field.in_flight[home.at] = 10;
    }
    assert_eq!(next.len(), 12, "what one passes on does not all go to one other: {next:?}");
}

#[test]
fn requests_without_a_session_go_where_the_fewest_are() {
    let mut field = Field::new(&[1, 1, 1]);
    field.in_flight = vec![4, 2, 3];
    let choice = session().pick(&Work::default(), &field.candidates());
    assert_eq!((choice.at, &*choice.reason), (1, "no session; fewest requests"));
}

#[test]
fn a_name_that_no_header_can_have_is_passed_over() {
    let config = SessionConfig { headers: vec!["a b".into(), "x-chat".into()], ..SessionConfig::default() };
    let head = head(&[("x-chat", "1"), ("x-session-id", "2")]);
    let found = Session::new(&config).affinity(&Incoming { head: &head, call: None, model: None, body: None }).session;
    assert_eq!(found, Some(hash(Source::Header, &[b"1"])));
}

proptest! {
    #[test]
    fn one_that_goes_moves_its_own_sessions_and_one_that_comes_takes_only_what_is_its(
        weights in vec(1_u32..9, 2..8),
        which in any::<prop::sample::Index>(),
    ) {
        let (policy, field) = (session(), Field::new(&weights));
        let gone = which.index(weights.len());
        let all = field.candidates();
        let rest: Vec<Candidate<'_>> = all.iter().copied().filter(|candidate| candidate.index != gone).collect();
        for key in (0..300).map(scattered) {
            let with = all[policy.pick(&of(key), &all).at].index;
            let without = rest[policy.pick(&of(key), &rest).at].index;
            prop_assert!(with == gone || with == without);
        }
    }

    #[test]
    fn another_weight_moves_sessions_only_to_or_from_that_backend(
        weights in vec(1_u32..9, 2..8),
        which in any::<prop::sample::Index>(),
        weight in 0.1_f64..20.0,
    ) {
        let mut field = Field::new(&weights);
        let at = which.index(weights.len());
        let before = homes(&field, 300);
        let grows = weight > field.weights[at];
        field.weights[at] = weight;
        for (before, after) in before.into_iter().zip(homes(&field, 300)) {
            let other = if grows { after } else { before };
            prop_assert!(before == after || other == at);
        }
    }

    #[test]
    fn no_pick_lifts_a_backend_above_its_bound(
        weights in vec(1_u32..9, 1..8),
        popular in 1_u64..10,
        steps in vec((0_u8..3, any::<u64>(), any::<prop::sample::Index>()), 1..300),
    ) {
        let (policy, mut field) = (session(), Field::new(&weights));
        let total: f64 = field.weights.iter().sum();
        for (step, session, which) in steps {
            if step == 0 {
                let load = &mut field.in_flight[which.index(weights.len())];
                *load = load.saturating_sub(1);
                continue;
            }
            let picked = field.pick_of(&policy, &of(scattered(session % popular)));
            field.in_flight[picked] += 1;
            let share = field.in_flight.iter().sum::<usize>() as f64 * field.weights[picked] / total;
            // To be asked one must be below it; shares are rounded up.
            prop_assert!((field.in_flight[picked] as f64) < 1.25 * share + 1.0, "{field:?}");
        }
    }
}
