//! What requests may be served by, as rules, aliases and fallbacks say.

use http::Request;
use llmproxy_core::{Endpoint, Needs, Prompt};

use super::*;
use crate::policy;

fn planner(routing: &str) -> Planner {
    planner_of(routing, false)
}

fn planner_of(routing: &str, discovers: bool) -> Planner {
    let routing: RoutingConfig = serde_json::from_str(routing).unwrap();
    let mistakes = crate::validate_routing(&routing);
    assert!(mistakes.is_empty(), "{mistakes:?}");
    let backends = [("gpu-1", "http://a"), ("gpu-2", "http://b")].map(|(name, url)| {
        let mut backend = Backend::new(url).unwrap();
        backend.name = name.into();
        Arc::new(backend)
    });
    Planner::new(&routing, &backends, discovers, &mut |_, strategy| policy::Recipe::of(strategy, &routing).make())
}

/// A request, and what is known of it.
struct Ask {
    request: Request<()>,
    call: Call,
    flow: FlowKey,
}

impl Ask {
    fn new(model: &str) -> Self {
        let mut call = Call::new(Endpoint::of("/v1/chat/completions"));
        call.model = Some(model.into());
        Self { request: Request::post("/v1/chat/completions").body(()).unwrap(), call, flow: FlowKey::default() }
    }

    fn plan(self, planner: &Planner) -> Plan {
        let (head, ()) = self.request.into_parts();
        let asked = Asked { head: &head, call: Some(&self.call), flow: Some(&self.flow), body: None };
        planner.plan(asked, None)
    }
}

/// Each stage as `MODEL@GROUP/BACKEND`, what is not there left out; `=` before a name that is the client's own, `!` behind one that must be listed.
fn shown(stages: &[Stage]) -> String {
    let one = |stage: &Stage| {
        let same = if stage.renamed { "" } else { "=" };
        let group = stage.group.as_ref().map(|group| format!("@{group}")).unwrap_or_default();
        let backend = stage.backend.as_ref().map(|backend| format!("/{backend}")).unwrap_or_default();
        let listed = if stage.listed { "!" } else { "" };
        format!("{same}{}{listed}{group}{backend}", stage.model.as_deref().unwrap_or("-"))
    };
    stages.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn check(routing: &str, asked: &[(&str, &str)]) {
    let planner = planner(routing);
    for (model, expected) in asked {
        assert_eq!(shown(&Ask::new(model).plan(&planner).stages), *expected, "{model} by {routing}");
    }
}

#[test]
fn without_a_word_a_model_is_its_own() {
    check("{}", &[("m", "=m")]);
    let request = Request::get("/v1/files").body(()).unwrap().into_parts().0;
    let asked = Asked { head: &request, call: None, flow: None, body: None };
    assert_eq!(shown(&planner("{}").plan(asked, None).stages), "=-");
}

#[test]
fn an_alias_is_replaced_once_and_has_what_stands_in_for_its_model() {
    check(
        r#"{"model_mapping":{"gpt-3":"small"},
            "models":{"gpt-4":{"to":"big","fallbacks":["small"]},"o1":{"to":"big"},"big":{"fallbacks":["medium","small"]}}}"#,
        &[
            ("gpt-3", "small"),
            ("gpt-4", "big small"),
            ("o1", "big medium small"),
            ("big", "=big medium small"),
            ("small", "=small"),
        ],
    );
    // One that falls back to the very name that the client used.
    check(
        r#"{"models":{"m":{"to":"m-fast","fallbacks":["m-slow"]}}}"#,
        &[("m", "m-fast m-slow"), ("m-slow", "=m-slow")],
    );
}

#[test]
fn older_fallbacks_are_backends_or_models() {
    check(
        r#"{"model_mapping":{"gpt-4":"qwen-32b"},
            "fallback":[{"models":["qwen*"],"primary":"http://a/","fallback":["gpu-2","small"]},{"primary":"big","fallback":["small"]},
                        {"models":["any"],"fallback":["gpu-1"]}]}"#,
        &[
            ("qwen-7b", "=qwen-7b/gpu-1 =qwen-7b/gpu-2 small"),
            ("gpt-4", "qwen-32b/gpu-1 qwen-32b/gpu-2 small"),
            ("big", "=big small"),
            ("any", "=any =any/gpu-1"),
            ("other", "=other"),
        ],
    );
    // For all models, and for requests that name none.
    let all = planner(r#"{"fallback":[{"primary":"gpu-1","fallback":["gpu-2","small"]}]}"#);
    let mut ask = Ask::new("");
    ask.call.model = None;
    assert_eq!(shown(&ask.plan(&all).stages), "=-/gpu-1 =-/gpu-2");
    assert_eq!(shown(&Ask::new("m").plan(&all).stages), "=m/gpu-1 =m/gpu-2 small");
}

#[test]
fn what_is_meant_for_a_backend_that_is_not_there_is_for_nobody_else() {
    let planner =
        planner_of(r#"{"fallback":[{"models":["m"],"primary":"http://c","fallback":["gpu-3","gpu-1"]}]}"#, true);
    assert_eq!(shown(&Ask::new("m").plan(&planner).stages), "=m/http://c gpu-3! =m/gpu-1");
}

#[test]
fn what_is_said_of_a_model_counts_before_older_fallbacks() {
    check(
        r#"{"models":{"big":{"fallbacks":["small"]}},"fallback":[{"fallback":["other"]}]}"#,
        &[("big", "=big small"), ("m", "=m other"), ("other", "=other")],
    );
}

#[test]
fn the_first_rule_that_fits_decides() {
    check(
        r#"{"models":{"gpt-4":{"to":"big","fallbacks":["small"]}},
            "rules":[{"match":{"model":"gpt-*"},"group":"west"},
                     {"match":{"model":"a*"},"model":"gpt-4"},
                     {"match":{"model":"b"},"model":"big","group":"west","fallbacks":["gpt-4","small","small-2"]}]}"#,
        &[
            // What is said elsewhere does not lead out of a rule's group.
            ("gpt-4", "big@west small@west"),
            ("gpt-5", "=gpt-5@west"),
            ("auto", "big small"),
            // What the rule says itself does.
            ("b", "big@west big small small-2"),
            ("c", "=c"),
        ],
    );
}

#[test]
fn a_rule_writes_no_model_where_there_is_no_place_for_it() {
    let planner = planner(r#"{"rules":[{"group":"west","model":"big","fallbacks":["small"]}]}"#);
    let mut ask = Ask::new("");
    ask.call.model = None;
    assert_eq!(shown(&ask.plan(&planner).stages), "=-@west");
}

#[test]
fn every_kind_of_condition_counts() {
    let check = |conditions: &str, change: &dyn Fn(&mut Ask), fits: bool| {
        let planner = planner(&format!(r#"{{"rules":[{{"match":{conditions},"model":"ruled"}}]}}"#));
        let mut ask = Ask::new("m");
        change(&mut ask);
        assert_eq!(shown(&ask.plan(&planner).stages), if fits { "ruled" } else { "=m" }, "{conditions}");
    };
    let plain = |_: &mut Ask| {};
    check("{}", &plain, true);
    check(r#"{"model":"m"}"#, &plain, true);
    check(r#"{"model":"n*"}"#, &plain, false);
    check(r#"{"path":"/v1/chat/*"}"#, &plain, true);
    check(r#"{"path":"/v1/embeddings"}"#, &plain, false);
    let tagged = |ask: &mut Ask| ask.flow.tag = Some("batch".into());
    check(r#"{"tag":"batch"}"#, &tagged, true);
    check(r#"{"tag":"*"}"#, &tagged, true);
    check(r#"{"tag":"vip"}"#, &tagged, false);
    check(r#"{"tag":"*"}"#, &plain, false);
    let long = |ask: &mut Ask| ask.call.prompt_estimate = 100;
    check(r#"{"min_prompt_tokens":100}"#, &long, true);
    check(r#"{"min_prompt_tokens":101}"#, &long, false);
    check(r#"{"max_prompt_tokens":100}"#, &long, true);
    check(r#"{"max_prompt_tokens":99}"#, &long, false);
    for (key, needs) in [
        ("tools", Needs { tools: true, ..Needs::default() }),
        ("images", Needs { images: true, ..Needs::default() }),
        ("json_schema", Needs { json_schema: true, ..Needs::default() }),
    ] {
        let needing = |ask: &mut Ask| ask.call.needs = needs;
        check(&format!(r#"{{"{key}":true}}"#), &needing, true);
        check(&format!(r#"{{"{key}":false}}"#), &needing, false);
        check(&format!(r#"{{"{key}":true}}"#), &plain, false);
        check(&format!(r#"{{"{key}":false}}"#), &plain, true);
    }
    let headed = |ask: &mut Ask| {
        let headers = ask.request.headers_mut();
        headers.append("x-kind", "one".parse().unwrap());
        headers.append("x-kind", "two-batch".parse().unwrap());
    };
    check(r#"{"header":{"X-Kind":"*-batch"}}"#, &headed, true);
    check(r#"{"header":{"X-Kind":"batch"}}"#, &headed, false);
    check(r#"{"header":{"X-Kind":"*"}}"#, &plain, false);
    check(r#"{"header":{"X-Kind":"*"},"model":"m","tools":false}"#, &headed, true);
    check(r#"{"header":{"X-Kind":"*"},"model":"n"}"#, &headed, false);
}

#[test]
fn what_is_not_known_meets_no_condition() {
    let head = Request::post("/v1/chat/completions").body(()).unwrap().into_parts().0;
    let asked = Asked { head: &head, call: None, flow: None, body: None };
    for conditions in [r#"{"model":"*"}"#, r#"{"max_prompt_tokens":9}"#, r#"{"tools":false}"#, r#"{"tag":"*"}"#] {
        let planner = planner(&format!(r#"{{"rules":[{{"match":{conditions},"group":"g"}}]}}"#));
        assert_eq!(shown(&planner.plan(asked, None).stages), "=-", "{conditions}");
    }
}

#[test]
fn a_choice_says_which_rule_it_was_and_what_it_stands_in_for() {
    let planner = planner(
        r#"{"models":{"a":{"to":"big","fallbacks":["small"]}},"rules":[{"name":"long","match":{"model":"x"},"model":"a"},{"match":{"model":"y"},"group":"g"}]}"#,
    );
    let reasons = |model: &str| -> Vec<Option<String>> {
        let stages = Ask::new(model).plan(&planner).stages;
        stages.into_iter().map(|stage| stage.because.map(Cow::into_owned)).collect()
    };
    assert_eq!(reasons("m"), [None]);
    assert_eq!(reasons("a"), [None, Some("fallback for `big`".into())]);
    assert_eq!(reasons("x"), [Some("rule `long`".into()), Some("rule `long`, fallback for `big`".into())]);
    assert_eq!(reasons("y"), [Some("rule `#2`".into())]);
}

#[test]
fn each_rule_and_each_model_may_have_a_policy_of_its_own() {
    let planner = planner(
        r#"{"load_balance":"round_robin",
            "models":{"big":{"load_balance":"latency_based"},"gpt-4":{"to":"big","fallbacks":["small"]}},
            "rules":[{"match":{"tag":"batch"},"load_balance":"least_connections"},{"match":{"tag":"x"},"model":"big"}]}"#,
    );
    let check = |model: &str, tag: Option<&str>, expected: &str| {
        let mut ask = Ask::new(model);
        ask.flow.tag = tag.map(Into::into);
        let plan = ask.plan(&planner);
        let name = format!("{:?}", plan.chooser(&plan.stages[0]).policy);
        assert!(name.starts_with(expected), "{model} {tag:?}: {name}");
    };
    check("m", None, "RoundRobin");
    check("big", None, "LatencyBased");
    check("gpt-4", None, "LatencyBased");
    check("big", Some("batch"), "LeastConnections");
    check("m", Some("x"), "LatencyBased");
}

#[test]
fn what_ties_a_request_is_of_the_model_and_not_of_the_name_that_a_client_gives_it() {
    for policy in ["session", "prefix_aware"] {
        let planner = planner(&format!(
            r#"{{"load_balance":"{policy}","models":{{"gpt-4":{{"to":"big"}},"big":{{"fallbacks":["small"]}}}},
                "rules":[{{"match":{{"tag":"x"}},"model":"big"}}]}}"#,
        ));
        let body = Bytes::from("once upon a time ".repeat(100));
        let ties = |model: &str, tag: Option<&str>| {
            let mut ask = Ask::new(model);
            ask.call.prompt = Some(Prompt { text: 0..body.len(), opening: 0..100, ..Prompt::default() });
            ask.flow.tag = tag.map(Into::into);
            let (head, ()) = ask.request.into_parts();
            let asked = Asked { head: &head, call: Some(&ask.call), flow: Some(&ask.flow), body: Some(&body) };
            let plan = planner.plan(asked, None);
            let ties = plan.stages.iter().map(|stage| plan.chooser(stage).work.affinity.clone());
            ties.collect::<Vec<_>>()
        };
        let big = ties("big", None);
        assert_eq!((ties("gpt-4", None), ties("other", Some("x"))), (big.clone(), big.clone()), "{policy}");
        assert_ne!(big[0], big[1]);
        assert_eq!(ties("small", None), big[1..], "{policy}");
    }
}

#[test]
fn names_that_only_the_configuration_knows_are_known() {
    let planner = planner(
        r#"{"model_mapping":{"a":"x"},"models":{"b":{"to":"x"},"c":{"fallbacks":["x"]}},
            "fallback":[{"models":["d","e*"],"fallback":["x"]}],
            "rules":[{"match":{"model":"auto","tools":true},"model":"x"},{"match":{"model":"auto*"},"model":"y"},
                     {"match":{"model":"z"},"group":"g"}]}"#,
    );
    let mut names: Vec<_> = planner.shown().map(|shown| (shown.name.to_owned(), shown.hides)).collect();
    names.sort();
    let expected = [("a", true), ("auto", false), ("b", true), ("c", false), ("d", false)];
    assert_eq!(names, expected.map(|(name, hides)| (name.to_owned(), hides)));
    for (name, _) in expected {
        assert!(planner.is_known(name), "{name}");
    }
    assert!(!planner.is_known("z") && !planner.is_known("x") && !planner.is_known("e*"));
}
