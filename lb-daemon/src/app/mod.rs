//! Builds everything, starts it, and ends it.
//!
//! Order matters at the start: the configuration must be good and the API's addresses ours before
//! anything in the kernel is touched; next hops must be known before the first plan, or it would take
//! every backend for unreachable. At the end nothing in the kernel is touched either: the data path goes
//! on with the last state.

mod attach;
mod cleanup;
mod kept;
mod kernel;
mod nat;
mod notify;
mod owner;
mod policy;
mod sources;
mod synproxy;
mod tasks;
mod views;

pub(crate) use self::{
    attach::{Wanted as WantedInterface, wanted as wanted_interfaces},
    kernel::{is_bpffs, may_load},
};

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use config::{Loader, Watcher};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

pub use self::cleanup::{Removed, cleanup};
use self::{
    kept::Kept,
    kernel::Kernel,
    owner::{Inbox, Owner, Parts},
    tasks::Tasks,
};
use crate::{
    api::{ApiAddr, ApiState, listen},
    bans, events,
    fetch::{self, Fetcher, crowdsec::Bouncers},
    guard::Guard,
    health::{Checker, MAX_IN_FLIGHT},
    links::Links,
    nexthop::{NextHop, Resolver},
    plan::prefixes::Prefixes,
};

/// Messages that may wait for the owner task, of each kind.
const QUEUE: usize = 64;
/// How long the first plan waits for next hops; those that come later are put in force then.
const FIRST_HOPS: Duration = Duration::from_secs(2);

/// What the daemon is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory or file.
    pub config: PathBuf,
    /// Where the API listens.
    pub api: Vec<ApiAddr>,
    /// What is set through the API.
    pub state: PathBuf,
    /// Where everything is pinned.
    pub bpffs: PathBuf,
    /// How programs of identity policy are attached.
    pub tc: crate::policy::kernel::Method,
}

/// Runs the daemon until `shutdown`; `reload` has the configuration read again.
///
/// # Errors
/// What keeps it from starting, or what ended unexpectedly.
pub async fn run(
    options: Options,
    reload: mpsc::Receiver<()>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let copies = options.state.join("lists");
    let mut loader = Loader::new(&options.config).with_copies(&copies);
    let files = Arc::new(loader.load().map_err(|faults| faulty(&faults))?);
    let (watcher, notices) = Watcher::new(&options.config, loader.watch_dirs())
        .with_context(|| format!("cannot watch {}", options.config.display()))?;

    let _lock = lock(&options.state)?;
    let kept = Kept::open(&options.state)?;
    let (wanted, _) = sources::merge_what_fits(&files, &kept.set());
    let bound = listen::bind(&options.api).await?;

    let (links, link_watcher) = Links::open().await.context("reading interfaces")?;
    let (hop_changes, mut hops) = mpsc::channel(QUEUE);
    let (resolver, resolver_task) =
        Resolver::open(hop_changes).await.context("reading routes and neighbours")?;
    let (health_changes, health) = mpsc::channel(QUEUE);
    let (checker, checker_task) = Checker::new(health_changes, MAX_IN_FLIGHT);

    let mut tasks = Tasks::default();
    let stop = tasks.stop();
    tasks.spawn("the watch on interfaces", async move { Ok(link_watcher.run(stop).await?) });
    let stop = tasks.stop();
    tasks.spawn("the resolver of next hops", async move { Ok(resolver_task.run(stop).await?) });
    tasks.spawn_sure("the health checks", checker_task.run(tasks.stop()));

    let targets = owner::targets(&wanted);
    resolver.set_targets(targets.clone());
    let first = first_hops(&mut hops, &targets).await;

    kernel::make_root(&options.bpffs)?;
    let _pins = cleanup::lock(&options.bpffs)?;
    let mut prefixes = Prefixes::default();
    let needs = kernel::capacity_for(&wanted, prefixes.needs(&wanted.prefilter)?)?;
    let seed = crate::ring::seed(&wanted.maglev.seed);
    synproxy::check(&wanted.prefilter.syn_proxy)?;
    let proxy = &wanted.prefilter.syn_proxy;
    let features = wanted.interfaces.first().map_or(0, |i| attach::features(i.roles, proxy));
    let (kernel, adopted) = Kernel::open(&options.bpffs, needs, seed, features)?;
    let counters = kernel.counters();
    let guard = Guard::new(links.clone(), options.api.iter().filter_map(ApiAddr::port).collect());
    let (copied, new_copies) = mpsc::channel(1);
    let fetches = fetch::Shared::default();
    let fetcher = Fetcher::open(&copies, fetches.clone(), copied, guard.clone())
        .with_context(|| format!("cannot make {}", copies.display()))?;
    let events = kernel.events()?;
    let samples = events::Samples::default();
    let (early, early_counts) = (kernel.early()?, crate::early::Counts::default());
    let Kept { store, api, journal, lists, slot, pending, .. } = kept;
    let Kept { documents, rules, endpoint_store, endpoints, names_kept, names, .. } = kept;
    let names = crate::policy::names::Shared::new(names);
    let (name_readers, name_sources) = mpsc::channel(1);
    let parts = Parts {
        config_path: options.config.clone(),
        pins: options.bpffs.clone(),
        kernel,
        adopted,
        files,
        api,
        store,
        lists: bans::Shared::new(lists),
        journal,
        fetches: fetches.clone(),
        slot,
        pending,
        guard: guard.clone(),
        samples: samples.clone(),
        early: early_counts.clone(),
        documents,
        rules,
        endpoint_store,
        endpoints,
        names: names.clone(),
        name_readers,
        tc: options.tc,
        links,
        resolver,
        checker,
        hops: first.into_iter().collect(),
    };
    let (owner, view) = Owner::start(parts, prefixes)?;

    let reading = events::run(events, samples, view.clone(), tasks.stop());
    tasks.spawn_sure("the reader of samples", reading);
    let links = options.bpffs.join(kernel::LINKS);
    let link = move |ifindex| attach::pin(&links, ifindex);
    let root = options.bpffs.clone();
    let waiting = crate::early::run(early, root, link, early_counts, tasks.stop());
    tasks.spawn("the wait for first fragments", waiting);
    let (commands, inbox) = mpsc::channel(QUEUE);
    let news = sources::News { notices, reload, copies: new_copies };
    let learning = crate::policy::names::run(
        name_sources,
        names,
        names_kept,
        view.clone(),
        commands.clone(),
        tasks.stop(),
    );
    tasks.spawn_sure("the reader of DNS messages", learning);
    let following = sources::follow_files(loader, watcher, news, commands.clone(), tasks.stop());
    tasks.spawn("the watch on the configuration", following);
    let inbox = Inbox { commands: inbox, hops, health };
    tasks.spawn_sure("the owner task", owner.run(inbox, tasks.stop()));
    tasks.spawn_sure("the fetcher of lists", fetcher.run(view.clone(), tasks.stop()));
    let bouncers = Bouncers {
        shared: fetches,
        view: view.clone(),
        commands: commands.clone(),
        guard: guard.clone(),
    };
    tasks.spawn_sure("the bouncers", bouncers.run(tasks.stop()));
    tasks.spawn_sure("the watch on NAT", nat::watch(Arc::clone(&counters), tasks.stop()));
    let state = ApiState { view, commands, counters, guard };
    tasks.spawn_sure("the API", bound.serve(state, tasks.stop()));
    give_memory_back();
    notify::ready();
    tracing::info!(adopted, config = %options.config.display(), "ready");
    tasks.run(shutdown, notify::stopping).await
}

/// Reads and checks the configuration, and says what it holds.
///
/// # Errors
/// Every fault, with file, line and column.
pub fn check(path: &Path) -> anyhow::Result<String> {
    let state = Loader::new(path).load().map_err(|faults| faulty(&faults))?;
    let backends: usize = state.services.values().map(|s| s.backends.len()).sum();
    let prefixes: usize = state.prefilter.lists.iter().map(|l| l.prefixes.len()).sum();
    Ok(format!(
        "{}: good (interfaces: {}, services: {}, backends: {backends}, lists: {}, prefixes: {prefixes})",
        path.display(),
        state.interfaces.len(),
        state.services.len(),
        state.prefilter.lists.len(),
    ))
}

/// The faults of files as an error.
pub(crate) fn faulty(faults: &[config::Fault]) -> anyhow::Error {
    let text = sources::print(faults).join("\n");
    anyhow::anyhow!(
        "{text}\n{} in the configuration; nothing was changed",
        match faults.len() {
            1 => "1 fault".to_owned(),
            n => format!("{n} faults"),
        }
    )
}

/// What reading and the first plan needed and nobody needs any more goes back to the system: tens of
/// megabytes with ten thousand services.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number only; the allocator locks what it needs.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Two daemons must not share one state: the lock is the kernel's and goes with the process.
fn lock(state: &Path) -> anyhow::Result<nix::fcntl::Flock<File>> {
    fs::create_dir_all(state).with_context(|| format!("cannot create {}", state.display()))?;
    let path = state.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(
        |(_, error)| {
            anyhow::anyhow!(
                "{} is held by another daemon ({error}); give this one a --state of its own",
                path.display()
            )
        },
    )
}

/// What is known of the ways to `targets`, once it is known of all, or after a while.
async fn first_hops(
    hops: &mut mpsc::Receiver<BTreeMap<IpAddr, NextHop>>,
    targets: &BTreeSet<IpAddr>,
) -> BTreeMap<IpAddr, NextHop> {
    let mut known = BTreeMap::new();
    let resolved = |known: &BTreeMap<IpAddr, NextHop>| {
        targets.iter().all(|t| known.get(t).is_some_and(NextHop::is_reachable))
    };
    let all = async {
        while !resolved(&known)
            && let Some(more) = hops.recv().await
        {
            known.extend(more);
        }
    };
    // What is not resolved by then is unreachable, as far as anybody knows.
    let _ = timeout(FIRST_HOPS, all).await;
    known
}
