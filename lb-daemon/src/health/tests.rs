//! The plan with a made-up clock, and the runner against real listeners on the loopback interface.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use config::model::{HealthCheck, Probe};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
    task::{AbortHandle, JoinHandle},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Change, Checker, MAX_IN_FLIGHT, plan::Plan};
use crate::view::Health;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Every event awaited here comes within a few intervals.
const PATIENCE: Duration = Duration::from_secs(20);

fn check(probe: Probe) -> HealthCheck {
    HealthCheck {
        probe,
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(5),
        rise: 2,
        fall: 3,
    }
}

fn tcp(port: u16) -> HealthCheck {
    check(Probe::Tcp { port })
}

fn http(port: u16, expect: u16) -> HealthCheck {
    check(Probe::Http { port, path: "/healthz?deep=1".to_owned(), host: None, expect })
}

fn wanted<'a>(
    pairs: impl IntoIterator<Item = (&'a str, IpAddr, &'a HealthCheck)>,
) -> BTreeMap<(String, IpAddr), Arc<HealthCheck>> {
    pairs
        .into_iter()
        .map(|(service, backend, check)| ((service.to_owned(), backend), Arc::new(check.clone())))
        .collect()
}

fn change(service: &str, backend: IpAddr, health: Health, reason: Option<&str>) -> Change {
    Change { service: service.to_owned(), backend, health, reason: reason.map(str::to_owned) }
}

mod plan {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + number).into())
    }

    /// Runs a plan for `length` with probes that take no time; returns when each address was probed.
    fn run(plan: &mut Plan, from: Instant, length: Duration) -> BTreeMap<IpAddr, Vec<Duration>> {
        let mut starts = BTreeMap::<_, Vec<_>>::new();
        while let Some(now) = plan.next().filter(|&next| next < from + length) {
            for job in plan.take(now, usize::MAX) {
                starts.entry(job.address).or_default().push(now - from);
                plan.finish(&job.key, now, now, Some(Ok(())));
            }
        }
        starts
    }

    #[test]
    fn ten_thousand_backends_do_not_burst() {
        let now = Instant::now();
        let mut plan = Plan::new(now);
        let check = HealthCheck { interval: Duration::from_secs(10), ..tcp(80) };
        plan.set_wanted(&wanted((0..10_000).map(|n| ("web", address(n), &check))), now);
        let starts = run(&mut plan, now, Duration::from_secs(40));

        let second = Duration::from_secs(1);
        assert_eq!(starts.len(), 10_000);
        let mut per_tenth = BTreeMap::<_, u32>::new();
        for times in starts.values() {
            assert!(times[0] < second, "the first comes soon");
            assert!(times[1] - times[0] >= check.interval / 2);
            assert!(times[1] - times[0] <= check.interval * 3 / 2);
            for (one, next) in times[1..].iter().zip(&times[2..]) {
                assert_eq!(*next - *one, check.interval);
            }
            for time in &times[1..] {
                *per_tenth.entry(time.as_millis() / 100).or_default() += 1;
            }
        }
        // 100 a tenth of a second on average.
        let steady = per_tenth.range(200..).map(|(_, &count)| count);
        assert!(steady.clone().max() < Some(160), "{:?}", steady.max());
    }

    #[test]
    fn what_stays_keeps_its_schedule_and_state() {
        let now = Instant::now();
        let mut plan = Plan::new(now);
        let check = tcp(80);
        plan.set_wanted(&wanted([("web", address(1), &check)]), now);
        let next = plan.next();
        plan.set_wanted(&wanted([("web", address(1), &check), ("web", address(2), &check)]), now);
        plan.set_wanted(&wanted([("web", address(1), &check)]), now + check.interval);
        assert_eq!(plan.next(), next);
    }

    #[test]
    fn services_that_check_alike_share_a_probe() {
        let now = Instant::now();
        let mut plan = Plan::new(now);
        let check = HealthCheck { fall: 1, ..tcp(80) };
        plan.set_wanted(&wanted([("a", address(1), &check), ("b", address(1), &check)]), now);
        let jobs = plan.take(now + Duration::from_secs(1), 9);
        assert_eq!(jobs.len(), 1);
        let changes = plan.finish(&jobs[0].key, now, now, Some(Err("no".to_owned())));
        let down = |service| change(service, address(1), Health::Down, Some("no"));
        assert_eq!(changes, [down("a"), down("b")]);

        let all = wanted(["a", "b", "c"].map(|service| (service, address(1), &check)));
        assert_eq!(plan.set_wanted(&all, now), [down("c")], "who joins is told at once");
    }

    #[test]
    fn a_changed_check_keeps_what_was_decided() {
        let now = Instant::now();
        let mut plan = Plan::new(now);
        let old = HealthCheck { fall: 1, ..tcp(80) };
        plan.set_wanted(&wanted([("a", address(1), &old)]), now);
        let jobs = plan.take(now + Duration::from_secs(1), 9);
        plan.finish(&jobs[0].key, now, now, Some(Err("no".to_owned())));

        let new = HealthCheck { rise: 1, ..tcp(81) };
        assert_eq!(plan.set_wanted(&wanted([("a", address(1), &new)]), now), []);
        let jobs = plan.take(now + Duration::from_secs(1), 9);
        assert_eq!(jobs.len(), 1, "only the new one");
        let changes = plan.finish(&jobs[0].key, now, now, Some(Ok(())));
        assert_eq!(
            changes,
            [change("a", address(1), Health::Up, None)],
            "from down, not from unknown"
        );
    }

    #[test]
    fn results_of_what_is_gone_and_of_broken_means_change_nothing() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut plan = Plan::new(now);
        let check = HealthCheck { fall: 1, ..tcp(80) };
        let all = wanted([("a", address(1), &check)]);
        plan.set_wanted(&all, now);
        let jobs = plan.take(later, 9);
        assert!(plan.take(later, 9).is_empty(), "not twice at once");
        plan.set_wanted(&BTreeMap::new(), now);
        assert_eq!(plan.finish(&jobs[0].key, now, now, Some(Err("no".to_owned()))), []);
        assert_eq!(plan.next(), None);

        plan.set_wanted(&all, now);
        let jobs = plan.take(later, 9);
        assert_eq!(plan.finish(&jobs[0].key, now, now, None), []);
        assert!(plan.next().is_some(), "but it is tried again");
    }

    #[test]
    fn at_most_so_many_are_taken() {
        let now = Instant::now();
        let mut plan = Plan::new(now);
        let check = tcp(80);
        plan.set_wanted(&wanted((0..10).map(|n| ("web", address(n), &check))), now);
        let later = now + Duration::from_secs(1);
        let first: BTreeSet<_> = plan.take(later, 4).into_iter().map(|job| job.address).collect();
        let rest: BTreeSet<_> = plan.take(later, 99).into_iter().map(|job| job.address).collect();
        assert_eq!((first.len(), rest.len(), first.intersection(&rest).count()), (4, 6, 0));
    }
}

/// A checker with its task, and what it said.
struct Running {
    checker: Checker,
    changes: mpsc::Receiver<Change>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn new(in_flight: usize) -> Self {
        let (sender, changes) = mpsc::channel(1);
        let (checker, task) = Checker::new(sender, in_flight);
        let cancel = CancellationToken::new();
        let task = tokio::spawn(task.run(cancel.clone()));
        Self { checker, changes, cancel, task }
    }

    fn check(check: &HealthCheck) -> Self {
        let running = Self::new(MAX_IN_FLIGHT);
        running.checker.set_wanted(wanted([("web", LOOPBACK, check)]));
        running
    }

    async fn next(&mut self) -> Change {
        timeout(PATIENCE, self.changes.recv()).await.expect("a change").expect("the task runs")
    }

    /// Waits for this health and returns the reason.
    async fn until(&mut self, health: Health) -> Option<String> {
        loop {
            let change = self.next().await;
            if change.health == health {
                return change.reason;
            }
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

/// Accepts on a port of its own and answers each connection with `answer`; `None`: never.
async fn serve(answer: Option<&'static str>) -> (u16, AbortHandle) {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (port, accept(listener, answer).0)
}

/// Serves; the receiver gets the first request.
fn accept(
    listener: TcpListener,
    answer: Option<&'static str>,
) -> (AbortHandle, mpsc::Receiver<String>) {
    let (requests, received) = mpsc::channel(1);
    let task = tokio::spawn(async move {
        let mut silent = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let Some(answer) = answer else {
                silent.push(stream);
                continue;
            };
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let _ = requests.try_send(String::from_utf8_lossy(&request[..length]).into_owned());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (task.abort_handle(), received)
}

/// A port on which nobody listens, now and later.
async fn closed_port() -> (u16, tokio::net::TcpSocket) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((LOOPBACK, 0).into()).unwrap();
    (socket.local_addr().unwrap().port(), socket)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn tcp_goes_up_down_on_refusal_and_recovers() {
    let (port, server) = serve(None).await;
    let mut running = Running::check(&tcp(port));
    assert_eq!(running.next().await, change("web", LOOPBACK, Health::Up, None));

    server.abort();
    let refused = Some("connection refused");
    // A connection of the old listener's backlog may end otherwise.
    while running.next().await.reason.as_deref() != refused {}
    assert_eq!(running.until(Health::Down).await.as_deref(), refused);

    let listener = TcpListener::bind((LOOPBACK, port)).await.unwrap();
    let _server = accept(listener, None);
    assert_eq!(running.next().await, change("web", LOOPBACK, Health::Down, None), "one success");
    assert_eq!(running.next().await, change("web", LOOPBACK, Health::Up, None));
    running.stop().await;
}

#[tokio::test]
async fn refusal_from_the_start() {
    let (port, _socket) = closed_port().await;
    let mut running = Running::check(&tcp(port));
    let refused = Some("connection refused");
    assert_eq!(running.next().await, change("web", LOOPBACK, Health::Unknown, refused));
    assert_eq!(running.next().await, change("web", LOOPBACK, Health::Down, refused));
    running.stop().await;
}

#[tokio::test]
async fn http_asks_as_it_should() {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_server, mut requests) = accept(listener, Some(OK));
    let mut running = Running::check(&http(port, 200));
    assert_eq!(running.next().await, change("web", LOOPBACK, Health::Up, None));
    let request = requests.recv().await.unwrap().to_lowercase();
    assert!(request.starts_with("get /healthz?deep=1 http/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("\r\nhost: 127.0.0.1:{port}\r\n")), "{request}");
    running.stop().await;
}

#[tokio::test]
async fn http_answers_that_are_not_wanted() {
    let redirect = "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n";
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(20_000)).leak();
    for (answer, reason) in [
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "status 503, expected 200"),
        (redirect, "status 302, expected 200"),
        ("SSH-2.0-OpenSSH\r\n", "the answer is not HTTP/1.1"),
        ("", "connection closed without an answer"),
        ("HTTP/1.1 200 OK\r\n", "connection closed without an answer"),
        (endless, "the header of the answer is longer than 16 KiB"),
    ] {
        let (port, server) = serve(Some(answer)).await;
        let mut running = Running::check(&HealthCheck { fall: 1, ..http(port, 200) });
        assert_eq!(running.until(Health::Down).await.as_deref(), Some(reason));
        running.stop().await;
        server.abort();
    }
}

#[tokio::test]
async fn silence_times_out() {
    let (port, _server) = serve(None).await;
    let limit = Duration::from_millis(50);
    let mut running =
        Running::check(&HealthCheck { timeout: limit, interval: limit, ..http(port, 200) });
    assert_eq!(running.until(Health::Down).await.as_deref(), Some("timed out after 50ms"));
    running.stop().await;
}

#[tokio::test]
async fn what_is_wanted_may_change() {
    let (port, _server) = serve(None).await;
    let (closed, _socket) = closed_port().await;
    let mut running = Running::check(&tcp(port));
    assert_eq!(running.until(Health::Up).await, None);

    let (good, bad) = (tcp(port), tcp(closed));
    running.checker.set_wanted(wanted([("web", LOOPBACK, &good), ("dns", LOOPBACK, &bad)]));
    let refused = Some("connection refused");
    assert_eq!(running.next().await, change("dns", LOOPBACK, Health::Unknown, refused));
    assert_eq!(running.next().await, change("dns", LOOPBACK, Health::Down, refused));

    // Wanted anew is as new, even if the task never saw it dropped.
    running.checker.set_wanted(wanted([("dns", LOOPBACK, &bad)]));
    running.checker.set_wanted(wanted([("web", LOOPBACK, &good), ("dns", LOOPBACK, &bad)]));
    assert_eq!(running.next().await, change("web", LOOPBACK, Health::Up, None));
    running.stop().await;
}

#[tokio::test]
async fn one_at_a_time_still_serves_all() {
    let (port, _server) = serve(None).await;
    let mut running = Running::new(1);
    let check = tcp(port);
    let backends: BTreeSet<IpAddr> = (1..20).map(|n| Ipv4Addr::new(127, 0, 0, n).into()).collect();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
    let check =
        HealthCheck { probe: Probe::Tcp { port: listener.local_addr().unwrap().port() }, ..check };
    let _all = accept(listener, None);
    running.checker.set_wanted(wanted(backends.iter().map(|&backend| ("web", backend, &check))));
    let mut up = BTreeSet::new();
    while up.len() < backends.len() {
        let change = running.next().await;
        assert_eq!(change.health, Health::Up);
        up.insert(change.backend);
    }
    running.stop().await;
}
