//! Listeners: Unix sockets and loopback TCP, with every bound that a hostile or broken client could
//! otherwise exceed.
//!
//! Owns who may connect (mode and group of the socket; only loopback for TCP), how many connections
//! and requests a listener takes, and the end of both. Refuses to listen where anybody on the network
//! could change services, and to take a socket away from a daemon that still answers on it.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, Method, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    ApiState, limits,
    problem::{Kind, Problem},
    router,
};

/// Group whose members may use the Unix socket.
const GROUP: &str = "lb";

/// Where the API listens and where a client finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiAddr {
    /// `unix:/run/lb/api.sock`.
    Unix(PathBuf),
    /// `127.0.0.1:9870`, `[::1]:9870`, `localhost:9870`.
    Tcp(SocketAddr),
}

impl ApiAddr {
    /// The TCP port.
    #[must_use]
    pub const fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(address) => Some(address.port()),
            Self::Unix(_) => None,
        }
    }
}

/// Text that is no [`ApiAddr`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no address; allowed are unix:/PATH and IP:PORT, as 127.0.0.1:9870")]
pub struct BadAddr(String);

impl FromStr for ApiAddr {
    type Err = BadAddr;

    fn from_str(text: &str) -> Result<Self, BadAddr> {
        let bad = || BadAddr(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(bad()) };
        }
        let address = text.strip_prefix("http://").unwrap_or(text);
        let address = address.strip_suffix('/').unwrap_or(address);
        if let Some(port) = address.strip_prefix("localhost:") {
            let port = port.parse().map_err(|_| bad())?;
            return Ok(Self::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        }
        address.parse().map(Self::Tcp).map_err(|_| bad())
    }
}

impl fmt::Display for ApiAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// Listens on every address and serves until `shutdown`; then lets requests under way end, for at
/// most [`limits::SHUTDOWN_DEADLINE`]. Fails when an address cannot be listened on.
pub async fn serve(
    listeners: Vec<ApiAddr>,
    state: ApiState,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    bind(&listeners).await?.serve(state, shutdown).await;
    Ok(())
}

/// Listens on every address, or on none.
pub async fn bind(addresses: &[ApiAddr]) -> anyhow::Result<Bound> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = Listener::bind(address)
            .await
            .with_context(|| format!("the API cannot listen on {address}"))?;
        info!(%address, "the API listens");
        listeners.push(listener);
    }
    Ok(Bound { listeners })
}

/// Listeners that clients can connect to already.
#[derive(Debug)]
pub struct Bound {
    listeners: Vec<Listener>,
}

impl Bound {
    /// TCP addresses with the ports that the kernel chose.
    #[must_use]
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        let of = |listener: &Listener| match listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix { .. } => None,
        };
        self.listeners.iter().filter_map(of).collect()
    }

    /// Answers requests until `shutdown`.
    pub async fn serve(self, state: ApiState, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        for listener in self.listeners {
            let router = guarded(router(state.clone()), matches!(listener, Listener::Tcp(_)));
            tasks.spawn(listener.serve(router, shutdown.clone()));
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}

#[derive(Debug)]
enum Listener {
    Unix { listener: UnixListener, file: SocketFile },
    Tcp(TcpListener),
}

impl Listener {
    async fn bind(address: &ApiAddr) -> anyhow::Result<Self> {
        match address {
            ApiAddr::Unix(path) => {
                let (listener, file) = bind_unix(path).await?;
                Ok(Self::Unix { listener, file })
            }
            ApiAddr::Tcp(address) if !is_loopback(address.ip()) => bail!(
                "it is not a loopback address, and whoever reaches it could change services. \
                 That needs TLS with client certificates or a bearer-token file, and this version \
                 has neither: listen on 127.0.0.1 or [::1] and put an authenticating proxy in front"
            ),
            ApiAddr::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
        }
    }

    async fn serve(self, router: Router, shutdown: CancellationToken) {
        let mut connections = JoinSet::new();
        let room = Arc::new(Semaphore::new(limits::CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                // Ended connections are collected as they end, so that the set stays small.
                Some(_) = connections.join_next() => continue,
                accepted = self.accept(&room) => accepted,
            };
            match accepted {
                Ok((permit, stream)) => {
                    let served = connection(stream, router.clone(), shutdown.clone());
                    connections.spawn(async move {
                        served.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Usually no file descriptors are left; accepting at once again would spin.
                    warn!(%error, "the API could not accept a connection");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        let file = match self {
            Self::Unix { listener, file } => {
                drop(listener);
                Some(file)
            }
            Self::Tcp(_) => None,
        };
        let all_ended = async { while connections.join_next().await.is_some() {} };
        if timeout(limits::SHUTDOWN_DEADLINE, all_ended).await.is_err() {
            warn!("API requests took longer than the shutdown deadline and were cut off");
        }
        drop(file);
    }

    async fn accept(
        &self,
        room: &Arc<Semaphore>,
    ) -> io::Result<(tokio::sync::OwnedSemaphorePermit, Box<dyn Stream>)> {
        let permit = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
        let stream: Box<dyn Stream> = match self {
            Self::Unix { listener, .. } => Box::new(listener.accept().await?.0),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        Ok((permit, stream))
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Serves one connection until it ends, grows old or the listener shuts down.
async fn connection(stream: Box<dyn Stream>, router: Router, shutdown: CancellationToken) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIMEOUT)
        .max_buf_size(limits::HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = std::pin::pin!(served);
    tokio::select! {
        _ = served.as_mut() => return,
        () = shutdown.cancelled() => {}
        () = sleep(limits::CONNECTION_AGE) => {}
    }
    served.as_mut().graceful_shutdown();
    // A client that does not read its answer must not hold the connection for ever.
    drop(timeout(limits::SHUTDOWN_DEADLINE, served).await);
}

/// The bounds of one listener in front of its router.
fn guarded(router: Router, tcp: bool) -> Router {
    let bucket = Arc::new(Mutex::new(Bucket::full(Instant::now())));
    let router = router.layer(middleware::from_fn_with_state(bucket, limit_rate));
    if !tcp {
        return router;
    }
    router.layer(middleware::from_fn(only_reading)).layer(middleware::from_fn(refuse_foreign_hosts))
}

async fn limit_rate(
    State(bucket): State<Arc<Mutex<Bucket>>>,
    request: Request,
    next: Next,
) -> Response {
    // Probes must not fail because somebody else asks too much.
    if matches!(request.uri().path(), "/healthz" | "/readyz") {
        return next.run(request).await;
    }
    let taken = bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
    match taken {
        Ok(()) => next.run(request).await,
        Err(wait) => {
            let detail = format!(
                "this listener answers {} requests a second; try again later",
                limits::REQUESTS_PER_SECOND
            );
            let mut response = Problem::new(Kind::TooManyRequests, detail).into_response();
            let seconds = HeaderValue::from(wait.as_secs() + 1);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
            response
        }
    }
}

/// Nobody knows who is at the other end of a TCP connection: any user of this machine, or a page in
/// somebody's browser. The Unix socket has an owner and a group.
async fn only_reading(request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let detail = "changes are taken on the Unix socket only, as `lbctl` and `curl --unix-socket` use it: \
                  over TCP nobody can tell who asks";
    Problem::new(Kind::Forbidden, detail).into_response()
}

/// A page in a browser on this machine may resolve a name of its own to 127.0.0.1 and would then
/// pass for the same origin: only names that nobody else can give out are answered.
async fn refuse_foreign_hosts(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
    match host {
        Some(host) if !is_local_host(host) => {
            let detail = format!("\"{host}\" is not a name of this listener; use its IP address");
            Problem::new(Kind::Misdirected, detail).into_response()
        }
        _ => next.run(request).await,
    }
}

fn is_local_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(is_loopback)
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// A token bucket: [`limits::REQUEST_BURST`] deep, [`limits::REQUESTS_PER_SECOND`] wide.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self { tokens: f64::from(limits::REQUEST_BURST), filled: now }
    }

    /// Takes a token or says how long until there is one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let rate = f64::from(limits::REQUESTS_PER_SECOND);
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * rate;
        self.tokens = (self.tokens + gained).min(f64::from(limits::REQUEST_BURST));
        self.filled = now;
        if self.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.tokens) / rate));
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

/// A socket in the file system; removed when dropped, unless another one stands there by then.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            // A file that stays behind is recognised as stale at the next start.
            drop(fs::remove_file(&self.path));
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Binds beside `path` and renames over it: nobody can connect before mode and group are right, and
/// a stale socket is replaced in one step.
async fn bind_unix(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    refuse_live(path).await?;
    let new = path.with_added_extension(format!("{}", std::process::id()));
    remove_if_there(&new)?;
    let listener = UnixListener::bind(&new)
        .with_context(|| format!("cannot make a socket at {}", new.display()))?;
    let placed = open_to_group(&new).and_then(|()| {
        let inode = inode(&new)?;
        fs::rename(&new, path)?;
        Ok(inode)
    });
    match placed {
        Ok(inode) => Ok((listener, SocketFile { path: path.to_owned(), inode })),
        Err(error) => {
            drop(fs::remove_file(&new));
            Err(error).with_context(|| format!("cannot put a socket at {}", path.display()))
        }
    }
}

async fn refuse_live(path: &Path) -> anyhow::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("cannot look at what stands there"),
    };
    if !meta.file_type().is_socket() {
        bail!("a file that is no socket stands there; move it away");
    }
    match timeout(Duration::from_secs(2), tokio::net::UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(Err(error)) => Err(error).context("cannot tell whether a daemon still uses it"),
        Ok(Ok(_)) | Err(_) => bail!(
            "a daemon listens there already; stop it, or give this one an address of its own \
             with --api"
        ),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Owner and group may connect; the group is [`GROUP`] where there is one and we may give it away.
fn open_to_group(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    let group = match nix::unistd::Group::from_name(GROUP) {
        Ok(Some(group)) => group.gid,
        Ok(None) => return Ok(()),
        Err(error) => {
            warn!(%error, "cannot look up the group {GROUP}: only root may use the API's socket");
            return Ok(());
        }
    };
    if let Err(error) = nix::unistd::chown(path, None, Some(group)) {
        warn!(%error, "cannot give the API's socket to the group {GROUP}");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
