//! What is asked for backends: one look at a file, one request, one look-up.

use std::{io, path::Path, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request};
use llmproxy_core::{BoxError, HttpClient};
use serde_json::Value;
use tokio::{
    fs::File,
    io::AsyncReadExt,
    time::{sleep, timeout},
};

use super::{dns, entry::Entries};
use crate::config::{BackendConfig, DiscoveryConfig, HttpSourceConfig, SourceConfig, SourceType};

/// No list of backends is as long as that.
const MAX_FILE: u64 = 4 << 20;
/// What a file has is believed if it is the same as long as that: whoever writes in one go is done by then.
const SETTLED: Duration = Duration::from_millis(200);

/// A source, as it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// Its name in logs and metrics.
    pub(super) label: String,
    pub(super) config: SourceConfig,
    /// How often it is asked where it says nothing else.
    interval: Duration,
}

/// What a source told.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) backends: Vec<BackendConfig>,
    /// What is wrong with entries that are left out.
    pub(super) problems: Vec<String>,
    /// How long the answer is good for, where it says so.
    pub(super) good_for: Option<Duration>,
    /// Whether it has nothing where something is to be expected, which may be so for a moment only.
    pub(super) is_bare: bool,
}

// === impl Source ===

impl Source {
    /// Those that are to be asked, in their order.
    pub(super) fn all(config: &DiscoveryConfig) -> Vec<Self> {
        if !config.enabled {
            return Vec::new();
        }
        let sources = config.sources.iter().filter(|source| source.enabled);
        let source =
            |source: &SourceConfig| Self { label: source.label(), config: source.clone(), interval: config.interval };
        sources.map(source).collect()
    }

    /// What is known without asking.
    pub(super) fn fixed(&self) -> Option<&[BackendConfig]> {
        (self.config.kind == Some(SourceType::Static)).then_some(&self.config.fixed.backends)
    }

    /// How long after an answer it is asked again.
    pub(super) fn interval(&self, answer: &Answer) -> Duration {
        let (said, good_for) = match self.config.kind {
            Some(SourceType::File) => (Some(self.config.file.interval), None),
            Some(SourceType::Dns) => (self.config.dns.interval, answer.good_for),
            Some(SourceType::Http) => (self.config.http.interval, None),
            Some(SourceType::Static) | None => (None, None),
        };
        said.unwrap_or_else(|| good_for.map_or(self.interval, |good_for| good_for.min(self.interval)))
    }

    /// Asks. An answer without backends is one; what is no answer is an error. `seen` is what a file had when it was last
    /// asked.
    pub(super) async fn ask(&self, client: &HttpClient, seen: &mut Vec<u8>) -> Result<Answer, BoxError> {
        let SourceConfig { file, http, dns, backend: defaults, .. } = &self.config;
        let (list, strict) = match self.config.kind {
            Some(SourceType::File) => (read(&file.path, seen).await?, true),
            Some(SourceType::Http) => (get(http, client).await?, false),
            Some(SourceType::Dns) => return dns::look_up(dns, defaults).await,
            Some(SourceType::Static) | None => return Ok(Answer::default()),
        };
        let Entries { backends, problems } = Entries::read(list, defaults, strict)?;
        Ok(Answer { backends, problems, ..Answer::default() })
    }
}

/// Reads a file, which may just be half written: what is not as it was `seen` last must be the same a moment later.
async fn read(path: &Path, seen: &mut Vec<u8>) -> Result<Value, BoxError> {
    let text = contents(path).await?;
    if text != *seen {
        sleep(SETTLED).await;
        if contents(path).await? != text {
            return Err("is just being written; best is to write another file beside it and to rename that".into());
        }
        seen.clone_from(&text);
    }
    // Whoever writes anew truncates first. A list without backends is written like one: [].
    if text.trim_ascii().is_empty() {
        return Err("is empty; write [] for no backends".into());
    }
    // JSON may hold tabs where YAML may not.
    match serde_json::from_slice(&text) {
        Ok(list) => Ok(list),
        Err(_) => serde_yaml::from_slice(&text).map_err(|error| format!("is neither JSON nor YAML: {error}").into()),
    }
}

async fn contents(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = File::open(path).await?;
    file.take(MAX_FILE + 1).read_to_end(&mut text).await?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

async fn get(config: &HttpSourceConfig, client: &HttpClient) -> Result<Value, BoxError> {
    let mut request = Request::builder().method(config.method.parse::<Method>()?).uri(&config.url);
    request = request.header(http::header::ACCEPT, "application/json");
    if let Some(headers) = request.headers_mut() {
        for (name, value) in &config.headers {
            let mut value: HeaderValue = value.parse()?;
            value.set_sensitive(true);
            headers.insert(name.parse::<HeaderName>()?, value);
        }
    }
    let answer = timeout(config.timeout, client.send(request.body(Bytes::new())?)).await;
    let limit = || llmproxy_core::duration::format(config.timeout);
    let answer = answer.map_err(|_| format!("was not answered within {}", limit()))??;
    if !answer.status().is_success() {
        return Err(format!("was answered with {}", answer.status()).into());
    }
    serde_json::from_slice(answer.body()).map_err(|error| format!("was answered with what is no JSON: {error}").into())
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::PathBuf, process};

    use tokio::{join, time::Instant};

    use super::*;

    /// A file of the test's own, as a source.
    fn file(name: &str) -> (PathBuf, Source, HttpClient) {
        let path = env::temp_dir().join(format!("llmproxy-source-{}-{name}", process::id()));
        let config = SourceConfig { kind: Some(SourceType::File), ..SourceConfig::default() };
        let mut source = Source { label: "file".into(), config, interval: Duration::from_secs(1) };
        source.config.file.path = path.clone();
        let nobody = async |_: Request<Bytes>| Err::<http::Response<Bytes>, _>(BoxError::from("down"));
        (path, source, HttpClient::new(tower::service_fn(nobody)))
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_file_has_is_believed_when_it_stays() {
        let (path, source, client) = file("grows");
        let whole = "- http://a\n- http://b\n";
        let mut seen = Vec::new();
        fs::write(&path, &whole[..11]).unwrap();
        let rest = async {
            sleep(SETTLED / 2).await;
            fs::write(&path, whole).unwrap();
        };
        let (half, ()) = join!(source.ask(&client, &mut seen), rest);
        assert!(half.unwrap_err().to_string().contains("being written"));
        for waits in [SETTLED, Duration::ZERO] {
            let asked = Instant::now();
            assert_eq!(source.ask(&client, &mut seen).await.unwrap().backends.len(), 2);
            assert_eq!(asked.elapsed(), waits);
        }
        fs::remove_file(&path).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_no_list_is_no_answer() {
        let (path, source, client) = file("list");
        let check = async |text: Option<&str>, expected: Result<&[&str], &str>| {
            match text {
                Some(text) => fs::write(&path, text).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            match (source.ask(&client, &mut Vec::new()).await, expected) {
                (Ok(answer), Ok(urls)) => {
                    let found: Vec<&str> = answer.backends.iter().map(|backend| &*backend.url).collect();
                    assert_eq!(found, urls, "{text:?}");
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{text:?}: {error}"),
                (found, _) => panic!("{text:?}: {found:?}"),
            }
        };
        check(Some("- http://a\n- url: http://b\n"), Ok(&["http://a", "http://b"])).await;
        check(Some("{\"backends\": [\n\t\"http://a\"\n]}"), Ok(&["http://a"])).await;
        check(Some("[]"), Ok(&[])).await;
        check(Some(""), Err("empty")).await;
        check(Some("# nobody\n"), Err("list")).await;
        check(Some("backends: [http://a"), Err("YAML")).await;
        check(Some("hello"), Err("list")).await;
        // Where the rest is still to be written.
        check(Some("backends:\n"), Err("no list")).await;
        check(Some("- http://a\n- \n"), Err("entry 1 has no `url`")).await;
        check(Some("- http://a\n- name: b\n  url:\n"), Err("entry 1 has no `url`")).await;
        check(Some("- http://a\n- status: disabled\n"), Err("entry 1 has no `url`")).await;
        check(None, Err("No such file")).await;
    }
}
