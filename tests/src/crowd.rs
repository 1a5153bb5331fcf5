//! Many connections at once, all of them with data in flight while something changes.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{eventually, http::Kept, lab::at, netns::Namespace, web};

const THREADS: usize = 8;
/// How long an answer may take, with ten thousand others before it.
const ANSWER: Duration = Duration::from_secs(20);
/// How long some rounds may take.
const ROUNDS: Duration = Duration::from_secs(120);

/// Allows one descriptor for each connection, in this process and in servers that it starts from now on.
///
/// # Errors
/// The kernel refuses.
pub fn raise_limit() -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// What the threads of the client share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Of each thread.
    rounds: [AtomicU64; THREADS],
}

/// Connections that are opened once, and asked again and again: a thread sends all of its requests before it
/// reads the first answer.
#[derive(Debug)]
pub struct Crowd {
    count: usize,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<anyhow::Result<Spoken>>>,
}

/// What a thread saw.
#[derive(Debug, Default)]
struct Spoken {
    opened: usize,
    /// Why a connection broke, or who answered instead of its server.
    broken: Vec<String>,
}

impl Crowd {
    /// Opens `count` connections, rounded down to a multiple of the threads, to the VIPs in turn.
    #[must_use]
    pub fn start(client: &Namespace, vips: &[&str], count: usize) -> Self {
        let vips: Vec<SocketAddr> = vips.iter().map(|vip| at(vip, web::PORT)).collect();
        let shared = Arc::new(Shared::default());
        let spawn = |thread| {
            let (entrance, shared, vips) = (client.entrance(), Arc::clone(&shared), vips.clone());
            thread::spawn(move || {
                entrance.enter()?;
                converse(&vips, count / THREADS, &shared, thread)
            })
        };
        let threads = (0..THREADS).map(spawn).collect();
        Self { count: count / THREADS * THREADS, shared, threads }
    }

    /// Waits until all connections are open and the threads have asked them so many times more, all together:
    /// some are further than others, which have not asked at all meanwhile.
    ///
    /// # Errors
    /// A thread has ended, or it takes too long.
    pub fn wait_rounds(&self, more: u64) -> anyhow::Result<()> {
        let rounds = || self.shared.rounds.each_ref().map(|r| r.load(Ordering::Relaxed));
        let wanted = rounds().iter().sum::<u64>() + more * THREADS as u64;
        eventually(ROUNDS, || {
            let ended = self.threads.iter().any(JoinHandle::is_finished);
            ensure!(!ended, "a thread of the client has ended");
            let rounds = rounds();
            ensure!(rounds.iter().all(|&rounds| rounds > 0), "{rounds:?}: not all are open");
            ensure!(rounds.iter().sum::<u64>() >= wanted, "{rounds:?} of {wanted} rounds in all");
            Ok(())
        })
    }

    /// Ends it. All were opened, none of them broke, and none was answered by another server than at first.
    ///
    /// # Errors
    /// Otherwise; says of some what became of them.
    pub fn expect_whole(mut self) -> anyhow::Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Spoken::default();
        for thread in self.threads.drain(..) {
            let one = thread.join().ok().context("a thread of the client panicked")??;
            all.opened += one.opened;
            all.broken.extend(one.broken);
        }
        let Spoken { opened, broken } = all;
        ensure!(opened == self.count, "{opened} of {} connections", self.count);
        let some = &broken[..broken.len().min(10)];
        ensure!(broken.is_empty(), "{} of {opened} broke: {some:#?}", broken.len());
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn converse(
    vips: &[SocketAddr],
    count: usize,
    shared: &Shared,
    thread: usize,
) -> anyhow::Result<Spoken> {
    let mut open = Vec::with_capacity(count);
    for vip in vips.iter().cycle().take(count) {
        let mut kept = Kept::connect(*vip)?;
        kept.set_patience(ANSWER)?;
        let name = kept.get("/")?;
        open.push(Some((kept, name)));
    }
    let mut broken = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        for slot in &mut open {
            if let Some((kept, _)) = slot
                && let Err(error) = kept.ask("/")
            {
                broken.push(format!("{error:#}"));
                *slot = None;
            }
        }
        for slot in &mut open {
            let Some((kept, name)) = slot else { continue };
            match kept.answer() {
                Ok(now) if now == *name => {}
                Ok(now) => broken.push(format!(
                    "answered by {} and then by {}",
                    String::from_utf8_lossy(name),
                    String::from_utf8_lossy(&now)
                )),
                Err(error) => {
                    broken.push(format!("{error:#}"));
                    *slot = None;
                }
            }
        }
        shared.rounds[thread].fetch_add(1, Ordering::Relaxed);
    }
    Ok(Spoken { opened: open.len(), broken })
}
