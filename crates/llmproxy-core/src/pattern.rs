//! Names by a pattern.

use serde::Deserialize;

/// A name in which `*` stands for any text, none included; upper and lower case differ.
///
/// ```
/// use llmproxy_core::Pattern;
///
/// let pattern = Pattern::new("qwen*-instruct");
/// assert!(pattern.matches("qwen2.5-7b-instruct"));
/// assert!(!pattern.matches("Qwen2.5-7b-instruct"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Pattern(String);

// === impl Pattern ===

impl Pattern {
    /// A pattern of that text.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for `name`.
    pub fn matches(&self, name: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return self.0 == name };
        let Some(mut name) = name.strip_prefix(first) else { return false };
        let (between, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        // Each at its first place leaves the most to those after it.
        for part in between.split('*') {
            let Some(at) = name.find(part) else { return false };
            name = &name[at + part.len()..];
        }
        name.ends_with(last)
    }
}

impl From<&str> for Pattern {
    fn from(pattern: &str) -> Self {
        Self::new(pattern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text() {
        let check = |pattern: &str, name: &str, expected| {
            assert_eq!(Pattern::new(pattern).matches(name), expected, "{pattern} {name}");
        };
        check("a", "a", true);
        check("a", "ab", false);
        check("", "", true);
        check("*", "", true);
        check("*", "anything/at:all", true);
        check("a*", "a", true);
        check("a*", "ba", false);
        check("*b", "ab", true);
        check("*b", "abc", false);
        check("a*b", "ab", true);
        check("a*a", "a", false);
        check("a*b*c", "a-b-c", true);
        check("a*b*c", "a-c-b", false);
        check("a**c", "abc", true);
        check("*x*x*", "x", false);
        check("*é*", "café!", true);
    }
}
