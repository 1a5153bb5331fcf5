use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
};

use super::*;
use crate::api::testing::{read_only, view};

async fn started(addresses: &[ApiAddr]) -> (Vec<SocketAddr>, CancellationToken, JoinHandle<()>) {
    let bound = bind(addresses).await.unwrap();
    let tcp = bound.tcp_addresses();
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(bound.serve(read_only(view()), shutdown.clone()));
    (tcp, shutdown, served)
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, head: &str) -> String {
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

const GET: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

#[test]
fn addresses() {
    for (text, printed) in [
        ("unix:/run/lb/api.sock", "unix:/run/lb/api.sock"),
        ("unix:///run/lb/api.sock", "unix:/run/lb/api.sock"),
        ("127.0.0.1:9870", "127.0.0.1:9870"),
        ("http://127.0.0.1:9870/", "127.0.0.1:9870"),
        ("localhost:1", "127.0.0.1:1"),
        ("[::1]:9870", "[::1]:9870"),
    ] {
        assert_eq!(text.parse::<ApiAddr>().unwrap().to_string(), printed);
    }
    for bad in ["", "unix:", "unix:api.sock", "/run/lb/api.sock", "127.0.0.1", "example.com:80"] {
        assert!(bad.parse::<ApiAddr>().is_err(), "{bad}");
    }
}

#[test]
fn local_hosts() {
    for good in
        ["localhost", "LOCALHOST:9870", "127.0.0.1:9870", "127.9.9.9", "[::1]:9870", "[::1]"]
    {
        assert!(is_local_host(good), "{good}");
    }
    for bad in ["", "evil.example", "127.0.0.1.evil.example:9870", "10.0.0.1", "localhost.evil:1"] {
        assert!(!is_local_host(bad), "{bad}");
    }
}

#[test]
fn the_bucket_refills() {
    let start = Instant::now();
    let mut bucket = Bucket::full(start);
    for _ in 0..limits::REQUEST_BURST {
        bucket.take(start).unwrap();
    }
    let wait = bucket.take(start).unwrap_err();
    assert!(wait <= Duration::from_millis(5), "{wait:?}");
    bucket.take(start + wait).unwrap();
    bucket.take(start + wait).unwrap_err();
    // It never gets deeper than a burst, however long the quiet time.
    let later = start + Duration::from_secs(3600);
    let taken = (0..10_000).take_while(|_| bucket.take(later).is_ok()).count();
    assert_eq!(taken, limits::REQUEST_BURST as usize);
}

#[tokio::test]
async fn only_loopback_tcp() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9870"] {
        let error = bind(&[address.parse().unwrap()]).await.unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("TLS with client certificates or a bearer-token file"), "{text}");
    }
}

#[tokio::test]
async fn tcp_answers_local_names_only() {
    let (tcp, shutdown, served) = started(&["127.0.0.1:0".parse().unwrap()]).await;
    let connect = || async { TcpStream::connect(tcp[0]).await.unwrap() };
    assert!(ask(connect().await, GET).await.starts_with("HTTP/1.1 200"));
    let foreign = ask(connect().await, &GET.replace("localhost", "evil.example")).await;
    assert!(foreign.starts_with("HTTP/1.1 421"), "{foreign}");
    assert!(foreign.contains("application/problem+json"));
    shutdown.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn changes_are_not_taken_over_tcp() {
    let (tcp, shutdown, served) = started(&["127.0.0.1:0".parse().unwrap()]).await;
    for method in ["PUT", "DELETE", "POST", "PATCH"] {
        let head = format!(
            "{method} /v1/services/web HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let answer = ask(TcpStream::connect(tcp[0]).await.unwrap(), &head).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{method}: {answer}");
        assert!(answer.contains("Unix socket"), "{answer}");
    }
    shutdown.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn too_many_requests() {
    let (tcp, shutdown, served) = started(&["127.0.0.1:0".parse().unwrap()]).await;
    let many = usize::try_from(limits::REQUEST_BURST * 2).unwrap();
    let mut stream = TcpStream::connect(tcp[0]).await.unwrap();
    let (mut answers, mut requests) = stream.split();
    let pipelined = "GET /v1/maps HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(many - 1)
        + &GET.replace("/healthz", "/v1/maps");
    let mut answer = String::new();
    let (sent, read) =
        tokio::join!(requests.write_all(pipelined.as_bytes()), answers.read_to_string(&mut answer));
    sent.unwrap();
    read.unwrap();
    assert!(answer.matches("HTTP/1.1 200").count() >= limits::REQUEST_BURST as usize);
    let refused = answer.split("HTTP/1.1 429").nth(1).expect("one is refused");
    assert!(refused.contains("retry-after: 1") && refused.contains("urn:lb:problem:too-many"));
    let probe = ask(TcpStream::connect(tcp[0]).await.unwrap(), GET).await;
    assert!(probe.starts_with("HTTP/1.1 200"), "probes are not limited: {probe}");
    shutdown.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn a_unix_socket_lives_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/lb/api.sock");
    let address = ApiAddr::Unix(path.clone());
    let (_, shutdown, served) = started(std::slice::from_ref(&address)).await;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let answer = ask(UnixStream::connect(&path).await.unwrap(), GET).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let error = format!("{:#}", bind(std::slice::from_ref(&address)).await.unwrap_err());
    assert!(error.contains("a daemon listens there already"), "{error}");
    assert!(UnixStream::connect(&path).await.is_ok(), "the live socket is untouched");

    shutdown.cancel();
    served.await.unwrap();
    assert!(!path.exists());
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0, "nothing stays behind");
}

#[tokio::test]
async fn stale_sockets_are_replaced_and_other_files_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let address = ApiAddr::Unix(path.clone());
    let (_, shutdown, served) = started(std::slice::from_ref(&address)).await;
    assert!(UnixStream::connect(&path).await.is_ok());
    shutdown.cancel();
    served.await.unwrap();

    fs::write(&path, "precious").unwrap();
    let error = format!("{:#}", bind(&[address]).await.unwrap_err());
    assert!(error.contains("a file that is no socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test(start_paused = true)]
async fn silent_connections_end() {
    let (client, server) = tokio::io::duplex(1024);
    let router = router(read_only(view()));
    let served = tokio::spawn(connection(Box::new(server), router, CancellationToken::new()));
    let answer = ask(client, "GET /healthz HTTP/1.1\r\nHost: loc").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn idle_connections_end() {
    let (client, server) = tokio::io::duplex(1024);
    let router = router(read_only(view()));
    let served = tokio::spawn(connection(Box::new(server), router, CancellationToken::new()));
    let keep_alive = GET.replace("Connection: close\r\n", "");
    let answer = ask(client, &keep_alive).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    served.await.unwrap();
}
