//! Messages without a kernel, and the watcher with it. The latter need root.

use std::{net::IpAddr, time::Duration};

use netlink_packet_route::{
    AddressFamily,
    link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage, LinkXdp, XdpAttached},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{AttachedMode, AttachedXdp, Links, link_from};
use crate::netlink::testing::Namespace;

const PATIENCE: Duration = Duration::from_secs(20);

fn message(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    message.attributes.push(LinkAttribute::IfName("eth0".to_owned()));
    message.attributes.extend(attributes);
    message
}

#[test]
fn attached_programs() {
    let native = AttachedXdp { mode: AttachedMode::Native, program: 5 };
    let generic = AttachedXdp { mode: AttachedMode::Generic, program: 6 };
    for (attributes, expected) in [
        (vec![LinkXdp::Attached(XdpAttached::None)], vec![]),
        (vec![LinkXdp::Attached(XdpAttached::Driver), LinkXdp::ProgId(5)], vec![native]),
        (
            vec![LinkXdp::Attached(XdpAttached::Driver), LinkXdp::ProgId(5), LinkXdp::DrvProgId(5)],
            vec![native],
        ),
        (vec![LinkXdp::ProgId(6), LinkXdp::Attached(XdpAttached::SocketBuffer)], vec![generic]),
        (
            vec![
                LinkXdp::Attached(XdpAttached::Multiple),
                LinkXdp::SkbProgId(6),
                LinkXdp::DrvProgId(5),
            ],
            vec![generic, native],
        ),
    ] {
        let link = link_from(&message(vec![LinkAttribute::Xdp(attributes.clone())])).unwrap();
        assert_eq!(link.xdp, expected, "{attributes:?}");
    }
}

#[test]
fn messages_that_are_of_no_link() {
    let mut of_a_bridge = message(vec![]);
    of_a_bridge.header.interface_family = AddressFamily::Bridge;
    assert_eq!(link_from(&of_a_bridge), None);
    assert_eq!(link_from(&LinkMessage::default()), None, "no name");
}

#[test]
fn without_ethernet_there_is_no_mac() {
    let mut message = message(vec![LinkAttribute::Address(vec![1; 6])]);
    assert_eq!(link_from(&message).unwrap().mac, Some([1; 6]));
    message.header.link_layer_type = LinkLayerType::Tunnel;
    let link = link_from(&message).unwrap();
    assert_eq!((link.mac, link.kind.as_str()), (None, "other"));
}

/// Runs a scenario beside a watcher.
fn scenario<F: Future<Output = ()> + Send>(
    namespace: &Namespace,
    scenario: impl FnOnce(Links) -> F + Send,
) {
    namespace.run(async {
        let (links, watcher) = Links::open().await.unwrap();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(watcher.run(cancel.clone()));
        scenario(links).await;
        cancel.cancel();
        task.await.unwrap().unwrap();
    });
}

/// Waits until the links fit.
async fn until(links: &Links, what: &str, fits: impl Fn(&Links) -> bool) {
    let (mut by_link, mut by_address) = (links.subscribe(), links.subscribe_addresses());
    let fitting = async {
        while !fits(links) {
            tokio::select! {
                changed = by_link.changed() => changed.unwrap(),
                changed = by_address.changed() => changed.unwrap(),
            }
        }
    };
    let waited = timeout(PATIENCE, fitting).await;
    assert!(waited.is_ok(), "{what}: {:?} {:?}", links.snapshot(), links.local_addresses());
}

#[test]
fn links_are_followed() {
    let (here, there) = (Namespace::new("here"), Namespace::new("there"));
    here.veth("veth0", &there, "peer");
    let (here, there) = (&here, &there);
    scenario(here, |links| async move {
        let lo = links.by_name("lo").unwrap();
        assert_eq!((lo.kind.as_str(), lo.mac, lo.driver), ("loopback", None, None));
        until(&links, "carrier", |links| links.by_name("veth0").unwrap().running).await;
        let veth = links.by_name("veth0").unwrap();
        assert_eq!((veth.kind.as_str(), veth.driver.as_deref()), ("veth", Some("veth")));
        assert!(veth.mac.is_some() && veth.up && veth.rx_queues > 0 && veth.tx_queues > 0);
        assert!(veth.xdp.is_empty());

        there.ip("link set peer down");
        until(&links, "no carrier", |links| !links.by_name("veth0").unwrap().running).await;
        assert!(links.by_name("veth0").unwrap().up);

        here.ip("link set veth0 mtu 1400");
        until(&links, "mtu", |links| links.by_name("veth0").unwrap().mtu == 1400).await;

        here.ip("link set veth0 down");
        here.ip("link set veth0 name other0");
        until(&links, "name", |links| links.by_name("other0").is_some()).await;
        assert!(links.by_name("veth0").is_none());

        here.ip("link add br0 type bridge");
        here.ip("link set other0 master br0");
        until(&links, "port", |links| {
            let bridge = links.by_name("br0").map(|bridge| bridge.index);
            bridge.is_some() && links.by_name("other0").unwrap().master == bridge
        })
        .await;
        assert_eq!(links.by_name("br0").unwrap().kind, "bridge");
        here.ip("link set other0 nomaster");
        until(&links, "no port", |links| links.by_name("other0").unwrap().master.is_none()).await;

        here.ip("link del other0");
        until(&links, "gone", |links| links.by_name("other0").is_none()).await;
    });
}

#[test]
fn addresses_are_followed() {
    let here = Namespace::new("here");
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    scenario(&here, |links| {
        let here = &here;
        async move {
            until(&links, "loopback", |links| links.local_addresses().contains(&ip("127.0.0.1")))
                .await;
            for address in ["192.0.2.1/32", "2001:db8::1/128"] {
                here.ip(&format!("address add {address} dev lo"));
                let address = ip(address.split('/').next().unwrap());
                until(&links, "added", |links| links.local_addresses().contains(&address)).await;
                let index = links.by_name("lo").unwrap().index;
                assert!(links.subscribe_addresses().borrow().contains_key(&(address, index)));
            }
            here.ip("address del 192.0.2.1/32 dev lo");
            until(&links, "gone", |links| !links.local_addresses().contains(&ip("192.0.2.1")))
                .await;

            links.refresh().await;
            assert!(links.local_addresses().contains(&ip("2001:db8::1")));
        }
    });
}
