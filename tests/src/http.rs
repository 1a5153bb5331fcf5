//! A small HTTP/1.1 client: single requests, connections that are kept, a load of new connections,
//! and requests to the daemon's Unix socket.

use std::{
    collections::BTreeMap,
    io::{BufReader, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    os::{fd::AsRawFd as _, linux::net::TcpStreamExt as _, unix::net::UnixStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use crate::netns::{Entrance, Namespace};

/// How long a request may take. A lost segment costs 200 ms to 1 s and is no failure.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// One request on a connection of its own; gives the body.
///
/// # Errors
///
/// No connection, no answer within [`PATIENCE`], or a status other than 200.
pub fn get(address: SocketAddr, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut kept = Kept::over(open(None, address, PATIENCE)?)?;
    leave_nothing(kept.stream.get_ref())?;
    kept.request(&format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"), &[])
}

/// Has the connection end with a reset, after its answer, so that the server keeps nothing of it. Under load
/// a port is used again within a second; Linux 6.18 then resets one connection in about 50,000, whose
/// first data arrives while the server puts the new socket in the place of the old one in TIME-WAIT.
fn leave_nothing(stream: &TcpStream) -> anyhow::Result<()> {
    setsockopt(stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(())
}

/// Connects, from this address if one is given, within `limit`.
///
/// The handshake ends with the first data, not with a segment of its own before it: now and then the two would be at
/// the server on two CPUs at once. There Linux 6.18 takes the half-open connection out of its table just before it puts
/// the open one in, so that who looks in between finds the listener alone, and answers with a reset. So did one
/// connection in some 300,000; in a capture, all of its segments within 15 microseconds were of the same server.
///
/// # Errors
///
/// The address cannot be bound, or nobody answers.
pub fn open(
    source: Option<IpAddr>,
    address: SocketAddr,
    limit: Duration,
) -> anyhow::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let time = nix::sys::time::TimeVal::new(
        i64::try_from(limit.as_secs())?,
        i64::from(limit.subsec_micros()),
    );
    // The send timeout is also that of connect.
    setsockopt(&socket, sockopt::SendTimeout, &time)?;
    let stream = TcpStream::from(socket);
    stream.set_quickack(false)?;
    let raw = stream.as_raw_fd();
    if let Some(source) = source {
        bind(raw, &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
    }
    connect(raw, &SockaddrStorage::from(address)).with_context(|| match source {
        Some(source) => format!("no connection from {source} to {address}"),
        None => format!("no connection to {address}"),
    })?;
    Ok(stream)
}

/// As [`get`], from the address `source`, and with a limit of its own for the connection.
///
/// # Errors
///
/// As [`get`].
pub fn get_from(
    source: IpAddr,
    address: SocketAddr,
    path: &str,
    limit: Duration,
) -> anyhow::Result<Vec<u8>> {
    let mut kept = Kept::over(open(Some(source), address, limit)?)?;
    kept.request(&format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"), &[])
}

/// A connection that is kept open between requests.
#[derive(Debug)]
pub struct Kept {
    stream: BufReader<TcpStream>,
}

impl Kept {
    /// Connects.
    ///
    /// # Errors
    ///
    /// No connection within [`PATIENCE`].
    pub fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)
            .with_context(|| format!("no connection to {address}"))?;
        Self::over(stream)
    }

    fn over(stream: TcpStream) -> anyhow::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// `GET path`; gives the body.
    ///
    /// # Errors
    ///
    /// The connection broke, or a status other than 200.
    pub fn get(&mut self, path: &str) -> anyhow::Result<Vec<u8>> {
        self.request(&format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n"), &[])
    }

    /// Sends `body` in a `POST`; gives the answer's body.
    ///
    /// # Errors
    ///
    /// As [`Kept::get`].
    pub fn post(&mut self, path: &str, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: lab\r\nContent-Length: {length}\r\n\r\n");
        self.request(&head, body)
    }

    /// Sends `GET path`; [`Kept::answer`] reads what comes back.
    ///
    /// # Errors
    ///
    /// The connection broke.
    pub fn ask(&mut self, path: &str) -> anyhow::Result<()> {
        write!(self.stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n")
            .context("cannot send")
    }

    /// The body of the answer to [`Kept::ask`].
    ///
    /// # Errors
    ///
    /// As [`Kept::get`].
    pub fn answer(&mut self) -> anyhow::Result<Vec<u8>> {
        let (status, body) = answer(&mut self.stream)?;
        ensure!(status == 200, "status {status}");
        Ok(body)
    }

    /// Its own address and port.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn local(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.stream.get_ref().local_addr()?)
    }

    /// How long an answer may take, in place of [`PATIENCE`].
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn set_patience(&self, patience: Duration) -> anyhow::Result<()> {
        Ok(self.stream.get_ref().set_read_timeout(Some(patience))?)
    }

    fn request(&mut self, head: &str, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.stream.get_mut().write_all(head.as_bytes()).context("cannot send")?;
        self.stream.get_mut().write_all(body).context("cannot send")?;
        self.answer()
    }
}

/// A request to a server on a Unix socket; gives status and body.
///
/// # Errors
///
/// Nobody listens there, or what answers is not HTTP.
pub fn unix(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> anyhow::Result<(u16, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("nobody listens on {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = body.unwrap_or_default();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    answer(&mut BufReader::new(stream))
}

/// Reads one answer: with a length, in chunks, or up to the end.
fn answer(stream: &mut impl std::io::BufRead) -> anyhow::Result<(u16, Vec<u8>)> {
    let status_line = line(stream)?;
    let status = status_line
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("not a status line: {status_line:?}"))?;
    let mut length = None;
    let mut chunked = false;
    loop {
        let header = line(stream)?;
        if header.is_empty() {
            break;
        }
        let header = header.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = Some(value.trim().parse::<usize>()?);
        }
        chunked |= header == "transfer-encoding: chunked";
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let size = usize::from_str_radix(line(stream)?.trim(), 16)?;
            let start = body.len();
            body.resize(start + size, 0);
            stream.read_exact(&mut body[start..])?;
            line(stream)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = length {
        body.resize(length, 0);
        stream.read_exact(&mut body).context("the body ends early")?;
    } else {
        stream.read_to_end(&mut body)?;
    }
    Ok((status, body))
}

fn line(stream: &mut impl std::io::BufRead) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = stream.read_line(&mut text).context("no answer")?;
    if read == 0 {
        bail!("closed before an answer");
    }
    Ok(text.trim_end().to_owned())
}

/// What came of a number of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answers by the name of who answered.
    pub answers: BTreeMap<String, u64>,
    /// What went wrong, in order, with the time since the start of the load.
    pub failures: Vec<String>,
    /// The longest that an answer took.
    pub slowest: Duration,
}

impl Tally {
    /// Requests that were answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    fn add(&mut self, other: Self) {
        for (name, count) in other.answers {
            *self.answers.entry(name).or_default() += count;
        }
        self.failures.extend(other.failures);
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// `count` requests from within `client`, each on a new connection.
///
/// # Errors
///
/// The namespace cannot be entered; what goes wrong with requests is in the tally.
pub fn requests(client: &Namespace, address: SocketAddr, count: usize) -> anyhow::Result<Tally> {
    client.enter(|| {
        let start = Instant::now();
        let mut tally = Tally::default();
        for _ in 0..count {
            one(address, start, &mut tally);
        }
        tally
    })
}

fn one(address: SocketAddr, start: Instant, tally: &mut Tally) {
    let begun = Instant::now();
    match get(address, "/") {
        Ok(body) => {
            let name = String::from_utf8_lossy(&body).trim().to_owned();
            *tally.answers.entry(name).or_default() += 1;
            tally.slowest = tally.slowest.max(begun.elapsed());
        }
        Err(error) => {
            let at = begun.duration_since(start);
            tally.failures.push(format!("{address}, {at:.1?} after the start: {error:#}"));
        }
    }
}

/// Requests without pause in the background, each on a new connection.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<anyhow::Result<Tally>>>,
}

impl Load {
    /// Starts a thread for each address.
    #[must_use]
    pub fn start(client: &Namespace, addresses: &[SocketAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let threads = addresses
            .iter()
            .map(|&address| {
                let (entrance, stop, done) = (client.entrance(), stop.clone(), done.clone());
                thread::spawn(move || hammer(&entrance, address, &stop, &done))
            })
            .collect();
        Self { stop, done, threads }
    }

    /// Waits until `count` further requests have been made.
    ///
    /// # Errors
    ///
    /// They are not made within 30 s.
    pub fn wait_requests(&self, count: u64) -> anyhow::Result<()> {
        let wanted = self.done.load(Ordering::Relaxed) + count;
        crate::eventually(Duration::from_secs(30), || {
            let done = self.done.load(Ordering::Relaxed);
            ensure!(done >= wanted, "only {done} of {wanted} requests");
            Ok(())
        })
    }

    /// Stops and sums up.
    ///
    /// # Errors
    ///
    /// A thread could not enter the namespace.
    pub fn stop(mut self) -> anyhow::Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for thread in self.threads.drain(..) {
            let Ok(tally) = thread.join() else { bail!("a thread of the load panicked") };
            sum.add(tally?);
        }
        Ok(sum)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn hammer(
    entrance: &Entrance,
    address: SocketAddr,
    stop: &AtomicBool,
    done: &AtomicU64,
) -> anyhow::Result<Tally> {
    entrance.enter()?;
    let start = Instant::now();
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        one(address, start, &mut tally);
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(tally)
}
