//! The resolver against the real kernel. Need root.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Hop, NextHop, Resolver};
use crate::netlink::testing::Namespace;

/// The kernel gives up on a neighbour after three seconds; nothing else takes long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A balancer with `east` and `west`, each leading to a host of its own.
struct Network {
    lb: Namespace,
    east: Namespace,
    west: Namespace,
}

impl Network {
    fn new() -> Self {
        let network = Self {
            lb: Namespace::new("lb"),
            east: Namespace::new("east"),
            west: Namespace::new("west"),
        };
        let Self { lb, east, west } = &network;
        lb.veth("east", east, "lb");
        lb.veth("west", west, "lb");
        for (side, host, net) in [("east", east, 1), ("west", west, 2)] {
            lb.ip(&format!("link set {side} address 02:00:00:00:0{net}:01"));
            host.ip(&format!("link set lb address 02:00:00:00:0{net}:02"));
            lb.ip(&format!("address add 10.0.{net}.1/24 dev {side}"));
            lb.ip(&format!("address add fd00:{net}::1/64 dev {side} nodad"));
            host.ip(&format!("address add 10.0.{net}.2/24 dev lb"));
            host.ip(&format!("address add fd00:{net}::2/64 dev lb nodad"));
            // Without one of these the kernel solicits nobody on its own account.
            lb.ip(&format!("address add fe80::1/64 dev {side} nodad"));
            host.ip("address add fe80::2/64 dev lb nodad");
        }
        network
    }

    /// Runs a scenario beside a resolver of the balancer's namespace.
    fn scenario<F: Future<Output = ()> + Send>(&self, scenario: impl FnOnce(Observer) -> F + Send) {
        self.lb.run(async {
            let (sender, changes) = mpsc::channel(4);
            let (resolver, task) = Resolver::open(sender).await.unwrap();
            let cancel = CancellationToken::new();
            let task = tokio::spawn(task.run(cancel.clone()));
            scenario(Observer { resolver, changes, known: BTreeMap::new() }).await;
            cancel.cancel();
            task.await.unwrap().unwrap();
        });
    }
}

struct Observer {
    resolver: Resolver,
    changes: mpsc::Receiver<BTreeMap<IpAddr, NextHop>>,
    known: BTreeMap<IpAddr, NextHop>,
}

impl Observer {
    fn want(&self, targets: &[&str]) {
        self.resolver.set_targets(targets.iter().map(|target| ip(target)).collect());
    }

    /// Waits until the target's next hop fits.
    async fn until(&mut self, target: &str, fits: impl Fn(&NextHop) -> bool) -> NextHop {
        let waited = timeout(PATIENCE, async {
            loop {
                match self.known.get(&ip(target)) {
                    Some(next_hop) if fits(next_hop) => return next_hop.clone(),
                    _ => self.known.extend(self.changes.recv().await.expect("the task runs")),
                }
            }
        });
        let waited = waited.await;
        waited.unwrap_or_else(|_| panic!("{target} stays at {:?}", self.known.get(&ip(target))))
    }

    async fn resolved(&mut self, target: &str) -> Hop {
        match self.until(target, |next_hop| matches!(next_hop, NextHop::Resolved(_))).await {
            NextHop::Resolved(hop) => hop,
            other => unreachable!("{other:?}"),
        }
    }

    async fn unresolved(&mut self, target: &str, reason: &str) {
        let fits =
            |next_hop: &NextHop| matches!(next_hop, NextHop::Unresolved(r) if **r == *reason);
        self.until(target, fits).await;
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// MAC of the hosts (2) or of the balancer (1) in a network.
fn mac(net: u8, host: u8) -> [u8; 6] {
    [2, 0, 0, 0, net, host]
}

#[test]
fn direct_neighbours_of_both_families() {
    Network::new().scenario(|mut observer| async move {
        observer.want(&["10.0.1.2", "fd00:2::2"]);
        let hop = observer.resolved("10.0.1.2").await;
        let expected = Hop {
            ifindex: hop.ifindex,
            interface: "east".into(),
            dst_mac: mac(1, 2),
            src_mac: mac(1, 1),
            mtu: 1500,
            source: Some(ip("10.0.1.1")),
        };
        assert_eq!(hop, expected);
        assert_ne!(hop.ifindex, 0);

        let hop = observer.resolved("fd00:2::2").await;
        assert_eq!((hop.dst_mac, hop.source), (mac(2, 2), Some(ip("fd00:2::1"))));
    });
}

#[test]
fn own_addresses_are_local_and_silent_ones_are_named() {
    Network::new().scenario(|mut observer| async move {
        observer.want(&["10.0.1.1", "10.0.1.77", "192.0.2.1"]);
        observer.until("10.0.1.1", |next_hop| *next_hop == NextHop::Local).await;
        observer.unresolved("192.0.2.1", "no route to 192.0.2.1").await;
        observer.unresolved("10.0.1.77", "10.0.1.77 does not answer ARP on east").await;
    });
}

#[test]
fn gateways_of_both_families() {
    let network = Network::new();
    network.lb.ip("route add 192.0.2.0/24 via 10.0.1.2 mtu 1400 src 10.0.2.1");
    network.lb.ip("route add 198.51.100.0/24 via inet6 fd00:2::2 dev west");
    network.lb.ip("route add 2001:db8::/32 via fd00:1::2");
    network.scenario(|mut observer| async move {
        observer.want(&["192.0.2.9", "198.51.100.9", "2001:db8::9"]);
        let hop = observer.resolved("192.0.2.9").await;
        assert_eq!((hop.dst_mac, hop.mtu, hop.source), (mac(1, 2), 1400, Some(ip("10.0.2.1"))));
        let hop = observer.resolved("198.51.100.9").await;
        assert_eq!((hop.dst_mac, hop.mtu, hop.source), (mac(2, 2), 1500, Some(ip("10.0.2.1"))));
        let hop = observer.resolved("2001:db8::9").await;
        assert_eq!((hop.dst_mac, hop.source), (mac(1, 2), Some(ip("fd00:1::1"))));
    });
}

#[test]
fn a_neighbours_new_mac_is_followed() {
    let network = Network::new();
    let lb = &network.lb;
    network.scenario(|mut observer| async move {
        observer.want(&["10.0.1.2"]);
        observer.resolved("10.0.1.2").await;
        lb.ip("neighbour replace 10.0.1.2 lladdr 02:00:00:00:01:99 dev east");
        let new = |next_hop: &NextHop| matches!(next_hop, NextHop::Resolved(h) if h.dst_mac == mac(1, 0x99));
        observer.until("10.0.1.2", new).await;
    });
}

#[test]
fn a_forgotten_neighbour_is_found_again() {
    let network = Network::new();
    let lb = &network.lb;
    network.scenario(|mut observer| async move {
        observer.want(&["10.0.1.2"]);
        observer.resolved("10.0.1.2").await;
        lb.ip("neighbour replace 10.0.1.2 lladdr 02:00:00:00:01:99 dev east");
        observer
            .until("10.0.1.2", |n| matches!(n, NextHop::Resolved(h) if h.dst_mac == mac(1, 0x99)))
            .await;
        lb.ip("neighbour del 10.0.1.2 dev east");
        observer
            .until("10.0.1.2", |n| matches!(n, NextHop::Resolved(h) if h.dst_mac == mac(1, 2)))
            .await;
    });
}

#[test]
fn a_link_goes_down_and_comes_back() {
    let network = Network::new();
    let (lb, east) = (&network.lb, &network.east);
    network.scenario(|mut observer| async move {
        observer.want(&["10.0.1.2", "fd00:2::2"]);
        observer.resolved("10.0.1.2").await;
        east.ip("link set lb down");
        observer.unresolved("10.0.1.2", "east has no carrier").await;
        east.ip("link set lb up");
        observer.resolved("10.0.1.2").await;

        // Taking the route with it, which the kernel does not tell.
        lb.ip("link set east down");
        observer.unresolved("10.0.1.2", "no route to 10.0.1.2").await;
        lb.ip("link set east up");
        observer.resolved("10.0.1.2").await;
        observer.resolved("fd00:2::2").await;
    });
}

#[test]
fn routes_that_change_are_followed() {
    let network = Network::new();
    let lb = &network.lb;
    lb.ip("route add 192.0.2.0/24 via 10.0.1.2");
    network.scenario(|mut observer| async move {
        let over = |name: &'static str| move |n: &NextHop| matches!(n, NextHop::Resolved(h) if *h.interface == *name);
        observer.want(&["192.0.2.9"]);
        observer.until("192.0.2.9", over("east")).await;
        lb.ip("route add 192.0.2.8/29 via 10.0.2.2");
        observer.until("192.0.2.9", over("west")).await;
        lb.ip("route replace 192.0.2.8/29 via 10.0.1.2");
        observer.until("192.0.2.9", over("east")).await;
        lb.ip("route del 192.0.2.8/29");
        lb.ip("route replace 192.0.2.0/24 via 10.0.2.2");
        observer.until("192.0.2.9", over("west")).await;
        for (kind, reason) in [("blackhole", "a blackhole"), ("unreachable", "unreachable"), ("prohibit", "prohibited")] {
            lb.ip(&format!("route replace {kind} 192.0.2.9/32"));
            observer.unresolved("192.0.2.9", &format!("the route of 192.0.2.9/32 is {reason}")).await;
        }
        lb.ip("route del prohibit 192.0.2.9/32");
        observer.until("192.0.2.9", over("west")).await;
    });
}

#[test]
fn multipath_uses_every_living_path() {
    let network = Network::new();
    let (lb, east) = (&network.lb, &network.east);
    for (to, hosts) in [("192.0.2.0/24", "10.0"), ("2001:db8::/32", "fd00")] {
        let gateway = |net: u8| match hosts {
            "10.0" => format!("10.0.{net}.2"),
            _ => format!("fd00:{net}::2"),
        };
        lb.ip(&format!("route add {to} nexthop via {} nexthop via {}", gateway(1), gateway(2)));
    }
    network.scenario(|mut observer| async move {
        let targets: Vec<_> =
            (1..40).flat_map(|n| [format!("192.0.2.{n}"), format!("2001:db8::{n}")]).collect();
        observer.want(&targets.iter().map(String::as_str).collect::<Vec<_>>());
        let mut over_east = 0;
        for target in &targets {
            over_east += usize::from(observer.resolved(target).await.interface.as_ref() == "east");
        }
        assert!((20..60).contains(&over_east), "{over_east} of {} over east", targets.len());

        east.ip("link set lb down");
        let west = |n: &NextHop| matches!(n, NextHop::Resolved(h) if *h.interface == *"west");
        for target in &targets {
            observer.until(target, west).await;
        }
    });
}

#[test]
fn rules_leave_the_choice_to_the_kernel() {
    let network = Network::new();
    let lb = &network.lb;
    lb.ip("route add 192.0.2.0/24 via 10.0.1.2");
    network.scenario(|mut observer| async move {
        let over = |name: &'static str| move |n: &NextHop| matches!(n, NextHop::Resolved(h) if *h.interface == *name);
        observer.want(&["192.0.2.9", "10.0.1.1", "203.0.113.1"]);
        observer.until("192.0.2.9", over("east")).await;
        lb.ip("route add 192.0.2.0/24 via 10.0.2.2 table 77");
        lb.ip("rule add to 192.0.2.9 lookup 77");
        observer.until("192.0.2.9", over("west")).await;
        observer.until("10.0.1.1", |n| *n == NextHop::Local).await;
        lb.ip("route replace blackhole 192.0.2.0/24 table 77");
        observer.until("192.0.2.9", |n| matches!(n, NextHop::Unresolved(_))).await;
        lb.ip("rule del to 192.0.2.9 lookup 77");
        observer.until("192.0.2.9", over("east")).await;
    });
}

#[test]
fn next_hop_objects_are_followed() {
    let network = Network::new();
    let lb = &network.lb;
    lb.ip("nexthop add id 7 via 10.0.1.2 dev east");
    lb.ip("route add 192.0.2.0/24 nhid 7");
    network.scenario(|mut observer| async move {
        let over = |name: &'static str| move |n: &NextHop| matches!(n, NextHop::Resolved(h) if *h.interface == *name);
        observer.want(&["192.0.2.9"]);
        observer.until("192.0.2.9", over("east")).await;
        lb.ip("nexthop replace id 7 via 10.0.2.2 dev west");
        observer.until("192.0.2.9", over("west")).await;
    });
}

#[test]
fn a_target_wanted_again_is_told_again() {
    Network::new().scenario(|mut observer| async move {
        observer.want(&["10.0.1.2"]);
        observer.resolved("10.0.1.2").await;
        observer.known.clear();
        observer.resolver.change_targets(&[], &[ip("10.0.1.2")]);
        observer.resolver.change_targets(&[ip("10.0.1.2")], &[]);
        observer.resolved("10.0.1.2").await;
    });
}
