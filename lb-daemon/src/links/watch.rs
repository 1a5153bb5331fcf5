//! The task that keeps the picture of links and addresses fresh.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use futures::FutureExt as _;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage, address::AddressMessage, link::LinkMessage,
};
use rtnetlink::MulticastGroup;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{Address, Link, address_from, ethtool::Ethtool, link_from};
use crate::netlink::{Error, Notice, Notices, Requests};

/// Requests to read anew that may wait.
const REFRESHES: usize = 16;

type LinkMap = BTreeMap<u32, Link>;
type AddressMap = BTreeMap<(IpAddr, u32), Address>;

/// What is known of this machine's interfaces. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Links {
    links: watch::Receiver<Arc<LinkMap>>,
    addresses: watch::Receiver<Arc<AddressMap>>,
    refresh: mpsc::Sender<oneshot::Sender<()>>,
}

impl Links {
    /// Reads all links and addresses of the calling thread's network namespace. What is returned is
    /// kept fresh while the [`Watcher`] runs.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn open() -> Result<(Self, Watcher), Error> {
        let notices = Notices::subscribe(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])?;
        let (refresh, refreshes) = mpsc::channel(REFRESHES);
        let (links_tx, links) = watch::channel(Arc::default());
        let (addresses_tx, addresses) = watch::channel(Arc::default());
        let mut watcher = Watcher {
            requests: Requests::open()?,
            notices,
            ethtool: Ethtool::open().map_err(Error::Open)?,
            refreshes,
            links: links_tx,
            addresses: addresses_tx,
        };
        watcher.read_all().await?;

        Ok((Self { links, addresses, refresh }, watcher))
    }

    /// The interfaces by index, now and whenever something of them changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<BTreeMap<u32, Link>>> {
        self.links.clone()
    }

    /// The interfaces by index.
    #[must_use]
    pub fn snapshot(&self) -> Arc<BTreeMap<u32, Link>> {
        Arc::clone(&self.links.borrow())
    }

    /// The interface of this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<Link> {
        self.links.borrow().values().find(|link| link.name == name).cloned()
    }

    /// The addresses of this machine with their interfaces' indexes, now and whenever they change.
    #[must_use]
    pub fn subscribe_addresses(&self) -> watch::Receiver<Arc<BTreeMap<(IpAddr, u32), Address>>> {
        self.addresses.clone()
    }

    /// All addresses of this machine.
    #[must_use]
    pub fn local_addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.borrow().keys().map(|&(address, _)| address).collect()
    }

    /// Reads all anew and returns when that is done: the kernel does not tell when a program is attached
    /// or detached through a BPF link.
    pub async fn refresh(&self) {
        let (done, reply) = oneshot::channel();
        if self.refresh.send(done).await.is_ok() {
            // No answer means that the watcher has ended, and with it what could be fresh.
            let _ = reply.await;
        }
    }
}

/// Keeps [`Links`] fresh.
pub struct Watcher {
    requests: Requests,
    notices: Notices,
    ethtool: Ethtool,
    refreshes: mpsc::Receiver<oneshot::Sender<()>>,
    links: watch::Sender<Arc<LinkMap>>,
    addresses: watch::Sender<Arc<AddressMap>>,
}

impl Watcher {
    /// Runs until `cancel`, or until the kernel cannot be asked any more.
    ///
    /// # Errors
    /// If a socket broke.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), Error> {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                Some(done) = self.refreshes.recv() => {
                    self.read_all().await?;
                    // Who asked may have given up meanwhile.
                    let _ = done.send(());
                }
                notice = self.notices.next() => self.follow(notice?).await?,
            }
        }
    }

    /// Takes a notice and all that wait behind it, then publishes once.
    async fn follow(&mut self, notice: Notice) -> Result<(), Error> {
        let mut links = LinkMap::clone(&self.links.borrow());
        let mut addresses = AddressMap::clone(&self.addresses.borrow());
        let mut next = Some(notice);
        while let Some(notice) = next {
            match notice {
                Notice::Lost => return self.read_all().await,
                Notice::Unknown(kind) => tracing::debug!(kind, "unknown netlink message"),
                Notice::Message { message, .. } => match message {
                    RouteNetlinkMessage::NewLink(message) => {
                        if let Some(link) = link_from(&message) {
                            let link = self.with_driver(link);
                            links.insert(link.index, link);
                        }
                    }
                    RouteNetlinkMessage::DelLink(message) => {
                        if let Some(link) = link_from(&message) {
                            links.remove(&link.index);
                        }
                    }
                    RouteNetlinkMessage::NewAddress(message) => {
                        if let Some(address) = address_from(&message) {
                            addresses.insert((address.address, address.index), address);
                        }
                    }
                    RouteNetlinkMessage::DelAddress(message) => {
                        if let Some(address) = address_from(&message) {
                            addresses.remove(&(address.address, address.index));
                        }
                    }
                    _ => {}
                },
            }
            next = self.notices.next().now_or_never().transpose()?;
        }
        self.publish(links, addresses);
        Ok(())
    }

    async fn read_all(&mut self) -> Result<(), Error> {
        let mut messages = Vec::new();
        let links = RouteNetlinkMessage::GetLink(LinkMessage::default());
        read(&mut self.requests, "reading interfaces", links, &mut messages).await?;
        let links = messages
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(message) => link_from(message),
                _ => None,
            })
            .map(|link| (link.index, self.with_driver(link)))
            .collect();

        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Unspec;
        let request = RouteNetlinkMessage::GetAddress(request);
        read(&mut self.requests, "reading addresses", request, &mut messages).await?;
        let addresses = messages
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(message) => address_from(message),
                _ => None,
            })
            .map(|address| ((address.address, address.index), address))
            .collect();

        self.publish(links, addresses);
        Ok(())
    }

    /// The driver of an index stays the same, so that it is asked for once.
    fn with_driver(&self, mut link: Link) -> Link {
        link.driver = match self.links.borrow().get(&link.index) {
            Some(Link { driver: Some(driver), .. }) => Some(driver.clone()),
            _ => self.ethtool.driver(&link.name),
        };
        link
    }

    fn publish(&self, links: LinkMap, addresses: AddressMap) {
        publish(&self.links, links);
        publish(&self.addresses, addresses);
    }
}

fn publish<T: PartialEq>(to: &watch::Sender<Arc<T>>, new: T) {
    to.send_if_modified(|current| {
        let changed = **current != new;
        if changed {
            *current = Arc::new(new);
        }
        changed
    });
}

async fn read(
    requests: &mut Requests,
    what: &'static str,
    request: RouteNetlinkMessage,
    messages: &mut Vec<RouteNetlinkMessage>,
) -> Result<(), Error> {
    let collect = |message| match message {
        Some(message) => messages.push(message),
        None => messages.clear(),
    };
    requests.dump(what, request, collect).await
}
