//! Requests to a hub: where redirects may lead, who gets the token, and what is tried again.

use super::HubError;
use crate::text::printable;
use std::io::{self, Read};
use std::thread;
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, BodyReader, RequestBuilder};

/// Redirects that are followed for one request; a repository that moved and a file on another server take two.
const REDIRECTS: usize = 10;

/// The longest list of a repository's files that is read.
const MAX_LIST: u64 = 16 << 20;

/// How long answers are waited for, and how often and when a request is made again.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub connect: Duration,
    /// Without a byte.
    pub silence: Duration,
    pub attempts: u32,
    /// Before the second attempt; it doubles with each.
    pub pause: Duration,
    /// All attempts together may take so long, and longer by what the content takes at the slowest speed that is put up
    /// with, in bytes a second.
    pub grace: Duration,
    pub slowest: u64,
}

impl Pace {
    pub const USUAL: Self = Self {
        connect: Duration::from_secs(10),
        silence: Duration::from_secs(30),
        attempts: 5,
        pause: Duration::from_secs(1),
        grace: Duration::from_secs(300),
        slowest: 32 << 10,
    };
}

/// The end of all attempts at something.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    within: Duration,
}

impl Deadline {
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.at
    }

    /// The error for what is over.
    pub fn missed(&self, client: &Client, what: &str) -> HubError {
        HubError::TooSlow { host: client.host(), what: what.into(), seconds: self.within.as_secs() }
    }
}

/// Why one attempt failed.
pub(super) enum Failure {
    /// Another attempt may fare better.
    Passing(String),
    Final(HubError),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

pub(super) struct Client {
    agent: Agent,
    /// Without a slash at the end.
    endpoint: String,
    home: Uri,
    token: Option<String>,
    pace: Pace,
}

/// What a hub says of a file before it is downloaded.
pub(super) struct Facts {
    /// The hash that the hub names the content by.
    pub etag: String,
    /// Bytes.
    pub size: u64,
}

impl Client {
    pub fn new(endpoint: &str, token: Option<&str>, pace: Pace) -> Result<Self, HubError> {
        let setting = |name, reason: &str| HubError::Setting { name, reason: reason.into() };
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let home = endpoint.parse::<Uri>().ok().filter(|uri| is_web(uri) && uri.query().is_none());
        let home = home
            .ok_or_else(|| setting("HF_ENDPOINT", "is not the address of a server, such as https://huggingface.co"))?;
        if token.is_some_and(|token| token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(setting("HF_TOKEN", "or the file that holds the token has characters that no token has"));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("thawline/", env!("CARGO_PKG_VERSION")))
            // Hashes and ranges are of the file as it is.
            .accept_encoding("identity")
            .timeout_resolve(Some(pace.connect))
            .timeout_connect(Some(pace.connect))
            .timeout_recv_response(Some(pace.silence))
            .timeout_per_read(Some(pace.silence))
            .build()
            .new_agent();
        Ok(Self { agent, endpoint, home, token: token.map(str::to_owned), pace })
    }

    /// As many attempts as the pace allows, with growing pauses, for as long as they fail in passing.
    ///
    /// An attempt that says that it got further than those before it does not count.
    pub fn patiently<T>(
        &self,
        what: &str,
        attempts: u32,
        deadline: Deadline,
        mut attempt: impl FnMut(&mut bool) -> Result<T, Failure>,
    ) -> Result<T, HubError> {
        let mut made = 0;
        loop {
            let mut further = false;
            let reason = match attempt(&mut further) {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason)) => reason,
            };
            made = if further { 1 } else { made + 1 };
            if made >= attempts {
                return Err(HubError::Unreachable { host: self.host(), what: what.into(), reason });
            }
            if deadline.is_over() {
                return Err(deadline.missed(self, what));
            }
            let pause = self.pace.pause * 2u32.saturating_pow(made - 1);
            log::warn!("{what}: {reason}; trying again in {} s", pause.as_secs());
            thread::sleep(pause);
        }
    }

    /// For content of so many bytes, from now on.
    pub fn deadline(&self, bytes: u64) -> Deadline {
        let within = self.pace.grace + Duration::from_secs(bytes / self.pace.slowest.max(1));
        Deadline { at: Instant::now() + within, within }
    }

    pub fn attempts(&self) -> u32 {
        self.pace.attempts
    }

    /// The commit that `revision` stands at, and the names of the files there, unchecked.
    pub fn list(&self, repository: &str, revision: &str, deadline: Deadline) -> Result<(String, Vec<String>), Failure> {
        #[derive(serde::Deserialize)]
        struct Listing {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let what = format!("{repository} at {revision}");
        let url = format!("{}/api/models/{repository}/revision/{}", self.endpoint, escaped(revision, false));
        let mut response = self.follow(&url, &what, |url| self.agent.get(url), true)?;
        self.check(&response, &what, repository)?;
        let mut text = Vec::new();
        let mut body = response.body_mut().as_reader().take(MAX_LIST + 1);
        let mut buffer = [0; 16 << 10];
        loop {
            // Each may take as long as silence may last.
            match body.read(&mut buffer).map_err(|error| Failure::Passing(in_words(&error)))? {
                0 => break,
                count => text.extend(&buffer[..count]),
            }
            if deadline.is_over() {
                return Err(deadline.missed(self, &what).into());
            }
        }
        let answer = |reason: String| HubError::Answer { host: self.host(), what: what.clone(), reason };
        if text.len() as u64 > MAX_LIST {
            return Err(answer(format!("its list of files is longer than {} MiB", MAX_LIST >> 20)).into());
        }
        let listing: Listing = serde_json::from_slice(&text)
            .map_err(|error| answer(format!("its list of files is not the JSON that it should be: {error}")))?;
        Ok((listing.sha, listing.siblings.into_iter().map(|sibling| sibling.rfilename).collect()))
    }

    /// What the hub says of a file.
    pub fn facts(&self, repository: &str, commit: &str, file: &str) -> Result<Facts, Failure> {
        let what = what(repository, file);
        let url = self.address(repository, commit, file);
        // Where the content is on another server, the hub's redirection to it describes it.
        let response = self.follow(&url, &what, |url| self.agent.head(url), false)?;
        self.check(&response, &what, repository)?;
        let answer = |reason: &str| HubError::Answer { host: self.host(), what: what.clone(), reason: reason.into() };
        let headers = response.headers();
        let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag"));
        let etag = etag.ok_or_else(|| answer("it does not name the content's hash"))?;
        let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
        // It becomes a file's name.
        if !(8..=128).contains(&etag.len()) || !etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(answer("what it names the content by is not a hash").into());
        }
        let size = match response.status().is_redirection() {
            true => header(headers, "x-linked-size"),
            false => header(headers, "x-linked-size").or_else(|| header(headers, "content-length")),
        };
        let size = size.and_then(|size| size.parse().ok()).ok_or_else(|| answer("it does not tell the file's size"))?;
        Ok(Facts { etag: etag.into(), size })
    }

    /// The file's content from byte `from` on, and the byte that it really begins with.
    pub fn content(
        &self,
        repository: &str,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<(BodyReader<'static>, u64), Failure> {
        let what = what(repository, file);
        let url = self.address(repository, commit, file);
        let request = |url: &str| match from {
            0 => self.agent.get(url),
            from => self.agent.get(url).header("range", format!("bytes={from}-")),
        };
        let response = self.follow(&url, &what, request, true)?;
        let whole = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = header(response.headers(), "content-range").unwrap_or_default();
                if !range.starts_with(&format!("bytes {from}-")) {
                    let reason = "it sends another part of the file than was asked for".into();
                    return Err(HubError::Answer { host: self.host(), what, reason }.into());
                }
                false
            }
            // Where another range cannot be had, the whole can.
            StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => return self.content(repository, commit, file, 0),
            _ => {
                self.check(&response, &what, repository)?;
                true
            }
        };
        Ok((response.into_body().into_reader(), if whole { 0 } else { from }))
    }

    /// The name of the server, for messages.
    pub fn host(&self) -> String {
        self.home.host().unwrap_or_default().into()
    }

    fn address(&self, repository: &str, commit: &str, file: &str) -> String {
        format!("{}/{repository}/resolve/{commit}/{}", self.endpoint, escaped(file, true))
    }

    /// The answer at the end of all redirects; or, unless `abroad`, the redirection that leads to another server.
    ///
    /// The token goes to the hub alone, and nothing that began encrypted goes on in the open.
    fn follow(
        &self,
        url: &str,
        what: &str,
        request: impl Fn(&str) -> RequestBuilder<WithoutBody>,
        abroad: bool,
    ) -> Result<Response<Body>, Failure> {
        let answer = |reason: &str| HubError::Answer { host: self.host(), what: what.into(), reason: reason.into() };
        let mut at: Uri = url.parse().map_err(|_| answer("its address is none"))?;
        for _ in 0..=REDIRECTS {
            let mut request = request(&at.to_string());
            if let (Some(token), true) = (&self.token, same_server(&at, &self.home)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            // Names are looked up on a thread, without which that would panic.
            let thread = thread::Builder::new().spawn(|| ()).map(thread::JoinHandle::join);
            let _ =
                thread.map_err(|error| Failure::Passing(format!("no thread can be started: {}", in_words(&error))))?;
            let response = request.call().map_err(|error| Failure::Passing(in_words(&error.into_io())))?;
            if !matches!(response.status().as_u16(), 301..=303 | 307 | 308) {
                return Ok(response);
            }
            let target = header(response.headers(), "location").and_then(|target| resolved(&at, target));
            let target = target.ok_or_else(|| answer("it redirects to nowhere"))?;
            if !abroad && !same_server(&target, &self.home) {
                return Ok(response);
            }
            if at.scheme_str() == Some("https") && target.scheme_str() != Some("https") {
                return Err(answer("it redirects to a server without encryption").into());
            }
            at = target;
        }
        Err(answer("it redirects without end").into())
    }

    /// Whether the answer is one to go on with.
    fn check(&self, response: &Response<Body>, what: &str, repository: &str) -> Result<(), Failure> {
        let (status, host, what) = (response.status(), self.host(), what.to_owned());
        let hint = match self.token {
            Some(_) => "the token that was sent gives no access to it",
            None => "see to the spelling, or set HF_TOKEN to a token that may read it",
        };
        Err(match status.as_u16() {
            // Redirections come here only where they are asked for.
            200..=299 | 301..=303 | 307 | 308 => return Ok(()),
            401 => HubError::Unauthorised { host, what, hint }.into(),
            403 => {
                let page = format!("{}/{repository}", self.endpoint);
                HubError::Forbidden { host, what, page, hint }.into()
            }
            404 | 410 => HubError::NotFound { host, what }.into(),
            408 | 429 | 500..=599 => Failure::Passing(format!("it answers with the status {}", status.as_u16())),
            status => HubError::Status { host, what, status }.into(),
        })
    }
}

/// What a request is for, in messages.
pub(super) fn what(repository: &str, file: &str) -> String {
    format!("{file} of {repository}")
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The cause in one line, without what `io::Error` and ureq put before it.
pub(super) fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    printable(text.trim_start_matches("io: "))
}

fn is_web(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
}

fn same_server(one: &Uri, other: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    one.scheme_str() == other.scheme_str() && host(one) == host(other) && port(one) == port(other)
}

/// Where a redirect from `at` leads; none if that is not on the web.
fn resolved(at: &Uri, target: &str) -> Option<Uri> {
    let (scheme, authority) = (at.scheme_str()?, at.authority()?);
    let target = match target {
        _ if target.starts_with("//") => format!("{scheme}:{target}"),
        _ if target.starts_with('/') => format!("{scheme}://{authority}{target}"),
        _ => target.to_owned(),
    };
    target.parse().ok().filter(is_web)
}

/// The text with all escaped that has a meaning in addresses; slashes, too, unless they are to divide it.
fn escaped(text: &str, divided: bool) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (divided && byte == b'/');
    let escape = |byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(escape).collect()
}
