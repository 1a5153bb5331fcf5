//! Against a server that answers as CrowdSec's local API is documented to, and fails on demand.

use std::path::PathBuf;

use super::{
    super::testing::{Act, Server, answer},
    *,
};
use crate::api::{
    ApiState,
    testing::{live, view},
};

struct Site {
    server: Server,
    state: ApiState,
    bouncers: Bouncers,
    spec: CrowdSec,
    known: Known,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key: PathBuf = dir.path().join("key");
        fs::write(&key, "s3cret\n").unwrap();
        let server = Server::http().await;
        let state = live(view());
        let bouncers = Bouncers {
            shared: Shared::default(),
            view: state.view.clone(),
            commands: state.commands.clone(),
            guard: Guard::default(),
        };
        let spec = CrowdSec {
            list: "crowdsec".to_owned(),
            url: format!("http://127.0.0.1:{}/", server.address.port()),
            api_key_file: key,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            ca_file: None,
        };
        Self { server, state, bouncers, spec, known: Known::default(), _dir: dir }
    }

    async fn pull(&mut self, act: Act, all: bool) -> Result<u64, String> {
        self.server.will(act);
        self.bouncers.pull(&self.spec, &mut self.known, all).await
    }

    fn bans(&self) -> Vec<String> {
        let view = Arc::clone(&self.state.view.borrow());
        let bans = view.bans.read();
        let list = bans.get("crowdsec").into_iter();
        list.flat_map(|list| list.entries().keys().map(ToString::to_string)).collect()
    }
}

fn decision(id: u64, value: &str, duration: &str) -> String {
    let scope = if value.contains('/') { "Range" } else { "Ip" };
    format!(
        "{{\"duration\":\"{duration}\",\"id\":{id},\"origin\":\"crowdsec\",\"scenario\":\"crowdsecurity/ssh-bf\",\
         \"scope\":\"{scope}\",\"type\":\"ban\",\"value\":\"{value}\"}}"
    )
}

fn stream(new: &[String], deleted: &[String]) -> Act {
    let list = |all: &[String]| match all {
        [] => "null".to_owned(),
        all => format!("[{}]", all.join(",")),
    };
    let body = format!("{{\"new\":{},\"deleted\":{}}}", list(new), list(deleted));
    answer("200 OK", "Content-Type: application/json\r\n", &body)
}

#[tokio::test]
async fn decisions_become_bans_and_go() {
    let mut site = Site::new().await;
    let captcha = decision(9, "192.0.2.9", "1h").replace("\"ban\"", "\"captcha\"");
    let country = decision(8, "XX", "1h").replace("\"Ip\"", "\"Country\"");
    let first = [
        decision(1, "192.0.2.1", "3h59m57.5s"),
        decision(2, "2001:db8:f::/48", "30s"),
        decision(3, "192.0.2.3", "-5m"),
        captcha,
        country,
    ];
    site.pull(stream(&first, &[]), true).await.unwrap();
    assert_eq!(site.bans(), ["192.0.2.1/32", "2001:db8:f::/48"]);
    let head = site.server.asked().await;
    assert!(head.starts_with("GET /v1/decisions/stream?startup=true HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("\r\nx-api-key: s3cret\r\n"), "{head}");
    {
        let bans = site.state.view.borrow().bans.clone();
        let bans = bans.read();
        let ban = &bans.get("crowdsec").unwrap().entries()[&"192.0.2.1/32".parse().unwrap()];
        assert_eq!(ban.until.unwrap() - ban.added, 14_397_500);
        assert_eq!(ban.reason.as_deref(), Some("crowdsec: crowdsecurity/ssh-bf"));
    }

    // A second decision about one address: it stays until the last of them is gone.
    site.pull(stream(&[decision(5, "192.0.2.1", "1h")], &[]), false).await.unwrap();
    assert!(site.server.asked().await.contains("startup=false"));
    site.pull(stream(&[], &[decision(1, "192.0.2.1", "-1s")]), false).await.unwrap();
    assert_eq!(site.bans().len(), 2);
    site.pull(stream(&[], &[decision(5, "192.0.2.1", "-1s")]), false).await.unwrap();
    assert_eq!(site.bans(), ["2001:db8:f::/48"]);
    site.pull(stream(&[], &[]), false).await.unwrap();
    assert_eq!(site.bans(), ["2001:db8:f::/48"]);

    // Everything anew: what is not there any more goes.
    site.pull(stream(&[decision(7, "192.0.2.7", "1h")], &[]), true).await.unwrap();
    assert_eq!(site.bans(), ["192.0.2.7/32"]);
    // A backend is not cut off by a decision.
    site.pull(stream(&[decision(6, "10.0.1.0/24", "1h")], &[]), false).await.unwrap();
    assert_eq!(site.bans(), ["192.0.2.7/32"]);
}

#[tokio::test]
async fn bans_stay_whatever_goes_wrong() {
    let mut site = Site::new().await;
    site.pull(stream(&[decision(1, "192.0.2.1", "1h")], &[]), true).await.unwrap();
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"new\":[";
    for (act, says) in [
        (answer("403 Forbidden", "", "{\"message\":\"access forbidden\"}"), "403"),
        (answer("500 Oops", "", ""), "500"),
        (answer("200 OK", "", "<html>"), "no stream of decisions"),
        (answer("302 Found", "Location: /elsewhere\r\n", ""), "not expected here"),
        (Act::Send(half.into()), "broke off"),
        (Act::Stall(half.into()), "within 1s"),
    ] {
        let error = site.pull(act, true).await.unwrap_err();
        assert!(error.contains(says), "{error}");
        assert_eq!(site.bans(), ["192.0.2.1/32"], "{error}");
    }
    site.spec.api_key_file = "/nonexistent/key".into();
    let error = site.pull(stream(&[], &[]), true).await.unwrap_err();
    assert!(error.contains("/nonexistent/key") && !error.contains("s3cret"), "{error}");
}

/// The task asks for everything again after a failure, and shows how it goes.
#[tokio::test]
async fn the_task_begins_anew_after_a_failure() {
    let mut site = Site::new().await;
    site.spec.interval = Duration::from_millis(20);
    site.server.will(stream(&[decision(1, "192.0.2.1", "1h")], &[]));
    site.server.will(answer("500 Oops", "", ""));
    site.server.will(stream(&[decision(2, "192.0.2.2", "1h")], &[]));
    let task = tokio::spawn(site.bouncers.clone().follow(Arc::new(site.spec.clone())));
    for startup in ["startup=true", "startup=false", "startup=true", "startup=false"] {
        let head = site.server.asked().await;
        assert!(head.contains(startup), "{startup}: {head}");
    }
    assert_eq!(site.bans(), ["192.0.2.2/32"]);
    let progress = site.bouncers.shared.get("crowdsec").unwrap();
    assert_eq!((progress.successes_total, progress.failures_total >= 1), (2, true));
    assert!(progress.success.is_some());
    task.abort();
}

#[test]
fn durations_of_go() {
    let seconds = |text: &str| go_duration(text).map(|d| d.as_secs_f64());
    assert_eq!(seconds("3h59m57.5s"), Some(14_397.5));
    assert_eq!(seconds("500ms"), Some(0.5));
    assert_eq!(seconds("1h0m0s"), Some(3600.0));
    for none in ["-1h", "", "0s", "h", "1", "1x", "1.2.3s"] {
        assert_eq!(seconds(none), None, "{none}");
    }
}
