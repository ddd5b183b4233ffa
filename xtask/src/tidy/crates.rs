//! Which crate may know which, and what each must never depend on.

use std::collections::BTreeSet;

use super::{
    Finding,
    model::{Crate, Dependency},
};

/// Every crate and the crates of the workspace that it may know. An arrow that is missing here is a change of the
/// design: it belongs into docs/ARCHITECTURE.md first.
const PICTURE: &[(&str, &[&str])] = &[
    ("llmproxy-core", &[]),
    ("llmproxy-testkit", &[]),
    // The testkit's clients and receivers also stand between real clients and real servers; and the simulator drives the
    // real balancer, with requests as core has them.
    ("xtask", &["llmproxy-balancer", "llmproxy-core", "llmproxy-testkit"]),
    // The parts never meet; the meter reads streams with the scanner.
    ("llmproxy-admin", &["llmproxy-core"]),
    ("llmproxy-auth", &["llmproxy-core"]),
    ("llmproxy-balancer", &["llmproxy-core"]),
    ("llmproxy-metering", &["llmproxy-core", "llmproxy-sse"]),
    ("llmproxy-ratelimit", &["llmproxy-core"]),
    ("llmproxy-sse", &["llmproxy-core"]),
    ("llmproxy-upstream", &["llmproxy-core"]),
    ("llmproxy-usage", &["llmproxy-core"]),
    (
        "llmproxy-config",
        &[
            "llmproxy-admin",
            "llmproxy-auth",
            "llmproxy-balancer",
            "llmproxy-core",
            "llmproxy-metering",
            "llmproxy-ratelimit",
            "llmproxy-sse",
            "llmproxy-upstream",
            "llmproxy-usage",
        ],
    ),
    (
        "llmproxy-stack",
        &[
            "llmproxy-admin",
            "llmproxy-auth",
            "llmproxy-balancer",
            "llmproxy-config",
            "llmproxy-core",
            "llmproxy-metering",
            "llmproxy-ratelimit",
            "llmproxy-sse",
            "llmproxy-upstream",
            "llmproxy-usage",
        ],
    ),
    // It asks of each part that reads what strangers write what must hold for any bytes, through what the part offers.
    (
        "llmproxy-fuzz",
        &[
            "llmproxy-config",
            "llmproxy-core",
            "llmproxy-metering",
            "llmproxy-sse",
            "llmproxy-testkit",
            "llmproxy-upstream",
        ],
    ),
    // The command line also manages keys, and its demo has a scripted backend.
    (
        "llmproxy",
        &["llmproxy-auth", "llmproxy-config", "llmproxy-core", "llmproxy-stack", "llmproxy-testkit", "llmproxy-usage"],
    ),
];

/// Those whose tests put parts together, and so may know all of them there.
const ASSEMBLERS: &[&str] = &["llmproxy", "llmproxy-stack"];

/// The only crates that may be linked against these.
const RESERVED: &[(&str, &[&str])] = &[
    ("figment", &["llmproxy-config"]),
    ("metrics-exporter-prometheus", &["llmproxy", "llmproxy-stack"]),
    ("reqwest", &["llmproxy-upstream"]),
    ("sqlx", &["llmproxy-auth", "llmproxy-usage"]),
];

/// What a crate must not be linked against.
const ABSENT: &[(&str, &[&str])] = &[
    ("llmproxy-core", &["axum", "figment", "hyper", "hyper-util", "metrics", "reqwest"]),
    // It decides by the head alone.
    ("llmproxy-auth", &["http-body", "http-body-util", "hyper", "hyper-util"]),
    ("llmproxy-balancer", &["hyper", "hyper-util"]),
    ("llmproxy-metering", &["hyper", "hyper-util"]),
    ("llmproxy-ratelimit", &["hyper", "hyper-util"]),
    // It frames events and does not read them.
    ("llmproxy-sse", &["hyper", "hyper-util", "serde_json"]),
    ("llmproxy-usage", &["hyper", "hyper-util"]),
];

/// What a crate must not ask of a dependency.
const ABSENT_FEATURES: &[(&str, &str, &[&str])] = &[("llmproxy-core", "tokio", &["full", "net"])];

/// Every dependency within the workspace is in the picture.
pub(super) fn arrows(krate: &Crate, members: &BTreeSet<&str>) -> Vec<Finding> {
    // An example puts together what it shows.
    if krate.manifest.starts_with("examples") {
        return Vec::new();
    }
    let Some(known) = row(PICTURE, &krate.name) else {
        return vec![Finding::new(
            &krate.manifest,
            format!("`{}` is in no picture; say in xtask/src/tidy/crates.rs what it may know", krate.name),
        )];
    };
    let is_allowed = |dependency: &Dependency| {
        known.contains(&&*dependency.name)
            || (!dependency.is_linked()
                && (dependency.name == "llmproxy-testkit" || ASSEMBLERS.contains(&&*krate.name)))
    };
    let inside = krate.dependencies.iter().filter(|dependency| members.contains(&*dependency.name));
    inside
        .filter(|dependency| !is_allowed(dependency))
        .map(|dependency| {
            Finding::new(&krate.manifest, format!("`{}` must not know `{}`", krate.name, dependency.name))
        })
        .collect()
}

/// What a crate must never depend on is not there, nor what belongs to another one.
pub(super) fn absences(krate: &Crate) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |what: String| findings.push(Finding::new(&krate.manifest, what));
    for dependency in krate.dependencies.iter().filter(|dependency| dependency.is_linked()) {
        let name = &*dependency.name;
        if row(ABSENT, &krate.name).is_some_and(|absent| absent.contains(&name)) {
            found(format!("`{}` must not depend on `{name}`", krate.name));
        }
        if let Some(owners) = row(RESERVED, name)
            && !owners.contains(&&*krate.name)
        {
            found(format!("`{name}` is for {} alone", owners.join(" and ")));
        }
        for (_, _, absent) in ABSENT_FEATURES.iter().filter(|(of, on, _)| *of == krate.name && *on == name) {
            for feature in dependency.features.iter().filter(|feature| absent.contains(&&***feature)) {
                found(format!("`{}` must not ask `{name}` for `{feature}`", krate.name));
            }
        }
    }
    findings
}

/// The crate has the workspace's lints.
pub(super) fn lints(krate: &Crate) -> Option<Finding> {
    (!krate.inherits_lints)
        .then(|| Finding::new(&krate.manifest, "has not the workspace's lints; add `[lints]` with `workspace = true`"))
}

fn row<'a>(table: &[(&str, &'a [&'a str])], name: &str) -> Option<&'a [&'a str]> {
    table.iter().find(|(of, _)| *of == name).map(|(_, row)| *row)
}

#[cfg(test)]
mod tests {
    use super::{super::model::Kind, *};

    fn krate(name: &str, dependencies: &[(&str, Kind)]) -> Crate {
        Crate {
            name: name.to_owned(),
            manifest: format!("crates/{name}/Cargo.toml").into(),
            inherits_lints: true,
            dependencies: dependencies
                .iter()
                .map(|(name, kind)| Dependency { kind: *kind, ..Dependency::normal(name) })
                .collect(),
        }
    }

    /// The one dependency of `from` on `to`: is it allowed?
    fn check(from: &str, to: &str, kind: Kind, allowed: bool) {
        let members = PICTURE.iter().map(|(name, _)| *name).collect();
        let krate = krate(from, &[(to, kind)]);
        let is_allowed = arrows(&krate, &members).is_empty() && absences(&krate).is_empty();
        assert_eq!(is_allowed, allowed, "{from} -> {to} as {kind:?}");
    }

    #[test]
    fn parts_know_core_and_not_each_other() {
        check("llmproxy-auth", "llmproxy-core", Kind::Normal, true);
        check("llmproxy-metering", "llmproxy-sse", Kind::Normal, true);
        check("llmproxy-sse", "llmproxy-metering", Kind::Normal, false);
        check("llmproxy-auth", "llmproxy-ratelimit", Kind::Normal, false);
        check("llmproxy-auth", "llmproxy-ratelimit", Kind::Build, false);
        check("llmproxy-auth", "llmproxy-ratelimit", Kind::Dev, false);
        check("llmproxy-balancer", "llmproxy-upstream", Kind::Dev, false);
    }

    #[test]
    fn nobody_knows_who_is_above() {
        check("llmproxy-core", "llmproxy-auth", Kind::Normal, false);
        check("llmproxy-auth", "llmproxy-config", Kind::Normal, false);
        check("llmproxy-config", "llmproxy-stack", Kind::Normal, false);
        check("llmproxy-stack", "llmproxy", Kind::Normal, false);
        check("llmproxy-stack", "llmproxy-config", Kind::Normal, true);
        check("xtask", "llmproxy-balancer", Kind::Normal, true);
        check("xtask", "llmproxy-stack", Kind::Normal, false);
    }

    #[test]
    fn the_testkit_is_for_tests_and_for_the_demo() {
        check("llmproxy-auth", "llmproxy-testkit", Kind::Dev, true);
        check("llmproxy-core", "llmproxy-testkit", Kind::Dev, true);
        check("llmproxy-auth", "llmproxy-testkit", Kind::Normal, false);
        check("llmproxy-stack", "llmproxy-testkit", Kind::Normal, false);
        check("llmproxy-testkit", "llmproxy-core", Kind::Normal, false);
        check("llmproxy", "llmproxy-testkit", Kind::Normal, true);
    }

    #[test]
    fn who_assembles_may_know_every_part_in_tests() {
        check("llmproxy", "llmproxy-balancer", Kind::Dev, true);
        check("llmproxy", "llmproxy-balancer", Kind::Normal, false);
    }

    #[test]
    fn a_crate_that_is_in_no_picture_is_found() {
        let found = arrows(&krate("llmproxy-extra", &[]), &BTreeSet::new());
        assert_eq!(found.len(), 1, "{found:?}");
        let mut example = krate("whole-stack", &[("llmproxy-stack", Kind::Normal)]);
        example.manifest = "examples/whole-stack/Cargo.toml".into();
        assert_eq!(arrows(&example, &["llmproxy-stack"].into()), []);
    }

    #[test]
    fn some_crates_are_for_one_owner() {
        check("llmproxy-upstream", "reqwest", Kind::Normal, true);
        check("llmproxy-usage", "reqwest", Kind::Normal, false);
        check("llmproxy", "reqwest", Kind::Dev, true);
        check("llmproxy-auth", "sqlx", Kind::Normal, true);
        check("llmproxy-usage", "sqlx", Kind::Normal, true);
        check("llmproxy-balancer", "sqlx", Kind::Normal, false);
        check("llmproxy-stack", "figment", Kind::Normal, false);
        check("llmproxy-ratelimit", "metrics-exporter-prometheus", Kind::Normal, false);
    }

    #[test]
    fn what_must_be_absent_is() {
        check("llmproxy-core", "metrics", Kind::Normal, false);
        check("llmproxy-core", "hyper", Kind::Normal, false);
        check("llmproxy-balancer", "hyper-util", Kind::Normal, false);
        check("llmproxy-sse", "serde_json", Kind::Normal, false);
        check("llmproxy-sse", "serde_json", Kind::Dev, true);
        check("llmproxy-auth", "http-body", Kind::Normal, false);
        check("llmproxy-stack", "hyper", Kind::Normal, true);
    }

    #[test]
    fn core_opens_no_socket() {
        let with = |features: &[&str]| {
            let mut krate = krate("llmproxy-core", &[("tokio", Kind::Normal)]);
            krate.dependencies[0].features = features.iter().map(|feature| (*feature).to_owned()).collect();
            absences(&krate).len()
        };
        assert_eq!(with(&["time", "sync"]), 0);
        assert_eq!(with(&["time", "net"]), 1);
        assert_eq!(with(&["full"]), 1);
    }

    #[test]
    fn a_crate_without_the_lints_is_found() {
        let mut krate = krate("llmproxy-core", &[]);
        assert_eq!(lints(&krate), None);
        krate.inherits_lints = false;
        assert!(lints(&krate).is_some());
    }
}
