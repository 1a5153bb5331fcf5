//! Programs on interfaces, through links that are pinned: they stay when the daemon ends, and are
//! replaced in one step when it brings another program.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use abi::limits::feature;
use aya::programs::{
    ProgramError, XdpMode as AyaMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};
use config::model::{DesiredState, Interface, InterfaceSelect, Roles, SynProxy, XdpMode};

use crate::{
    datapath::bpf::Bpf,
    links::{AttachedMode, Link, hindrance},
    refusal::chain,
    view::{Attachment, InterfaceView},
};

/// Which interface gets what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    /// `None`: it is named and does not exist.
    pub(crate) link: Option<Link>,
    pub(crate) mode: XdpMode,
    pub(crate) roles: Roles,
    /// Bits of the program's load-time constant.
    pub(crate) features: u32,
}

/// The interfaces that the configuration names or matches; the first entry that fits an interface
/// counts.
pub(crate) fn wanted(state: &DesiredState, links: &BTreeMap<u32, Link>) -> Vec<Wanted> {
    let mut out: Vec<Wanted> = Vec::new();
    for Interface { select, xdp_mode, roles } in &state.interfaces {
        let mut add = |name: &str, link: Option<&Link>| {
            if out.iter().all(|w| w.name != name) {
                let (name, link) = (name.to_owned(), link.cloned());
                let features = features(*roles, &state.prefilter.syn_proxy);
                out.push(Wanted { name, link, mode: *xdp_mode, roles: *roles, features });
            }
        };
        match select {
            InterfaceSelect::Name(name) => add(name, links.values().find(|l| l.name == *name)),
            InterfaceSelect::Match(pattern) => {
                for link in links.values().filter(|l| config::glob::matches(pattern, &l.name, None))
                {
                    add(&link.name, Some(link));
                }
            }
        }
    }
    out
}

/// Bits of the program's load-time constant for these roles.
pub(super) const fn features(roles: Roles, proxy: &SynProxy) -> u32 {
    let proxied = roles.prefilter && !proxy.ports.is_empty();
    (if roles.prefilter { feature::PREFILTER } else { 0 })
        | (if proxied { feature::SYN_PROXY } else { 0 })
        | (if proxied && proxy.drop_stray_acks { feature::STRAY_ACKS } else { 0 })
        | (if roles.balance { feature::BALANCE } else { 0 })
        | (if roles.decap { feature::DECAP } else { 0 })
        | feature::EVENTS
}

/// What this process has attached, or taken over, by interface index. What the kernel tells of an
/// interface does not say so at once: attaching a BPF link is not announced.
pub(super) type Held = BTreeMap<u32, XdpMode>;

/// Attaches what is wanted and detaches everything else that is pinned in `pins`.
pub(super) fn attach_all(
    bpf: &mut Bpf,
    pins: &Path,
    wanted: &[Wanted],
    held: &mut Held,
) -> Vec<InterfaceView> {
    let indexes = || wanted.iter().filter_map(|w| w.link.as_ref()).map(|l| l.index);
    held.retain(|index, _| indexes().any(|i| i == *index));
    for entry in fs::read_dir(pins).into_iter().flatten().flatten() {
        let path = entry.path();
        let own = entry.file_name().to_string_lossy().starts_with("xdp-");
        if own && !indexes().any(|index| path == pin(pins, index)) {
            detach(&path);
        }
    }
    wanted
        .iter()
        .map(|want| {
            let attached = match &want.link {
                None => Attachment::Failed(format!(
                    "there is no interface {}; `ip link` lists those that there are",
                    want.name
                )),
                Some(link) => attach(bpf, &pin(pins, link.index), link, want, held),
            };
            InterfaceView {
                name: want.name.clone(),
                ifindex: want.link.as_ref().map(|l| l.index),
                wanted: want.mode,
                roles: want.roles,
                attached,
            }
        })
        .collect()
}

/// Where the link of an interface is pinned.
pub(super) fn pin(pins: &Path, index: u32) -> PathBuf {
    pins.join(format!("xdp-{index}"))
}

/// Unpins a link, which detaches its program: nobody else holds it.
fn detach(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => tracing::info!(link = %path.display(), "detached"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(link = %path.display(), %error, "cannot detach"),
    }
}

fn attach(bpf: &mut Bpf, pin: &Path, link: &Link, want: &Wanted, held: &mut Held) -> Attachment {
    // `auto` is native, or an error that says why not.
    let (mode, done) = match want.mode {
        XdpMode::Auto | XdpMode::Native => (XdpMode::Native, Attachment::Native),
        XdpMode::Generic => (XdpMode::Generic, Attachment::Generic),
    };
    let in_mode = held.get(&link.index).map_or_else(|| in_mode(link, mode), |held| *held == mode);
    match try_attach(bpf, pin, link, want, in_mode) {
        Ok(()) => {
            held.insert(link.index, mode);
            done
        }
        Err(why) => {
            held.remove(&link.index);
            Attachment::Failed(why)
        }
    }
}

/// `in_mode`: a link that is pinned for this interface is in the wanted mode.
fn try_attach(
    bpf: &mut Bpf,
    pin: &Path,
    link: &Link,
    want: &Wanted,
    in_mode: bool,
) -> Result<(), String> {
    let program = bpf.program(want.features).map_err(|e| e.to_string())?;
    let id = program.info().map_err(|e| chain(&e))?.id();
    if let Ok(pinned) = PinnedLink::from_pin(pin) {
        if in_mode {
            let old = FdLink::from(pinned);
            if old.info().is_ok_and(|info| info.program_id() == id) {
                // Dropping our descriptor leaves the pin's.
                return Ok(());
            }
            let replaced = XdpLink::try_from(old)
                .map_err(|e| chain(&e))
                .and_then(|old| program.attach_to_link(old).map_err(|e| chain(&e)));
            match replaced {
                Ok(id) => {
                    // The program would detach it when it goes; the pin keeps it.
                    drop(program.take_link(id));
                    tracing::info!(interface = link.name, "program replaced");
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(interface = link.name, error, "attaching anew");
                    detach(pin);
                }
            }
        } else {
            // The other mode, or a link whose interface has gone and come back under this number.
            drop(pinned);
            detach(pin);
        }
    }
    let mode = match want.mode {
        XdpMode::Auto | XdpMode::Native => AyaMode::Driver,
        XdpMode::Generic => AyaMode::Skb,
    };
    let made =
        program.attach_to_if_index(link.index, mode).map_err(|e| explain(&e, link, want.mode))?;
    let made = program.take_link(made).map_err(|e| chain(&e))?;
    let made = FdLink::try_from(made).map_err(|_| {
        format!(
            "the kernel attaches to {} only without a BPF link, which would not outlive the daemon; \
             the kernel's log says why",
            link.name
        )
    })?;
    made.pin(pin).map_err(|e| format!("cannot pin {}: {}", pin.display(), chain(&e)))?;
    tracing::info!(interface = link.name, ?mode, "attached");
    Ok(())
}

/// Whether a program is attached there in this mode.
fn in_mode(link: &Link, mode: XdpMode) -> bool {
    link.xdp.iter().any(|x| match mode {
        XdpMode::Auto | XdpMode::Native => x.mode == AttachedMode::Native,
        XdpMode::Generic => x.mode == AttachedMode::Generic,
    })
}

/// What stands in the way, and the command that mends it.
fn explain(error: &ProgramError, link: &Link, mode: XdpMode) -> String {
    let code = match error {
        ProgramError::SyscallError(call) => call.io_error.raw_os_error(),
        _ => None,
    };
    hindrance::explain(code, &chain(error), link, mode, &hindrance::program_name)
}
