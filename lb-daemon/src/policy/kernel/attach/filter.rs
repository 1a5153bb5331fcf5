//! Filters of a clsact queueing discipline, for kernels without TCX.
//!
//! A filter is nobody's: it stays until it is detached. The program that it has is pinned as
//! `DIR/links/cls-INDEX-in` and `-out`, which says where there are filters of ours. The queueing discipline
//! stays: others may have filters there.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use abi::policy::Way;
use aya::programs::{
    SchedClassifier,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};
use nix::net::if_::if_indextoname;

use super::{Kernel, chain, hook, role};

/// In front of whatever has another priority.
const PRIORITY: u16 = 1;
/// Ours among filters of the same priority: `lb` in ASCII.
const HANDLE: TcHandle = TcHandle::new(0x6c62, 1);
const PREFIX: &str = "cls-";

/// Attaches both programs; filters of ours that are there get them, each in one step.
pub(super) fn attach(
    kernel: &mut Kernel,
    links: &Path,
    (name, index, host): (&str, u32, bool),
) -> Result<(), String> {
    // It may be there already; if it cannot be made, attaching says why.
    let made = tc::qdisc_add_clsact(name);
    for way in [Way::Out, Way::In] {
        let program = kernel.program(role(way, host)).map_err(|error| error.to_string())?;
        put(program, name, way).map_err(|why| match &made {
            Err(error) => format!("attaching policy to {name} by clsact failed: {why} ({error})"),
            Ok(()) => format!("attaching policy to {name} by clsact failed: {why}"),
        })?;
        let pin = pin(links, index, way);
        remove(&pin);
        program
            .pin(&pin)
            .map_err(|error| format!("cannot pin {}: {}", pin.display(), chain(&error)))?;
        tracing::info!(interface = name, ?way, "policy attached by clsact");
    }
    Ok(())
}

/// In the place of our filter, or as a new one.
fn put(program: &mut SchedClassifier, name: &str, way: Way) -> Result<(), String> {
    let old = SchedClassifierLink::attached(name, hook(way), PRIORITY, HANDLE, None);
    let old = old.map_err(|error| error.to_string())?;
    let link = match program.attach_to_link(old) {
        Ok(link) => link,
        Err(_) => {
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, ..NlOptions::default() };
            program
                .attach_with_options(name, hook(way), TcAttachOptions::Netlink(options))
                .map_err(|error| chain(&error))?
        }
    };
    let link = program.take_link(link).map_err(|error| chain(&error))?;
    // It would detach the filter when it goes; it is but a few numbers.
    std::mem::forget(link);
    Ok(())
}

/// Interfaces with filters of ours.
pub(super) fn attached(links: &Path) -> BTreeSet<u32> {
    let entries = fs::read_dir(links).into_iter().flatten().flatten();
    let index = |name: &str| name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok();
    entries.filter_map(|entry| index(&entry.file_name().to_string_lossy())).collect()
}

/// Detaches both filters from an interface, if they are there.
pub(super) fn detach(links: &Path, index: u32) {
    for way in [Way::In, Way::Out] {
        let pin = pin(links, index, way);
        if !pin.exists() {
            continue;
        }
        // An interface that has gone took its filters along.
        if let Ok(name) = if_indextoname(index)
            && let Ok(name) = name.into_string()
            && let Ok(link) =
                SchedClassifierLink::attached(&name, hook(way), PRIORITY, HANDLE, None)
            && let Err(error) = aya::programs::links::Link::detach(link)
        {
            tracing::warn!(interface = name, error = chain(&error), "cannot detach policy");
        }
        remove(&pin);
    }
}

fn pin(links: &Path, index: u32, way: Way) -> PathBuf {
    links.join(match way {
        Way::In => format!("{PREFIX}{index}-in"),
        Way::Out => format!("{PREFIX}{index}-out"),
    })
}

fn remove(pin: &Path) {
    if let Err(error) = fs::remove_file(pin)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(pin = %pin.display(), %error, "cannot remove");
    }
}
