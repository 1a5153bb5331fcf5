//! Requests to a daemon's API, one connection each, over its Unix socket or TCP.

use std::{io, net::IpAddr, time::Duration};

use anyhow::{Context as _, anyhow};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use crate::api::{
    ApiAddr,
    lists::{Changed, SESSION},
    problem::Problem,
};

/// How long a daemon may take to answer; longer than it lets its own work take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longest line of an answer that goes on.
const LONGEST_LINE: usize = 1 << 20;

/// A daemon's API.
#[derive(Debug)]
pub(super) struct Client {
    address: ApiAddr,
}

/// A precondition of a change.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Guard {
    /// Only if this is the version in force.
    pub(super) version: Option<u64>,
    /// Only if there is no such object.
    pub(super) new: bool,
}

impl Client {
    pub(super) fn new(address: ApiAddr) -> Self {
        Self { address }
    }

    /// What the API shows at `path`, as it is and as a type.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<(Value, T)> {
        let body = self.send(Method::GET, path, None, Guard::default())?;
        let value: Value = serde_json::from_slice(&body)
            .with_context(|| format!("{} answers {path} with something else", self.address))?;
        let typed = T::deserialize(&value).with_context(|| {
            format!("the daemon at {} is of a version that this lbctl does not know", self.address)
        })?;
        Ok((value, typed))
    }

    /// What the API shows at `path`, as text.
    pub(super) fn text(&self, path: &str) -> anyhow::Result<String> {
        let body = self.send(Method::GET, path, None, Guard::default())?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Changes something; gives the answer's body, `Null` if it is empty.
    pub(super) fn change(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        guard: Guard,
    ) -> anyhow::Result<Value> {
        let body = body.map(|value| ("application/json", Bytes::from(value.to_string())));
        self.send_body(method, path, body, guard)
    }

    /// Sends text, such as a list file; gives the answer's body.
    pub(super) fn upload(&self, path: &str, text: Vec<u8>) -> anyhow::Result<Value> {
        let body = Some(("text/plain", Bytes::from(text)));
        self.send_body(Method::POST, path, body, Guard::default())
    }

    /// Adds entries to a list, one per line.
    pub(super) fn put_entries(&self, path: &str, lines: Vec<u8>) -> anyhow::Result<Changed> {
        let body = Some(("application/x-ndjson", Bytes::from(lines)));
        let value = self.send_body(Method::POST, path, body, Guard::default())?;
        serde_json::from_value(value).context("the daemon's answer says something else")
    }

    /// Puts text, such as a document of rules, in the place of what is there; gives the answer's body.
    pub(super) fn replace(&self, path: &str, text: Vec<u8>) -> anyhow::Result<Value> {
        let body = Some(("text/plain", Bytes::from(text)));
        self.send_body(Method::PUT, path, body, Guard::default())
    }

    fn send_body(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
        guard: Guard,
    ) -> anyhow::Result<Value> {
        let body = self.send(method, path, body, guard)?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).context("the daemon's answer is not JSON")
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
        guard: Guard,
    ) -> anyhow::Result<Bytes> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "lb");
        if let Some((kind, _)) = &body {
            request = request.header(header::CONTENT_TYPE, *kind);
        }
        if let Some(from) = session() {
            request = request.header(SESSION, from.to_string());
        }
        if let Some(version) = guard.version {
            request = request.header(header::IF_MATCH, format!("\"{version}\""));
        }
        if guard.new {
            request = request.header(header::IF_NONE_MATCH, "*");
        }
        let body = body.map(|(_, bytes)| bytes).unwrap_or_default();
        let request = request.body(Full::new(body))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(async { timeout(PATIENCE, self.exchange(request)).await });
        let (status, body) =
            answer.map_err(|_| anyhow!("no answer from {} in {PATIENCE:?}", self.address))??;
        if status.is_success() { Ok(body) } else { Err(refused(status, &body)) }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)> {
        let response = self.open(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await;
        let body = body.with_context(|| format!("the connection to {} broke", self.address))?;
        Ok((status, body.to_bytes()))
    }

    /// Calls `each` with every line of an answer that goes on, until it returns false. Returns true when the
    /// daemon ended it before: it may be asked again.
    pub(super) fn lines(
        &self,
        path: &str,
        mut each: impl FnMut(&str) -> anyhow::Result<bool>,
    ) -> anyhow::Result<bool> {
        let request =
            Request::get(path).header(header::HOST, "lb").body(Full::new(Bytes::new()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut answer = timeout(PATIENCE, self.open(request))
                .await
                .map_err(|_| anyhow!("no answer from {} in {PATIENCE:?}", self.address))??;
            if !answer.status().is_success() {
                let status = answer.status();
                return Err(refused(status, &answer.into_body().collect().await?.to_bytes()));
            }
            let mut rest = Vec::new();
            // A broken connection is an end like any other.
            while let Some(Ok(frame)) = answer.frame().await {
                rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    if !each(String::from_utf8_lossy(&line).trim_end())? {
                        return Ok(false);
                    }
                }
                if rest.len() > LONGEST_LINE {
                    return Err(anyhow!("{} sends a line without an end", self.address));
                }
            }
            Ok(true)
        })
    }

    async fn open(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
        let answer = match &self.address {
            ApiAddr::Unix(path) => match UnixStream::connect(path).await {
                Ok(stream) => begin(stream, request).await,
                Err(error) => return Err(self.unreachable(&error)),
            },
            ApiAddr::Tcp(address) => match TcpStream::connect(address).await {
                Ok(stream) => begin(stream, request).await,
                Err(error) => return Err(self.unreachable(&error)),
            },
        };
        answer.with_context(|| format!("the connection to {} broke", self.address))
    }

    fn unreachable(&self, error: &io::Error) -> anyhow::Error {
        let remedy = match error.kind() {
            io::ErrorKind::PermissionDenied => "be root or a member of the group lb",
            _ => "start it (`systemctl start lb-daemon`), or name its address with --api",
        };
        anyhow!("no daemon answers at {}: {error}; {remedy}", self.address)
    }
}

async fn begin(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Response<Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the exchange: `sender` is dropped then. An error of it is the exchange's too.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

/// The API's refusal in one line.
fn refused(status: StatusCode, body: &[u8]) -> anyhow::Error {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => anyhow!("{}", problem.detail),
        Err(_) => anyhow!("the daemon answers {status}: {}", String::from_utf8_lossy(body)),
    }
}

/// Where the user is logged in from, if that is over SSH. `sudo` may have dropped it; the daemon looks at open
/// connections too.
fn session() -> Option<IpAddr> {
    let of = |name: &str| {
        let value = std::env::var(name).ok()?;
        let address = value.split_ascii_whitespace().next()?;
        // A link-local address has its interface behind it.
        address.split('%').next()?.parse().ok()
    };
    of("SSH_CONNECTION").or_else(|| of("SSH_CLIENT"))
}

/// A path with a query.
pub(super) fn asking(path: &str, query: &[(&'static str, String)]) -> String {
    let query: Vec<_> = query.iter().map(|(name, v)| format!("{name}={}", segment(v))).collect();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
}

/// A name as a segment of a path (RFC 3986, section 3.3).
pub(super) fn segment(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_segment() {
        assert_eq!(segment("web-1:http.x_y"), "web-1:http.x_y");
        assert_eq!(segment("a/b?c d%é"), "a%2Fb%3Fc%20d%25%C3%A9");
    }

    #[test]
    fn without_a_daemon() {
        let client = Client::new("unix:/nonexistent/api.sock".parse().unwrap());
        let error = client.text("/healthz").unwrap_err().to_string();
        assert!(error.contains("unix:/nonexistent/api.sock") && error.contains("--api"), "{error}");
    }
}
