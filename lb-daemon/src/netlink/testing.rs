//! Network namespaces for tests: made with `ip`, removed when dropped, also by a panic. No interface of
//! the host is touched.

use std::{
    fs::File,
    future::Future,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use nix::sched::{CloneFlags, setns};

/// A network namespace that lives as long as this.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    /// # Panics
    /// When not root: what the test is about cannot be tested then, and a skipped test would look like a
    /// passed one.
    pub(crate) fn new(role: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);

        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces and needs root: run it with sudo"
        );
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lbnet-{}-{number}-{role}", std::process::id());
        run(&["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `ip` with these arguments inside.
    pub(crate) fn ip(&self, arguments: &str) {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split_whitespace());
        run(&all);
    }

    /// Makes a veth pair between `name` here and `peer_name` in `peer`, switched on at both ends.
    pub(crate) fn veth(&self, name: &str, peer: &Self, peer_name: &str) {
        let to = &peer.name;
        self.ip(&format!("link add {name} type veth peer name {peer_name} netns {to}"));
        for (namespace, name) in [(self, name), (peer, peer_name)] {
            namespace.ip(&format!("link set {name} addrgenmode none"));
            namespace.ip(&format!("link set {name} up"));
        }
    }

    /// Runs a future on a thread of its own whose network is this namespace.
    pub(crate) fn run<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(future)
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "del", &self.name]).status();
        if !deleted.as_ref().is_ok_and(std::process::ExitStatus::success) {
            eprintln!("network namespace {} is left behind: {deleted:?}", self.name);
        }
    }
}

fn run(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("`ip` of iproute2 is there");
    assert!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
}
