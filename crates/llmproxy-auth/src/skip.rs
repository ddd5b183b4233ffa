//! Paths that need no key.

/// The paths of `skip_paths`.
#[derive(Clone, Debug, Default)]
pub(crate) struct SkipPaths(Vec<String>);

// === impl SkipPaths ===

impl SkipPaths {
    /// Adds a path as it is configured.
    pub(crate) fn add(&mut self, text: &str) -> Result<(), String> {
        let path = text.trim();
        let allowed = "write a path like /health, which also means what is below it";
        if !path.starts_with('/') {
            return Err(format!("`{text}` does not begin with a slash; {allowed}"));
        }
        let prefix = path.strip_suffix("/*").unwrap_or(path).trim_end_matches('/');
        if prefix.contains(['*', '?', '#', '\\']) {
            return Err(format!("`{text}` has a wildcard or a sign that no path has; {allowed}"));
        }
        match (prefix, path) {
            ("", "/") => self.0.push("/".into()),
            ("", _) => return Err(format!("`{text}` exempts every path; set auth.enabled to false if that is meant")),
            _ => self.0.push(prefix.into()),
        }
        Ok(())
    }

    /// Whether `path`, as it was sent, needs no key.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let below = |prefix: &str| match prefix {
            "/" => path == "/",
            _ => path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        };
        self.0.iter().any(|prefix| below(prefix)) && !is_ambiguous(path)
    }
}

/// Whether someone further in might read the path as another one: `/health/../v1` must not be exempt because `/health`
/// is.
fn is_ambiguous(path: &str) -> bool {
    if !path.contains(['.', '%', '\\']) {
        return false;
    }
    let path = path.to_ascii_lowercase().replace("%2e", ".");
    path.contains('\\')
        || path.contains("%2f")
        || path.contains("%5c")
        || path.contains("%25")
        || path.split('/').any(|segment| segment == "." || segment == "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(skip: &str, path: &str, expected: bool) {
        let mut paths = SkipPaths::default();
        paths.add(skip).unwrap();
        assert_eq!(paths.matches(path), expected, "{skip} {path}");
    }

    #[test]
    fn whole_segments_are_compared() {
        check("/v1", "/v1", true);
        check("/v1", "/v1/", true);
        check("/v1", "/v1/models", true);
        check("/v1", "/v12", false);
        check("/v1", "/V1", false);
        check("/v1/models", "/v1", false);
    }

    #[test]
    fn a_slash_or_a_star_at_the_end_changes_nothing() {
        for skip in ["/health/", "/health/*", " /health "] {
            check(skip, "/health", true);
            check(skip, "/health/live", true);
            check(skip, "/healthy", false);
        }
    }

    #[test]
    fn the_root_is_only_itself() {
        check("/", "/", true);
        check("/", "/v1/models", false);
    }

    #[test]
    fn nobody_climbs_out_of_an_exempt_path() {
        for path in [
            "/health/../v1/models",
            "/health/%2e%2E/v1/models",
            "/health/.%2e/v1/models",
            "/health/..%2fv1",
            "/health\\..\\v1",
            "/health/%252e%252e/v1",
        ] {
            check("/health", path, false);
        }
        check("/health", "/health/a.b", true);
    }

    #[test]
    fn what_would_exempt_everything_or_nothing_is_refused() {
        for text in ["", "health", "/*", "//", "/v1/*/x", "/health*", "/a?b"] {
            assert!(SkipPaths::default().add(text).is_err(), "{text}");
        }
    }
}
