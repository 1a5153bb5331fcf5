//! A server that does what a test tells it, over HTTP or TLS, and notes what it was asked. Answers are
//! written byte by byte as the test gives them, so that they can be wrong.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    sync::mpsc,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

/// What the server does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Sends this, and closes.
    Send(Vec<u8>),
    /// Sends this, and then nothing more while the client waits.
    Stall(Vec<u8>),
}

/// A server; gone with it.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    acts: Arc<Mutex<VecDeque<Act>>>,
    asked: mpsc::UnboundedReceiver<String>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer with these headers, each with its line end, and a body of its true length.
pub(crate) fn answer(status: &str, headers: &str, body: &str) -> Act {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    Act::Send((head + body).into_bytes())
}

/// A file beside the tests.
pub(crate) fn testdata(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/fetch/testdata").join(name)
}

impl Server {
    pub(crate) async fn http() -> Self {
        Self::start(None).await
    }

    /// With a certificate for `localhost` and 127.0.0.1, signed by `ca.pem`.
    pub(crate) async fn tls() -> Self {
        let chain = CertificateDer::pem_file_iter(testdata("server.pem")).unwrap();
        let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(testdata("server.key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Self::start(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acts: Arc<Mutex<VecDeque<Act>>> = Arc::default();
        let (tell, asked) = mpsc::unbounded_channel();
        let queue = Arc::clone(&acts);
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (queue, tell, tls) = (Arc::clone(&queue), tell.clone(), tls.clone());
                open.spawn(async move {
                    match tls {
                        None => serve(stream, &queue, &tell).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &queue, &tell).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, acts, asked, task }
    }

    /// What the next requests get, one each; 404 when there is nothing left.
    pub(crate) fn will(&self, act: Act) {
        self.acts.lock().unwrap().push_back(act);
    }

    /// The head of the next request.
    pub(crate) async fn asked(&mut self) -> String {
        self.asked.recv().await.unwrap()
    }

    /// The head of a request that has come already.
    pub(crate) fn asked_now(&mut self) -> Option<String> {
        self.asked.try_recv().ok()
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    acts: &Mutex<VecDeque<Act>>,
    tell: &mpsc::UnboundedSender<String>,
) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let act = acts.lock().unwrap().pop_front();
    let _ = tell.send(head);
    let act = act.unwrap_or_else(|| answer("404 Not Found", "", ""));
    let (Act::Send(bytes) | Act::Stall(bytes)) = &act;
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    if matches!(act, Act::Stall(_)) {
        // Until the client goes.
        let _ = stream.read_line(&mut String::new()).await;
    }
    let _ = stream.shutdown().await;
}
