//! Names of models with `*` in them.

/// Whether `pattern`, in which `*` stands for any characters, is `name`. Upper and lower case are not the same.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let Some((head, mut pattern)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(head) else { return false };
    // Each piece between two stars as early as it can be; that leaves the most for those behind it.
    while let Some((piece, rest)) = pattern.split_once('*') {
        let Some(at) = name.find(piece) else { return false };
        name = &name[at + piece.len()..];
        pattern = rest;
    }
    name.ends_with(pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything_and_case_counts() {
        let check = |pattern, name, expected| assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        check("qwen3", "qwen3", true);
        check("qwen3", "qwen3-8b", false);
        check("qwen*", "qwen3-8b", true);
        check("qwen*", "Qwen3-8b", false);
        check("*", "", true);
        check("*", "anything", true);
        check("*/Llama-*-Instruct", "meta/Llama-3.1-8B-Instruct", true);
        check("*/Llama-*-Instruct", "meta/Llama-3.1-8B", false);
        check("a*a", "a", false);
        check("a*a", "aa", true);
        check("a*b*a", "abba", true);
        check("a**b", "ab", true);
        check("*ab", "aab", true);
        check("", "", true);
        check("", "x", false);
        check("模*", "模型", true);
    }
}
