//! One probe of one backend.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use config::model::{HealthCheck, Probe};
use http_body_util::Empty;
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// Of an answer, at most this much is read; its body is not.
const MAX_HEADER_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

const USER_AGENT: &str = concat!("lb-daemon/", env!("CARGO_PKG_VERSION"));

/// Why a probe did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The backend's doing, for people.
    Backend(String),
    /// This machine had no means to ask.
    Here(String),
}

/// Probes; the timeout of the check covers all of it.
pub(super) async fn probe(address: IpAddr, check: &HealthCheck) -> Result<(), Failure> {
    match timeout(check.timeout, ask(address, &check.probe)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::Backend(format!("timed out after {:?}", check.timeout))),
    }
}

async fn ask(address: IpAddr, probe: &Probe) -> Result<(), Failure> {
    match probe {
        Probe::Tcp { port } => connect(address, *port).await.map(drop),
        Probe::Http { port, path, host, expect } => {
            let stream = connect(address, *port).await?;
            let host = host.clone().unwrap_or_else(|| authority(address, *port));
            let status = get(stream, path, &host).await?;
            if status == *expect {
                Ok(())
            } else {
                Err(Failure::Backend(format!("status {status}, expected {expect}")))
            }
        }
    }
}

/// Connects. The connection ends with a reset when it is dropped, and so leaves no TIME-WAIT behind on
/// either side: with many backends and short intervals those would use up ports.
async fn connect(address: IpAddr, port: u16) -> Result<TcpStream, Failure> {
    let stream =
        TcpStream::connect(SocketAddr::new(address, port)).await.map_err(|e| describe(&e))?;
    stream.set_zero_linger().map_err(|error| describe(&error))?;
    Ok(stream)
}

/// Sends one GET and returns the status. Redirects are answers like any other.
async fn get(stream: TcpStream, path: &str, host: &str) -> Result<u16, Failure> {
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure::Here(format!("no request can be made of this check: {error}")))?;

    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| describe_http(&error))?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // When the connection has ended, the answer or its failure is there.
        _ = connection => answer.await,
    };
    answer.map(|answer| answer.status().as_u16()).map_err(|error| describe_http(&error))
}

/// The `Host` of a request that names none.
fn authority(address: IpAddr, port: u16) -> String {
    match (address, port) {
        (IpAddr::V4(v4), 80) => v4.to_string(),
        (IpAddr::V6(v6), 80) => format!("[{v6}]"),
        _ => SocketAddr::new(address, port).to_string(),
    }
}

fn describe(error: &io::Error) -> Failure {
    use io::ErrorKind;

    let text = match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused",
        ErrorKind::ConnectionReset => "connection reset",
        ErrorKind::TimedOut => "connection timed out",
        ErrorKind::HostUnreachable => "host unreachable",
        ErrorKind::NetworkUnreachable => "network unreachable",
        _ if matches!(
            error.raw_os_error(),
            Some(
                libc::EMFILE
                    | libc::ENFILE
                    | libc::ENOBUFS
                    | libc::ENOMEM
                    | libc::EADDRNOTAVAIL
                    | libc::EACCES
                    | libc::EPERM
            )
        ) =>
        {
            return Failure::Here(error.to_string());
        }
        _ => return Failure::Backend(error.to_string()),
    };
    Failure::Backend(text.to_owned())
}

fn describe_http(error: &hyper::Error) -> Failure {
    use std::error::Error as _;

    if let Some(io) = error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        return describe(io);
    }
    Failure::Backend(if error.is_parse_too_large() {
        format!("the header of the answer is longer than {} KiB", MAX_HEADER_BYTES / 1024)
    } else if error.is_parse() {
        "the answer is not HTTP/1.1".to_owned()
    } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        "connection closed without an answer".to_owned()
    } else {
        error.to_string()
    })
}
