//! The licence texts of all that is linked into the binary.

use std::{collections::BTreeMap, fs, path::Path};

use super::{
    files,
    metadata::{Metadata, Package},
};

/// What the names of such files begin with.
const NAMES: &[&str] = &["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT", "UNLICENSE"];
/// Folders of a package that are not in a binary.
const NOT_LINKED: &[&str] = &["TESTS", "BENCHES", "EXAMPLES", "FUZZ"];
/// What cargo knows nothing of.
const BESIDES: &str = "\
Rust's standard library: MIT OR Apache-2.0 (https://github.com/rust-lang/rust/blob/main/COPYRIGHT)
SQLite, within libsqlite3-sys: in the public domain (https://www.sqlite.org/copyright.html)
";
/// For packages that name it among their terms and forgot the text.
const MIT: &str = include_str!("mit.txt");

/// All texts, each once with the packages that it is of.
///
/// # Errors
///
/// If the terms of a package, or their text, can't be known.
pub(super) fn collect(metadata: &Metadata) -> Result<String, String> {
    // Most of them are the same few texts.
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut all = String::from("What is linked into llmproxy besides its own code, and on which terms.\n\n");
    for package in metadata.linked().filter(|package| !package.is_ours()) {
        let title = format!("{} {}", package.name, package.version);
        let licence = package.licence.as_ref().ok_or_else(|| format!("{title} names no licence"))?;
        all += &format!("{title}: {licence}\n");
        let mut found = own_texts(&package.folder)?;
        if found.is_empty() {
            let text = standard_text(licence, &package.authors);
            let text = text.map_or_else(|| siblings_text(metadata, package), |text| Ok(Some(text)))?;
            found.push(text.ok_or_else(|| format!("{title} has no text of {licence}"))?);
        }
        for text in found {
            texts.entry(text).or_default().push(title.clone());
        }
    }
    all += BESIDES;
    let rule = "-".repeat(80);
    for (text, mut packages) in texts {
        packages.dedup();
        all += &format!("\n{rule}\n{}\n{rule}\n\n{text}\n", packages.join(", "));
    }
    Ok(all)
}

/// The texts that come with a package, those included of what it has taken over from others.
fn own_texts(folder: &Path) -> Result<Vec<String>, String> {
    let mut texts = Vec::new();
    for file in files(folder)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if file.is_dir() {
            if !NOT_LINKED.contains(&&*name) {
                texts.extend(own_texts(&file)?);
            }
        } else if NAMES.iter().any(|prefix| name.starts_with(prefix)) && !name.ends_with(".RS") {
            let text = fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            texts.push(String::from_utf8_lossy(&text).replace("\r\n", "\n").trim().to_owned());
        }
    }
    Ok(texts)
}

/// The text that a package forgot, of another one of the same project on the same terms.
fn siblings_text(metadata: &Metadata, package: &Package) -> Result<Option<String>, String> {
    let mut texts = Vec::new();
    for sibling in metadata.linked().filter(|other| package.is_sibling(other)) {
        texts.extend(own_texts(&sibling.folder)?);
    }
    // With several it would not be clear which are its terms.
    texts.dedup();
    Ok(texts.pop().filter(|_| texts.is_empty()))
}

/// The text of one of the terms, where we know it by heart.
fn standard_text(licence: &str, authors: &[String]) -> Option<String> {
    let alternatives = licence.split([' ', '/', '(', ')']);
    let may_be_mit = alternatives.clone().any(|name| name == "MIT") && !alternatives.clone().any(|name| name == "AND");
    may_be_mit.then(|| MIT.replace("AUTHORS", &authors.join(", ")).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_text_is_known_only_where_mit_is_a_choice() {
        let authors = ["Ann".to_owned(), "Bob".to_owned()];
        for licence in ["MIT", "MIT OR Apache-2.0", "MIT/Apache-2.0", "(MIT)"] {
            assert!(standard_text(licence, &authors).unwrap().starts_with("Copyright (c) Ann, Bob\n"), "{licence}");
        }
        for licence in ["Apache-2.0", "MIT AND Unicode-3.0", "MIT-0"] {
            assert_eq!(standard_text(licence, &authors), None, "{licence}");
        }
    }
}
