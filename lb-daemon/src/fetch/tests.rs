//! Fetching from a real server that fails on demand, over real sockets, into real files.

use std::{fs, path::Path};

use config::{Loader, model::PrefixList};
use tokio::time::timeout;

use super::{
    testing::{Act, Server, answer, testdata},
    *,
};
use crate::api::testing::view;

const PATIENCE: Duration = Duration::from_secs(10);

/// A list of these options.
fn list(dir: &Path, options: &str) -> Arc<PrefixList> {
    let file = dir.join("lb.yaml");
    fs::write(&file, format!("prefilter: {{lists: [{{name: feed, {options}}}]}}")).unwrap();
    let state = Loader::new(&file).with_copies(dir.join("lists")).load();
    Arc::clone(&state.unwrap_or_else(|faults| panic!("{faults:?}")).prefilter.lists[0])
}

/// A remote of these options, and where its copy is kept.
struct Site {
    dir: tempfile::TempDir,
    server: Server,
    copies: Copies,
    record: Record,
    options: String,
}

impl Site {
    async fn new(server: Server, scheme: &str, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let copies = Copies::open(&dir.path().join("lists")).unwrap();
        let url = format!("{scheme}://127.0.0.1:{}/feed.txt", server.address.port());
        let options = format!("url: \"{url}\", timeout: 1s, {options}");
        Self { dir, server, copies, record: Record::default(), options }
    }

    async fn http(options: &str) -> Self {
        Self::new(Server::http().await, "http", options).await
    }

    fn remote(&self) -> Arc<Remote> {
        list(self.dir.path(), &self.options).remote.clone().unwrap()
    }

    /// One attempt; why it failed, if it did.
    async fn attempt(&mut self, act: Act) -> Result<(), String> {
        self.server.will(act);
        let remote = self.remote();
        let (get, copy) = (request(&remote, &self.record), remote.copy_name("feed"));
        let check = Check { list: "feed".to_owned(), remote, guard: None };
        let came = fetch(&get, check, &self.copies, &copy).await;
        note(&mut self.record, came, 1000, "feed");
        self.copies.write_record(&copy, &self.record).unwrap();
        self.record = self.copies.record(&copy);
        self.record.error.clone().map_or(Ok(()), Err)
    }

    /// What the list holds as the configuration reads it.
    fn loaded(&self) -> Vec<String> {
        let list = list(self.dir.path(), &self.options);
        list.prefixes.iter().map(|net| net.to_string()).collect()
    }
}

#[tokio::test]
async fn what_is_fetched_is_kept_with_its_attribution() {
    let mut site = Site::http("").await;
    assert_eq!(site.loaded(), [""; 0]);
    let body = "# Feed of example.org\n#\n# Licence: CC BY 4.0\n192.0.2.0/24\n# later\n::1\n";
    let headers = "ETag: \"v1\"\r\nLast-Modified: Wed, 25 Nov 2026 10:00:00 GMT\r\n";
    site.attempt(answer("200 OK", headers, body)).await.unwrap();
    assert_eq!(site.loaded(), ["192.0.2.0/24", "::1/128"]);
    assert_eq!(site.record.attribution, ["Feed of example.org", "Licence: CC BY 4.0"]);
    let head = site.server.asked().await.to_lowercase();
    assert!(
        head.starts_with("get /feed.txt http/1.1\r\n") && head.contains("\r\nhost: 127.0.0.1:")
    );
    assert!(head.contains("user-agent: lb-daemon/") && !head.contains("if-none-match"), "{head}");

    site.attempt(answer("304 Not Modified", "", "")).await.unwrap();
    let head = site.server.asked().await.to_lowercase();
    assert!(head.contains("if-none-match: \"v1\"\r\n"), "{head}");
    assert!(head.contains("if-modified-since: wed, 25 nov 2026 10:00:00 gmt\r\n"), "{head}");
    assert_eq!(site.loaded().len(), 2);

    // A damaged copy is asked for as if there were none.
    fs::write(site.dir.path().join("lists").join(site.remote().copy_name("feed")), "x").unwrap();
    site.record = site.copies.record(&site.remote().copy_name("feed"));
    let error = site.attempt(answer("304 Not Modified", "", "")).await.unwrap_err();
    assert!(error.contains("304"), "{error}");
    assert!(!site.server.asked().await.to_lowercase().contains("if-none-match"));
}

#[tokio::test]
async fn whatever_goes_wrong_the_last_good_copy_stays() {
    let mut site = Site::http("max_bytes: 200").await;
    site.attempt(answer("200 OK", "ETag: \"v1\"\r\n", "192.0.2.0/24\n")).await.unwrap();
    let long = "198.51.100.0/24\n".repeat(20);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
        long.len()
    );
    let html = "<html><body>Please sign in</body></html>\n";
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n198.51.100.0/24\n";
    let half_chunk =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n198.51.100.0/24\n\r\n";
    let cases: [(Act, &str); 13] = [
        (answer("500 Internal Server Error", "", "oops"), "500"),
        (answer("404 Not Found", "", ""), "404"),
        (answer("200 OK", "", &long), "more than 200 bytes"),
        (Act::Send(chunked.into_bytes()), "more than 200 bytes"),
        (Act::Send(half.into()), "broke off"),
        (Act::Send(half_chunk.into()), "broke off"),
        (Act::Send("SSH-2.0-OpenSSH\r\n".into()), "broke off"),
        (Act::Send(Vec::new()), "broke off"),
        (Act::Stall(half.into()), "within 1s"),
        (answer("200 OK", "", html), "no list"),
        (answer("200 OK", "", "198.51.100.0/24\n198.51.100.999\n"), "line:2:1"),
        (answer("200 OK", "", "# nothing today\n"), "no prefix"),
        (answer("200 OK", "Content-Encoding: gzip\r\n", "xx"), "gzip"),
    ];
    for (n, (act, says)) in cases.into_iter().enumerate() {
        let error = site.attempt(act).await.unwrap_err();
        assert!(error.contains(says), "{n}: {error}");
        assert_eq!(site.loaded(), ["192.0.2.0/24"], "{n}: {error}");
        assert_eq!(site.record.failures, n as u32 + 1);
        assert_eq!(site.record.etag.as_deref(), Some("\"v1\""));
    }
    let busy = answer("503 Service Unavailable", "Retry-After: 700\r\n", "");
    site.attempt(busy).await.unwrap_err();
    assert_eq!(site.record.retry_after, Some(700));
    let body = answer("200 OK", "", "198.51.100.0/24\n");
    site.attempt(body).await.unwrap();
    assert_eq!((site.loaded(), site.record.failures), (vec!["198.51.100.0/24".to_owned()], 0));
}

#[tokio::test]
async fn lines_can_be_left_out_but_not_most_of_them() {
    let mut site = Site::http("on_error: skip").await;
    site.attempt(answer("200 OK", "", "192.0.2.1\nx\n192.0.2.2\n")).await.unwrap();
    assert_eq!(site.loaded(), ["192.0.2.1/32", "192.0.2.2/32"]);
    assert_eq!(list(site.dir.path(), &site.options).skipped_lines, 1);
    let error = site.attempt(answer("200 OK", "", "x\ny\n192.0.2.9\n")).await.unwrap_err();
    assert!(error.contains("more of its lines are wrong"), "{error}");
    assert_eq!(site.loaded().len(), 2);
}

#[tokio::test]
async fn redirects_lead_only_where_they_may() {
    let mut site = Site::http("").await;
    site.server.will(answer("302 Found", "Location: other.txt\r\n", ""));
    site.attempt(answer("200 OK", "", "192.0.2.0/24\n")).await.unwrap();
    assert!(site.server.asked().await.starts_with("GET /feed.txt "));
    assert!(site.server.asked().await.starts_with("GET /other.txt "));

    // Another name of this machine is another host, with an address that is not public.
    let elsewhere = format!("http://localhost:{}/", site.server.address.port());
    for to in [elsewhere.as_str(), "http://169.254.169.254/latest/meta-data", "http://[::1]/"] {
        let redirect = answer("301 Moved Permanently", &format!("Location: {to}\r\n"), "");
        let error = site.attempt(redirect).await.unwrap_err();
        assert!(error.contains("no public address"), "{error}");
        assert!(site.server.asked().await.starts_with("GET /feed.txt "));
    }
    assert_eq!(site.server.asked_now(), None, "nobody was asked there");
    for _ in 0..5 {
        site.server.will(answer("307 Temporary Redirect", "Location: /again\r\n", ""));
    }
    let again = answer("307 Temporary Redirect", "Location: /again\r\n", "");
    let error = site.attempt(again).await.unwrap_err();
    assert!(error.contains("too many"), "{error}");
    assert_eq!(site.loaded(), ["192.0.2.0/24"]);
}

#[tokio::test]
async fn over_tls_only_from_whom_is_trusted() {
    let trusted = format!("ca_file: \"{}\"", testdata("ca.pem").display());
    let mut site = Site::new(Server::tls().await, "https", &trusted).await;
    site.attempt(answer("200 OK", "", "192.0.2.0/24\n")).await.unwrap();
    assert_eq!(site.loaded(), ["192.0.2.0/24"]);
    let down = format!("http://127.0.0.1:{}/", site.server.address.port());
    let redirect = answer("302 Found", &format!("Location: {down}\r\n"), "");
    let error = site.attempt(redirect).await.unwrap_err();
    assert!(error.contains("from https to http"), "{error}");

    // By its own certificate it is not trusted: that one is no authority.
    let own = format!("ca_file: \"{}\"", testdata("server.pem").display());
    for (options, says) in
        [(own.as_str(), "certificate"), ("ca_file: \"/nonexistent\"", "/nonexistent")]
    {
        let mut site = Site::new(Server::tls().await, "https", options).await;
        let error = site.attempt(answer("200 OK", "", "192.0.2.0/24\n")).await.unwrap_err();
        assert!(error.to_lowercase().contains(says), "{error}");
    }
}

/// The task, from a view to a reload and its progress.
#[tokio::test(flavor = "multi_thread")]
async fn the_task_fetches_what_the_view_has() {
    let mut site = Site::http("refresh: 1h").await;
    let with = |list: &Arc<PrefixList>| {
        let mut view = view();
        view.prefilter = Arc::new(config::model::Prefilter {
            lists: vec![Arc::clone(list)],
            ..Default::default()
        });
        Arc::new(view)
    };
    let feed = list(site.dir.path(), &site.options);
    let (publish, views) = watch::channel(with(&feed));
    let shared = Shared::default();
    let (copied, mut copies) = mpsc::channel(1);
    let directory = site.dir.path().join("lists");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("of-no-list-0000"), "").unwrap();
    let fetcher = Fetcher::open(&directory, shared.clone(), copied, Guard::default()).unwrap();
    let stop = CancellationToken::new();
    site.server.will(answer("200 OK", "ETag: \"v1\"\r\n", "# by us\n192.0.2.0/24\n"));
    let task = tokio::spawn(fetcher.run(views, stop.clone()));

    timeout(PATIENCE, copies.recv()).await.unwrap().unwrap();
    assert_eq!(site.loaded(), ["192.0.2.0/24"]);
    let progress = shared.get("feed").unwrap();
    assert_eq!((progress.failures, progress.successes_total, progress.bytes), (0, 1, 21));
    assert_eq!((progress.error, progress.etag.as_deref()), (None, Some("\"v1\"")));
    assert_eq!(progress.attribution, ["by us"]);
    let pause = progress.next.unwrap().duration_since(progress.attempt.unwrap()).unwrap();
    assert!((3600..=3960).contains(&pause.as_secs()), "{pause:?}");
    assert!(!directory.join("of-no-list-0000").exists());
    assert!(site.server.asked().await.starts_with("GET /feed.txt"));

    assert_eq!(shared.refresh("other"), Err(NotNow::NotFetched("other".to_owned())));
    assert!(matches!(shared.refresh("feed"), Err(NotNow::TooSoon(_))));

    // A list that is not wanted any more leaves nothing.
    let mut empty = view();
    empty.prefilter = Arc::default();
    publish.send_replace(Arc::new(empty));
    let gone = async {
        while shared.get("feed").is_some() || fs::read_dir(&directory).unwrap().count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
    assert_eq!(site.server.asked_now(), None);
    stop.cancel();
    task.await.unwrap();
}
