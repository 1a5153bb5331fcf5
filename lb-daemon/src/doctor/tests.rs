//! Each check on facts that were made up: once as it should be, once not.

use std::{net::IpAddr, sync::Arc};

use super::*;
use crate::{
    links::{
        AttachedMode, AttachedXdp,
        features::{BASIC, NDO_XMIT, RX_SG},
    },
    nexthop::Hop,
};

const BACKEND: &str = "10.0.1.11";

fn state(yaml: &str) -> DesiredState {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lb.yaml");
    std::fs::write(&file, yaml).unwrap();
    config::Loader::new(file).load().unwrap()
}

fn edge() -> DesiredState {
    state(&format!(
        "interfaces:\n  - {{name: eth0, roles: [prefilter, balance]}}\n\
         services:\n  - name: web\n    address: 203.0.113.10\n    forwarding: ipip\n    \
         ports: [{{name: http, port: 80, protocol: tcp}}]\n    \
         backends:\n      - {{name: web-1, address: {BACKEND}}}\n"
    ))
}

fn link(index: u32, name: &str) -> Link {
    Link::example(index, name, "ethernet", "ixgbe")
}

fn hop(ifindex: u32, interface: &str, mtu: u32) -> NextHop {
    NextHop::Resolved(Hop {
        ifindex,
        interface: interface.into(),
        dst_mac: [2; 6],
        src_mac: [4; 6],
        mtu,
        source: None,
    })
}

/// A machine with nothing in the way.
fn good() -> Facts {
    let mut facts = Facts {
        release: "6.1.0-18-amd64".to_owned(),
        btf: true,
        may_load: true,
        jit: Some(1),
        clocksource: Some("tsc".to_owned()),
        bpffs: ("/sys/fs/bpf/lb".to_owned(), true),
        neighbours: [Some(1024), Some(1024)],
        ..Facts::default()
    };
    facts.links.insert(2, link(2, "eth0"));
    facts.links.insert(3, link(3, "eth1"));
    for index in [2, 3] {
        facts.xdp.insert(index, BASIC | NDO_XMIT | RX_SG);
    }
    facts.rp_filter.insert("eth0".to_owned(), 0);
    facts.hops.insert(backend(), hop(2, "eth0", 1520));
    facts
}

fn backend() -> IpAddr {
    BACKEND.parse().unwrap()
}

fn eth0(facts: &mut Facts) -> &mut Link {
    facts.links.get_mut(&2).unwrap()
}

/// With this change alone, exactly this check is not ok, and its text has these words.
#[track_caller]
fn finds<R>(
    state: &DesiredState,
    change: impl FnOnce(&mut Facts) -> R,
    found: (&str, Verdict, &[&str]),
) {
    let mut facts = good();
    change(&mut facts);
    let (name, verdict, words) = found;
    let bad: Vec<Check> =
        examine(&facts, state).into_iter().filter(|c| c.verdict != Verdict::Ok).collect();
    assert_eq!(bad.len(), 1, "{bad:#?}");
    assert_eq!((bad[0].check, bad[0].verdict), (name, verdict), "{bad:#?}");
    let text =
        format!("{}: {} -> {}", bad[0].subject, bad[0].found, bad[0].remedy.as_deref().unwrap());
    for word in words {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let checks = examine(&good(), &edge());
    assert!(checks.iter().all(|c| c.verdict == Verdict::Ok && c.remedy.is_none()), "{checks:#?}");
    assert!(checks.len() > 8, "{checks:#?}");
}

#[test]
fn the_kernel_and_its_settings() {
    use Verdict::{Fail, Warn};
    let edge = edge();
    let old = "5.10.0-28-amd64".to_owned();
    finds(&edge, |f| f.release = old, ("version", Fail, &["5.10.0", "5.18 or later"]));
    finds(&edge, |f| f.btf = false, ("types", Warn, &["CONFIG_DEBUG_INFO_BTF"]));
    finds(&edge, |f| f.jit = Some(0), ("jit", Warn, &["bpf_jit_enable=1"]));
    finds(&edge, |f| f.may_load = false, ("rights", Warn, &["CAP_BPF"]));
    finds(&edge, |f| f.bpffs.1 = false, ("bpffs", Fail, &["mount -t bpf"]));
    finds(&edge, |f| f.clocksource = Some("hpet".to_owned()), ("clock", Warn, &["hpet"]));
    finds(&edge, |f| f.neighbours[0] = Some(1), ("neighbours", Warn, &["gc_thresh3=4096"]));
}

#[test]
fn interfaces() {
    use Verdict::{Fail, Warn};
    let edge = edge();
    let xdp = |facts: &mut Facts, name: Option<&str>| {
        eth0(facts).xdp = vec![AttachedXdp { mode: AttachedMode::Native, program: 7 }];
        facts.programs.extend(name.map(|name| (7, name.to_owned())));
    };
    finds(&edge, |f| xdp(f, Some("theirs")), ("xdp", Fail, &["id 7, name theirs", "xdp off"]));
    finds(&edge, |f| xdp(f, None), ("xdp", Fail, &["id 7"]));
    let mut ours = good();
    xdp(&mut ours, Some("lb"));
    assert!(examine(&ours, &edge).iter().all(|c| c.verdict == Verdict::Ok));

    finds(&edge, |f| eth0(f).up = false, ("state", Fail, &["eth0", "up"]));
    finds(&edge, |f| eth0(f).running = false, ("state", Warn, &["carrier"]));
    finds(&edge, |f| f.xdp.insert(2, 0), ("xdp", Fail, &["ixgbe", "xdp_mode: generic"]));
    let bond = |f: &mut Facts| {
        f.xdp.insert(2, 0);
        "bond".clone_into(&mut eth0(f).kind);
    };
    finds(&edge, bond, ("xdp", Fail, &["bond's ports"]));
    let vlan = |f: &mut Facts| {
        f.xdp.insert(2, 0);
        "vlan".clone_into(&mut eth0(f).kind);
    };
    finds(&edge, vlan, ("xdp", Fail, &["interface below it"]));
    let veth = |f: &mut Facts| {
        f.xdp.insert(2, 0);
        "veth".clone_into(&mut eth0(f).kind);
    };
    finds(&edge, veth, ("xdp", Fail, &["queues"]));
    finds(&edge, |f| f.xdp.remove(&2), ("xdp", Warn, &["interface list"]));
    finds(&edge, |f| f.lro.insert(2), ("lro", Warn, &["ethtool -K eth0 lro off"]));
    finds(&edge, |f| eth0(f).rx_queues = 1, ("queues", Warn, &["ethtool -L eth0"]));
    let jumbo = |f: &mut Facts| {
        eth0(f).mtu = 9000;
        f.xdp.insert(2, BASIC);
        f.hops.insert(backend(), hop(2, "eth0", 9020));
    };
    finds(&edge, jumbo, ("xdp", Fail, &["one buffer", "mtu 3498"]));
}

#[test]
fn a_strict_rp_filter_matters_to_decap_alone() {
    let decap = state("interfaces:\n  - {name: eth0, roles: [decap]}\n");
    let strict = |f: &mut Facts| f.rp_filter.insert("eth0".to_owned(), 1);
    finds(&decap, strict, ("rp_filter", Verdict::Fail, &["net.ipv4.conf.eth0.rp_filter=0"]));
    let mut facts = good();
    strict(&mut facts);
    assert!(examine(&facts, &edge()).iter().all(|c| c.verdict == Verdict::Ok));
}

#[test]
fn services() {
    use Verdict::{Fail, Warn};
    let edge = edge();
    let lost = |f: &mut Facts| {
        f.hops.insert(backend(), NextHop::Unresolved(Arc::from("no neighbour answers")));
    };
    finds(&edge, lost, ("backends", Fail, &["web-1", BACKEND, "no neighbour answers", "ip neigh"]));
    let tight = |f: &mut Facts| f.hops.insert(backend(), hop(2, "eth0", 1500));
    finds(&edge, tight, ("mtu", Warn, &["1481 to 1500", "mtu 1520", "advmss 1440"]));
    let own = |f: &mut Facts| f.local.insert("203.0.113.10".parse().unwrap());
    finds(&edge, own, ("address", Warn, &["203.0.113.10"]));
    let here = |f: &mut Facts| {
        f.hops.insert(backend(), NextHop::Local);
        f.local.insert(backend());
    };
    finds(&edge, here, ("address", Fail, &["203.0.113.10", "web-1", "203.0.113.10/32 dev lo"]));
    let both = |f: &mut Facts| (here(f), own(f));
    let mut facts = good();
    both(&mut facts);
    assert!(examine(&facts, &edge).iter().all(|c| c.verdict == Verdict::Ok));
    let with = |change: &dyn Fn(&mut config::model::Service)| {
        let mut state = edge.clone();
        let web = state.services.values_mut().next().unwrap();
        change(Arc::make_mut(web));
        state
    };
    let nat = with(&|web| web.forwarding = config::model::Forwarding::Nat);
    finds(&nat, here, ("backends", Fail, &["web-1", "NAT does not reach"]));
    let circle = with(&|web| web.addresses.push(backend()));
    finds(&circle, |_| (), ("circle", Fail, &["web-1", BACKEND, "service web", "come back"]));
    let silent = |f: &mut Facts| {
        f.hops.insert(backend(), hop(3, "eth1", 1520));
        f.xdp.insert(3, BASIC);
    };
    finds(&edge, silent, ("transmit", Fail, &["eth1", "`interfaces`"]));
}

#[test]
fn releases() {
    assert_eq!(machine::version("6.18.44"), Some((6, 18)));
    assert_eq!(machine::version("5.15-rc1"), Some((5, 15)));
    assert_eq!(machine::version("custom"), None);
}
