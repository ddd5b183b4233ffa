//! What a fuzzer has found worth keeping is played again by every run of the tests.

use std::{fs, path::Path};

use llmproxy_fuzz::TARGETS;

/// The corpus is read by every run of the tests and cloned with the code: it is kept small.
const MOST_FILES: usize = 200;
const MOST_BYTES: u64 = 200 * 1024;

#[test]
fn every_property_holds_for_the_whole_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let (mut files, mut bytes) = (0, 0);
    for (name, property) in TARGETS {
        let mut paths: Vec<_> = fs::read_dir(corpus.join(name))
            .unwrap_or_else(|error| panic!("{name} has no corpus: {error}"))
            .map(|entry| entry.expect("the folder can be read").path())
            .collect();
        assert!(!paths.is_empty(), "{name} has an empty corpus");
        paths.sort();
        for path in paths {
            // Shown where the property fails.
            println!("{}", path.display());
            let data = fs::read(&path).expect("the file can be read");
            files += 1;
            bytes += data.len() as u64;
            property(&data);
        }
    }
    assert!(files <= MOST_FILES && bytes <= MOST_BYTES, "{files} files of {bytes} bytes; keep the smaller ones");
}

#[test]
fn every_target_of_the_fuzzer_is_a_property_and_has_a_corpus() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |folder: &str, suffix: &str| {
        let entries = fs::read_dir(here.join(folder)).expect("the folder is there");
        let names =
            entries.map(|entry| entry.expect("it can be read").file_name().into_string().expect("a plain name"));
        let mut names: Vec<String> = names.map(|name| name.trim_end_matches(suffix).to_owned()).collect();
        names.sort();
        names
    };
    let targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names("fuzz/fuzz_targets", ".rs"), targets);
    assert_eq!(names("corpus", ""), targets);
}
