//! One GET over HTTP/1.1, with bounds on everything: time, size, redirects, and where these may lead.
//!
//! The URL itself is the operator's choice and may name any host. A redirect is the choice of whoever
//! answers: it never leads from https to http, and to another host only if that is a public address, so
//! that a publisher cannot have this machine ask its own network for things. The address that is checked
//! is the one that is connected to.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Body as _, Bytes, Incoming},
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// How long one of a host's addresses may take to answer, so that another one is tried.
const CONNECT: Duration = Duration::from_secs(5);
/// `Retry-After` beyond this is not believed.
const MAX_RETRY_AFTER: u64 = 86_400;

/// What is asked for, and within which bounds.
#[derive(Clone, Debug)]
pub(crate) struct Get {
    /// Absolute.
    pub(crate) url: String,
    /// Beside those that every request has.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// For all of it: names, connections, redirects, body.
    pub(crate) timeout: Duration,
    /// Of the body.
    pub(crate) max_bytes: u64,
    /// Authorities to trust in the place of the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// Whether redirects are followed at all.
    pub(crate) follow: bool,
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Status 304.
    NotModified,
    /// Status 200, the body whole.
    Body {
        /// All of it.
        bytes: Bytes,
        /// Header of this name.
        etag: Option<String>,
        /// Header of this name.
        last_modified: Option<String>,
    },
}

/// Why nothing came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GetError {
    #[error("{0} is not a URL that can be fetched")]
    Url(String),
    #[error("no address is known for {host}: {error}")]
    Name { host: String, error: io::Error },
    #[error("cannot connect to {host}: {error}")]
    Connect { host: String, error: io::Error },
    #[error("TLS with {host}: {error}")]
    Tls { host: String, error: io::Error },
    #[error("{path}: {why}")]
    Authorities { path: String, why: String },
    #[error("the answer broke off: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the server answers {status}")]
    Status { status: StatusCode, retry_after: Option<Duration> },
    #[error("the answer has more than {0} bytes (`max_bytes`)")]
    TooLarge(u64),
    #[error("the answer is encoded as {0}, which was not asked for")]
    Encoded(String),
    #[error("redirected to {to}, which is not followed: {why}")]
    Redirect { to: String, why: &'static str },
    #[error("no whole answer within {0:?} (`timeout`)")]
    Timeout(Duration),
}

impl GetError {
    /// How long the server asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Fetches.
///
/// # Errors
/// See [`GetError`]; then nothing of the answer is used.
pub(crate) async fn get(get: &Get) -> Result<Answer, GetError> {
    let all = timeout(get.timeout, follow(get)).await;
    all.unwrap_or(Err(GetError::Timeout(get.timeout)))
}

async fn follow(get: &Get) -> Result<Answer, GetError> {
    let first = Target::parse(&get.url)?;
    let mut target = first.clone();
    for _ in 0..=MAX_REDIRECTS {
        let answer = once(get, &target, target.host != first.host).await?;
        let location = match answer {
            Step::Done(answer) => return Ok(answer),
            Step::Moved(location) => location,
        };
        let refuse = |why| Err(GetError::Redirect { to: location.clone(), why });
        if !get.follow {
            return refuse("a redirect is not expected here");
        }
        let next = target.join(&location)?;
        if target.tls && !next.tls {
            return refuse("it leads from https to http");
        }
        target = next;
    }
    Err(GetError::Redirect { to: target.uri.to_string(), why: "there were too many before" })
}

/// A URL, taken apart.
#[derive(Clone, Debug)]
struct Target {
    uri: Uri,
    tls: bool,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
}

impl Target {
    fn parse(url: &str) -> Result<Self, GetError> {
        let wrong = || GetError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let host = uri.host().ok_or_else(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        if host.is_empty() || uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err(wrong());
        }
        Ok(Self { uri, tls, host, port })
    }

    /// Where `location` leads from here (RFC 9110, section 10.2.2).
    fn join(&self, location: &str) -> Result<Self, GetError> {
        let scheme = if self.tls { "https" } else { "http" };
        let authority = self.uri.authority().map_or("", |a| a.as_str());
        let location = location.split('#').next().unwrap_or_default();
        if location.contains("://") {
            return Self::parse(location);
        }
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        }
        if location.starts_with('/') {
            return Self::parse(&format!("{scheme}://{authority}{location}"));
        }
        let directory = self.uri.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        Self::parse(&format!("{scheme}://{authority}{directory}/{location}"))
    }
}

enum Step {
    Done(Answer),
    Moved(String),
}

async fn once(get: &Get, target: &Target, elsewhere: bool) -> Result<Step, GetError> {
    let stream = connect(target, elsewhere).await?;
    let path = target.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::get(path).body(Empty::<Bytes>::new()).map_err(|_| {
        let url = target.uri.to_string();
        GetError::Url(url)
    })?;
    let headers = request.headers_mut();
    let authority = target.uri.authority().map_or("", |a| a.as_str());
    if let Ok(host) = HeaderValue::from_str(authority) {
        headers.insert(header::HOST, host);
    }
    let agent = concat!("lb-daemon/", env!("CARGO_PKG_VERSION"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.extend(get.headers.iter().cloned());
    if !target.tls {
        return exchange(stream, request, get.max_bytes).await;
    }
    let tls = authorities(get.ca_file.as_deref()).await?;
    let failed = |error: io::Error| GetError::Tls { host: target.host.clone(), error };
    let name = ServerName::try_from(target.host.clone())
        .map_err(|error| failed(io::Error::other(error)))?;
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(failed)?;
    exchange(stream, request, get.max_bytes).await
}

async fn connect(target: &Target, elsewhere: bool) -> Result<TcpStream, GetError> {
    let host = || target.host.clone();
    let found = tokio::net::lookup_host((target.host.as_str(), target.port)).await;
    let found: Vec<SocketAddr> =
        found.map_err(|error| GetError::Name { host: host(), error })?.collect();
    let allowed: Vec<_> = found.into_iter().filter(|a| !elsewhere || is_public(a.ip())).collect();
    if allowed.is_empty() && elsewhere {
        let why = "it is another host, and that has no public address";
        return Err(GetError::Redirect { to: target.uri.to_string(), why });
    }
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in allowed {
        last = match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
    }
    Err(GetError::Connect { host: format!("{}:{}", host(), target.port), error: last })
}

/// Whether an address is on the Internet, and not this machine, its networks or nobody.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && b & 0xc0 == 64;
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || a == 0
                || shared)
        }
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            // NAT64's well-known prefix and 6to4 carry an IPv4 address, as mapped ones do.
            let carried = match octets {
                [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] => Some([a, b, c, d]),
                [0x20, 0x02, a, b, c, d, ..] => Some([a, b, c, d]),
                _ => v6.to_ipv4_mapped().map(|v4| v4.octets()),
            };
            match carried {
                Some(octets) => is_public(Ipv4Addr::from(octets).into()),
                None => {
                    let local = octets[0] & 0xfe == 0xfc || v6.is_unicast_link_local();
                    !(v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || local)
                }
            }
        }
    }
}

/// Whom to trust: the authorities of a file, or the system's.
async fn authorities(file: Option<&Path>) -> Result<Arc<ClientConfig>, GetError> {
    let file = file.map(Path::to_path_buf);
    let read = tokio::task::spawn_blocking(move || match file {
        Some(file) => {
            let path = file.display().to_string();
            let wrong = |why: String| GetError::Authorities { path: path.clone(), why };
            let found = CertificateDer::pem_file_iter(&file).map_err(|e| wrong(e.to_string()))?;
            let mut roots = RootCertStore::empty();
            for certificate in found {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("it holds no certificate".to_owned()));
            }
            Ok(roots)
        }
        None => {
            let mut roots = RootCertStore::empty();
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let why = "none is installed; install ca-certificates, or set `ca_file`";
                let path = "the system's certificate authorities".to_owned();
                return Err(GetError::Authorities { path, why: why.to_owned() });
            }
            Ok(roots)
        }
    });
    let stopped = || GetError::Authorities { path: String::new(), why: "stopping".to_owned() };
    let roots = read.await.map_err(|_| stopped())??;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| GetError::Authorities { path: String::new(), why: error.to_string() })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
    max_bytes: u64,
) -> Result<Step, GetError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It may end before its last bytes are read here; its errors are the exchange's too.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    let ask = async { step(sender.send_request(request).await?, max_bytes).await };
    tokio::select! {
        step = ask => step,
        never = drive => match never {},
    }
}

async fn step(answer: Response<Incoming>, max_bytes: u64) -> Result<Step, GetError> {
    let text = |name: HeaderName| {
        let value = answer.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let status = answer.status();
    match status {
        StatusCode::OK => {}
        StatusCode::NOT_MODIFIED => return Ok(Step::Done(Answer::NotModified)),
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => {
            let location = text(header::LOCATION);
            return location.map(Step::Moved).ok_or(GetError::Status { status, retry_after: None });
        }
        _ => {
            // Only the form in seconds; a date is answered by the usual pause.
            let seconds = text(header::RETRY_AFTER).and_then(|text| text.parse::<u64>().ok());
            let retry_after = seconds.map(|s| Duration::from_secs(s.min(MAX_RETRY_AFTER)));
            return Err(GetError::Status { status, retry_after });
        }
    }
    if let Some(encoding) = text(header::CONTENT_ENCODING).filter(|e| e != "identity") {
        return Err(GetError::Encoded(encoding));
    }
    let (etag, last_modified) = (text(header::ETAG), text(header::LAST_MODIFIED));
    let mut body = answer.into_body();
    let announced = body.size_hint().lower();
    if announced > max_bytes {
        return Err(GetError::TooLarge(max_bytes));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(announced).unwrap_or(0));
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            if bytes.len() as u64 + data.len() as u64 > max_bytes {
                return Err(GetError::TooLarge(max_bytes));
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(Step::Done(Answer::Body { bytes: Bytes::from(bytes), etag, last_modified }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_joined() {
        let base = Target::parse("https://Example.org:8443/a/b.txt?x").unwrap();
        let join = |to: &str| base.join(to).unwrap().uri.to_string();
        assert_eq!(join("/c"), "https://Example.org:8443/c");
        assert_eq!(join("c.txt?y=//z"), "https://Example.org:8443/a/c.txt?y=//z");
        assert_eq!(join("//other/c#f"), "https://other/c");
        assert_eq!(join("http://other/c"), "http://other/c");
        assert!(base.join("ftp://other/c").is_err() && base.join("https://u@h/").is_err());
        assert_eq!((base.host.as_str(), base.port, base.tls), ("example.org", 8443, true));
    }

    #[test]
    fn what_is_public() {
        for ip in ["8.8.8.8", "2a00::1", "100.128.0.1", "::ffff:8.8.8.8", "64:ff9b::808:808"] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
        let not = [
            "127.0.0.1",
            "10.1.2.3",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "192.168.0.1",
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "ff02::1",
            "::",
        ];
        for ip in not {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
    }
}
