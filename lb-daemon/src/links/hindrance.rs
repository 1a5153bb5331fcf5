//! Why a program cannot be attached to an interface, and what mends it. The kernel answers with an error
//! number; its words go to a log that few read.

use config::model::XdpMode;

use super::{AttachedXdp, Link};
use crate::refusal::RIGHTS;

/// Most bytes of L3 that drivers without multi-buffer support take with a program, roughly: a page less the
/// room in front and behind.
pub(crate) const ONE_PAGE: u32 = 3498;

/// The name of a loaded program; `None` if there is no such program or it cannot be asked.
pub(crate) fn program_name(id: u32) -> Option<String> {
    let mut programs = aya::programs::loaded_programs().filter_map(Result::ok);
    programs.find(|p| p.id() == id)?.name_as_str().map(str::to_owned)
}

/// In words. `code`: the kernel's answer; `detail`: whatever else is known of it; `name_of` a program's id.
pub(crate) fn explain(
    code: Option<i32>,
    detail: &str,
    link: &Link,
    mode: XdpMode,
    name_of: &dyn Fn(u32) -> Option<String>,
) -> String {
    let name = &link.name;
    match code {
        Some(libc::EBUSY | libc::EEXIST) => taken(link, name_of),
        Some(libc::EOPNOTSUPP) if mode == XdpMode::Generic => format!(
            "{name} takes no generic XDP: it may be a port whose {} has a program already",
            if link.master.is_some() { "bond or bridge" } else { "upper interface" }
        ),
        Some(libc::EOPNOTSUPP) => no_native(link),
        Some(libc::ERANGE) => format!(
            "{name} has an MTU of {}, or its peer one, that is too large for XDP: `ip link set dev {name} \
             mtu {ONE_PAGE}` on both ends, and segmentation offload off at the peer \
             (`ethtool -K PEER tso off`)",
            link.mtu
        ),
        Some(libc::EINVAL) if link.mtu > ONE_PAGE => format!(
            "{name} has an MTU of {}, and its driver {} takes no program with more than about {ONE_PAGE}: \
             `ip link set dev {name} mtu {ONE_PAGE}`, or `xdp_mode: generic`",
            link.mtu,
            driver(link)
        ),
        Some(libc::EINVAL) => format!(
            "the driver {} of {name} refuses XDP as it is set now: switch off what joins packets \
             (`ethtool -K {name} lro off rx-gro-hw off`), then look at `dmesg`",
            driver(link)
        ),
        Some(libc::ENOSPC | libc::ENOMEM) => format!(
            "{name} has {} receive and {} transmit queues, too few for XDP, which sends through queues of its \
             own: `ethtool -L {name} combined N` with half as many, or for a veth more receive queues than \
             its peer transmits on",
            link.rx_queues, link.tx_queues
        ),
        Some(libc::EPERM | libc::EACCES) => {
            format!("the kernel refuses to attach to {name}: {RIGHTS}")
        }
        Some(libc::ENODEV) => format!("{name} has gone"),
        Some(libc::ENOTCONN) => {
            format!("{name} is a veth whose other end has gone: make the pair anew")
        }
        _ => format!(
            "attaching to {name} failed: {detail}; `dmesg` may say more (an MTU too large for the driver, \
             too many queues)"
        ),
    }
}

fn driver(link: &Link) -> &str {
    link.driver.as_deref().unwrap_or("unknown")
}

/// Somebody was there first: on the interface itself, or on the one that it is a port of.
fn taken(link: &Link, name_of: &dyn Fn(u32) -> Option<String>) -> String {
    let name = &link.name;
    if link.xdp.is_empty() && link.master.is_some() {
        return format!(
            "the bond or bridge that {name} is a port of has an XDP program: only one of the two may have one; \
             `bpftool net` shows it, `ip link set dev NAME xdp off` removes one that was attached with ip"
        );
    }
    let programs: Vec<String> = link.xdp.iter().map(|x| titled(x, name_of)).collect();
    format!(
        "another XDP program is attached to {name} ({}): `bpftool prog show id N` says whose, `bpftool link` \
         what holds it; `ip link set dev {name} xdp off` removes one that was attached with ip",
        if programs.is_empty() { "id unknown".to_owned() } else { programs.join(", ") }
    )
}

/// A program for people: `id 7, name xdp_pass`.
pub(crate) fn titled(xdp: &AttachedXdp, name_of: &dyn Fn(u32) -> Option<String>) -> String {
    let id = xdp.program;
    name_of(id).map_or_else(|| format!("id {id}"), |name| format!("id {id}, name {name}"))
}

fn no_native(link: &Link) -> String {
    let hint = match link.kind.as_str() {
        "vlan" => "attach to the interface below it: tags are parsed there",
        "macvlan" | "ipvlan" => "attach to the interface below it",
        "bond" => {
            "attach to the bond's ports, or use a mode that has XDP (active-backup, balance-rr, balance-xor, \
             802.3ad)"
        }
        "bridge" => "attach to the bridge's ports",
        _ if driver(link) == "virtio_net" => {
            "the host joins packets for this guest: `ethtool -K NAME rx-gro-hw off`, or have the host offer no \
             guest offloads; `xdp_mode: generic` works as it is, and is slower"
        }
        _ => "`xdp_mode: generic` works with every driver, and is slower",
    };
    format!("{} (a {}, driver {}) has no native XDP: {hint}", link.name, link.kind, driver(link))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::AttachedMode;

    fn name_of(id: u32) -> Option<String> {
        (id == 77).then(|| "theirs".to_owned())
    }

    fn link(kind: &str) -> Link {
        Link::example(2, "eth0", kind, "e1000e")
    }

    #[track_caller]
    fn says(code: i32, link: &Link, words: &[&str]) {
        let text = explain(Some(code), "os error", link, XdpMode::Native, &name_of);
        for word in words {
            assert!(text.contains(word), "{word} is not in: {text}");
        }
    }

    #[test]
    fn each_hindrance_is_named_with_its_remedy() {
        says(libc::EOPNOTSUPP, &link("vlan"), &["no native XDP", "interface below it", "tags"]);
        says(libc::EOPNOTSUPP, &link("bond"), &["bond's ports", "active-backup"]);
        says(libc::EOPNOTSUPP, &link("ethernet"), &["e1000e", "xdp_mode: generic"]);
        let virtio = Link { driver: Some("virtio_net".to_owned()), ..link("ethernet") };
        says(libc::EOPNOTSUPP, &virtio, &["rx-gro-hw off"]);
        let jumbo = Link { mtu: 9000, ..link("ethernet") };
        says(libc::EINVAL, &jumbo, &["MTU of 9000", "ip link set dev eth0 mtu 3498"]);
        says(libc::EINVAL, &link("ethernet"), &["lro off"]);
        says(libc::ERANGE, &Link { mtu: 9000, ..link("veth") }, &["peer", "mtu 3498"]);
        says(libc::ENOMEM, &link("ethernet"), &["4 receive", "ethtool -L eth0 combined"]);
        says(libc::EPERM, &link("ethernet"), &["eth0"]);
        says(libc::EOPNOTSUPP, &link("bridge"), &["bridge's ports"]);
        says(libc::ENOTCONN, &link("veth"), &["other end has gone"]);
        says(libc::ENODEV, &link("veth"), &["has gone"]);
        says(libc::EIO, &link("ethernet"), &["os error", "dmesg"]);
    }

    #[test]
    fn who_was_there_first() {
        let xdp = vec![AttachedXdp { mode: AttachedMode::Generic, program: 77 }];
        says(libc::EEXIST, &Link { xdp, ..link("ethernet") }, &["id 77, name theirs", "xdp off"]);
        says(libc::EEXIST, &Link { master: Some(9), ..link("ethernet") }, &["port of", "only one"]);
        says(libc::EBUSY, &link("ethernet"), &["id unknown"]);
        let generic =
            explain(Some(libc::EOPNOTSUPP), "", &link("ethernet"), XdpMode::Generic, &name_of);
        assert!(!generic.contains("xdp_mode: generic"), "{generic}");
    }
}
