//! docs/embedding.md shows what the examples say.

use std::{fs, path::Path};

/// Lines without what surrounds them: a part of a function stands further left in a document.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn every_piece_of_code_in_the_document_is_in_an_example() {
    let document = read("../docs/embedding.md");
    let examples = ["metering", "gate", "nested", "policy", "reporter"].map(|name| (name, read(&format!("{name}.rs"))));
    let examples = examples.each_ref().map(|(name, text)| (*name, lines(text)));
    let mut shown = Vec::new();
    for block in document.split("```rust\n").skip(1) {
        let block = lines(block.split("```").next().unwrap());
        let found = examples.iter().find(|(_, text)| text.windows(block.len()).any(|window| window == block));
        shown.push(found.unwrap_or_else(|| panic!("no example has this any more:\n{}", block.join("\n"))).0);
    }
    for (name, _) in examples {
        assert!(shown.contains(&name), "docs/embedding.md shows nothing of examples/{name}.rs");
        assert!(document.contains(&format!("../examples/{name}.rs")), "docs/embedding.md has no link to {name}.rs");
    }
}

#[test]
fn examples_are_short_and_say_how_to_run_them() {
    for name in ["metering", "gate", "nested", "policy", "reporter"] {
        let text = read(&format!("{name}.rs"));
        assert!(text.contains(&format!("//! cargo run -p llmproxy-examples --bin {name}")), "{name}");
        assert!(text.lines().count() <= 110, "{name} has {} lines", text.lines().count());
    }
}
