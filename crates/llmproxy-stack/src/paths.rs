//! Which paths pass to the backends.
//!
//! An inference server also answers paths that administer it (load an adapter, put it to sleep). Only what a client of
//! the API needs passes; anything else only where the operator names it.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::{Either, Ready, ready};
use http::{Request, Response};
use llmproxy_core::{Api, BoxError, Endpoint};
use tower::{Layer, Service};

/// Paths under `/v1/` that change the server rather than use it.
const ADMINISTRATION: &[&str] = &["/v1/load_lora_adapter", "/v1/unload_lora_adapter"];

/// Why a path does not pass.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    /// Not one of ours.
    #[error("no such path: {0}; to forward it, add it to routing.allow_paths")]
    Unknown(String),
    /// A path that servers read in different ways.
    #[error(
        "the path can be read in more than one way; leave out dot segments, backslashes, additional slashes, semicolons and \
         needless percent-encoding"
    )]
    Ambiguous,
}

/// What passes.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    allow: Vec<String>,
}

/// Makes [`CheckPath`].
#[derive(Clone, Debug)]
pub(crate) struct PathsLayer(pub(crate) Arc<Paths>);

/// Refuses what does not pass.
#[derive(Clone, Debug)]
pub(crate) struct CheckPath<S> {
    inner: S,
    paths: Arc<Paths>,
}

// === impl Paths ===

impl Paths {
    /// The known paths, and everything at or below those in `allow`.
    pub(crate) fn new(allow: &[String]) -> Self {
        Self { allow: allow.iter().map(|path| path.trim_end_matches("/*").trim_end_matches('/').to_owned()).collect() }
    }

    pub(crate) fn check(&self, path: &str) -> Result<(), PathError> {
        // Nearly every request: an operation, spelt as it is looked up.
        let sent = Endpoint::of(path);
        if sent.is_known() && sent.api() != Api::Proxy {
            return Ok(());
        }
        // Compared as the backend will read it: an encoded letter must not hide a path that does not pass.
        let decoded = decode(path).ok_or(PathError::Ambiguous)?;
        // A backslash is a slash to some, so that no client library sends it as it is.
        if decoded.contains('\\') || segments(&decoded).any(|segment| segment == "." || segment == "..") {
            return Err(PathError::Ambiguous);
        }
        // Many servers decode a path, merge its slashes, pass over the last one or drop what follows a semicolon before they
        // look it up. Here it is looked up as it was sent: an operation under another spelling would be neither read,
        // limited by model, nor counted.
        let plain = plain(&decoded);
        if plain != path && Endpoint::of(&plain).is_known() {
            return Err(PathError::Ambiguous);
        }
        if self.allow.iter().any(|allowed| covers(allowed, &decoded)) {
            return Ok(());
        }
        let known = Endpoint::of(&decoded);
        // Our own paths come here only where their routes are off; a backend's namesakes are nobody's business.
        let passes = (known.is_known() || decoded.starts_with("/v1/"))
            && known.api() != Api::Proxy
            && !ADMINISTRATION.iter().any(|admin| plain.eq_ignore_ascii_case(admin));
        if passes { Ok(()) } else { Err(PathError::Unknown(path.to_owned())) }
    }
}

/// The segments of `path`, without their parameters (RFC 3986, section 3.3).
fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').map(|segment| segment.split(';').next().unwrap_or_default())
}

/// `path` without slashes at its end or beside others, and without parameters.
fn plain(path: &str) -> String {
    segments(path).filter(|segment| !segment.is_empty()).fold(String::new(), |plain, segment| plain + "/" + segment)
}

/// Whether `path` is `prefix` or lies below it.
fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `path` with its percent-encoding undone; `None` where that is broken or no text.
pub(crate) fn decode(path: &str) -> Option<String> {
    if !path.contains('%') {
        return Some(path.to_owned());
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            let (digits, tail) = tail.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

// === impl PathsLayer ===

impl<S> Layer<S> for PathsLayer {
    type Service = CheckPath<S>;

    fn layer(&self, inner: S) -> CheckPath<S> {
        CheckPath { inner, paths: self.0.clone() }
    }
}

// === impl CheckPath ===

impl<S, B, R> Service<Request<B>> for CheckPath<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = BoxError>,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = Either<S::Future, Ready<Result<Response<R>, BoxError>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.paths.check(request.uri().path()) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(error) => Either::Right(ready(Err(error.into()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(path: &str) -> bool {
        Paths::new(&["/custom/*".to_owned(), "/exact".to_owned()]).check(path).is_ok()
    }

    #[test]
    fn what_clients_use_passes() {
        for path in [
            "/v1/chat/completions",
            "/v1/files/abc",
            "/api/chat",
            "/tokenize",
            "/generate",
            "/custom",
            "/custom/a/b",
            "/exact/x",
        ] {
            assert!(passes(path), "{path}");
        }
    }

    #[test]
    fn what_administers_a_server_does_not() {
        for path in [
            "/",
            "/metrics",
            "/metrics/x",
            "/api/pull",
            "/api/delete",
            "/v1",
            "/v1/load_lora_adapter",
            "/v1/load_lora_adapter/",
            "/sleep",
            "/customer",
            "/v1/%6coad_lora_adapter",
            "/v1//load_lora_adapter",
            "/v1///unload_lora_adapter//",
            "/v1/%2fload_lora_adapter",
            "/v1/load_lora_adapter%2f",
            "/v1/load_lora_adapter;x",
            "/v1/load_lora_adapter%3Bx=1/",
            "/v1/;/load_lora_adapter",
            "/v1/Load_Lora_Adapter",
            "",
        ] {
            assert!(!passes(path), "{path}");
        }
    }

    #[test]
    fn a_path_that_can_be_read_in_two_ways_is_refused() {
        for path in [
            "/v1/../metrics",
            "/v1/./x",
            "/v1/%2e%2e/x",
            "/v1/..%2fx",
            "/v1/%",
            "/v1/%zz",
            "/v1/%ff",
            "/v1/..\\x",
            "/v1/..;/x",
            "/v1/%2e%2e;a=b/x",
            "/v1/a\\b",
            "/v1/a\\b",
        ] {
            assert_eq!(Paths::default().check(path), Err(PathError::Ambiguous), "{path}");
        }
    }

    #[test]
    fn an_operation_has_one_spelling() {
        for path in [
            "/v1/%63hat/completions",
            "/v1/chat%2Fcompletions",
            "/v1/chat/completions/",
            "/v1//chat/completions",
            "//v1/completions",
            "/v1/%6dodels",
            "/v1/models/",
            "/api/chat/",
            "/%67enerate",
            "/v1/chat/completions;x",
            "/v1/chat;x=1/completions",
        ] {
            assert_eq!(Paths::new(&["/v1".to_owned()]).check(path), Err(PathError::Ambiguous), "{path}");
        }
        for path in
            ["/v1/files/a%2Fb", "/v1/files/", "/v1/files//b", "/v1/x%20y", "/v1/files/a;b=1", "/v1/load_lora_adapters"]
        {
            assert!(passes(path), "{path}");
        }
    }
}
