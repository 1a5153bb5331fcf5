//! Interfaces: would a program attach, in which mode, and what would it miss.

use config::model::{DesiredState, XdpMode};

use super::{Check, Facts};
use crate::{
    app::{WantedInterface, wanted_interfaces},
    links::{
        AttachedXdp, Link,
        features::{BASIC, RX_SG},
        hindrance::{self, ONE_PAGE},
    },
};

/// Names of our programs that are attached, as the kernel has them.
const OURS: &str = "lb";

pub(super) fn checks(facts: &Facts, state: &DesiredState) -> Vec<Check> {
    let mut out = Vec::new();
    for want in wanted_interfaces(state, &facts.links) {
        let subject = format!("interface {}", want.name);
        let Some(link) = &want.link else {
            out.push(Check::fail(
                subject,
                "exists",
                "there is no such interface",
                "correct its name under `interfaces`; `ip link` lists those that there are",
            ));
            continue;
        };
        out.push(state_of(&subject, link));
        out.push(attaching(facts, &subject, link, &want));
        out.extend(packets(facts, &subject, link, &want));
    }
    out
}

fn state_of(subject: &str, link: &Link) -> Check {
    let name = &link.name;
    match (link.up, link.running) {
        (true, true) => Check::ok(subject, "state", format!("up, MTU {}", link.mtu)),
        (true, false) => Check::warn(
            subject,
            "state",
            "up, without a carrier",
            format!("look at its cable, its port or its peer: `ip -d link show dev {name}`"),
        ),
        (false, _) => Check::fail(subject, "state", "down", format!("ip link set dev {name} up")),
    }
}

/// In which mode a program attaches, or is.
fn attaching(facts: &Facts, subject: &str, link: &Link, want: &WantedInterface) -> Check {
    let name_of = |id| facts.programs.get(&id).cloned();
    let explain = |code| hindrance::explain(Some(code), "", link, want.mode, &name_of);
    let fail = |found: String, code| Check::fail(subject, "xdp", found, explain(code));
    let own = |x: &AttachedXdp| name_of(x.program).as_deref() == Some(OURS);
    if let Some(theirs) = link.xdp.iter().find(|x| !own(x)) {
        let title = hindrance::titled(theirs, &name_of);
        return fail(format!("another program is attached ({title})"), libc::EEXIST);
    }
    if let Some(ours) = link.xdp.first() {
        let mode = format!("{:?}", ours.mode).to_lowercase();
        return Check::ok(subject, "xdp", format!("attached, {mode}, id {}", ours.program));
    }
    if want.mode == XdpMode::Generic {
        return Check::ok(subject, "xdp", "will attach in the generic hook");
    }
    match facts.xdp.get(&link.index) {
        None => Check::warn(
            subject,
            "xdp",
            "this kernel does not tell what the driver can do",
            "start the daemon: `lbctl interface list` says what happened",
        ),
        Some(can) if can & BASIC == 0 && link.kind == "veth" => {
            fail("native XDP is refused".to_owned(), libc::ENOSPC)
        }
        Some(can) if can & BASIC == 0 => fail("no native XDP".to_owned(), libc::EOPNOTSUPP),
        Some(can) if can & RX_SG == 0 && link.mtu > ONE_PAGE => fail(
            format!("MTU {}, and the driver takes one buffer for each frame", link.mtu),
            libc::EINVAL,
        ),
        Some(can) => {
            let buffers = if can & RX_SG == 0 { "one buffer" } else { "several buffers" };
            Check::ok(subject, "xdp", format!("will attach natively, frames in {buffers}"))
        }
    }
}

/// What would keep packets from being handled well.
fn packets(facts: &Facts, subject: &str, link: &Link, want: &WantedInterface) -> Vec<Check> {
    let name = &link.name;
    let mut out = Vec::new();
    if facts.lro.contains(&link.index) {
        out.push(Check::warn(
            subject,
            "lro",
            "the NIC joins packets: what is forwarded may be larger than any path takes",
            format!("ethtool -K {name} lro off"),
        ));
    }
    if link.kind == "ethernet" && link.rx_queues == 1 {
        out.push(Check::warn(
            subject,
            "queues",
            "one receive queue: one CPU works on all packets",
            format!("ethtool -L {name} combined N, if `ethtool -l {name}` shows more"),
        ));
    }
    if want.roles.decap
        && let Some(filter) = facts.rp_filter.get(name)
    {
        out.push(if *filter == 1 {
            Check::fail(
                subject,
                "rp_filter",
                "strict: packets of clients that come out of a tunnel are dropped",
                format!("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{name}.rp_filter=0"),
            )
        } else {
            Check::ok(subject, "rp_filter", if *filter == 0 { "off" } else { "loose" })
        });
    }
    out
}
