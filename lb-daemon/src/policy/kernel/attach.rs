//! Programs on the interfaces of endpoints, through TCX links that are pinned: they stay when the daemon
//! ends, stand beside the programs of others, and are replaced in one step.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use abi::policy::Way;
use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};

use super::Kernel;
use crate::refusal::{RIGHTS, chain};

/// What came of attaching to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Both directions, by TCX.
    Tcx,
    /// Why not, and what mends it.
    Failed(String),
}

/// Attaches both programs to an interface; what is pinned there goes on with them.
#[must_use]
pub fn attach(kernel: &mut Kernel, links: &Path, name: &str, index: u32) -> Attachment {
    for way in [Way::Out, Way::In] {
        if let Err(why) = attach_way(kernel, links, name, index, way) {
            return Attachment::Failed(why);
        }
    }
    Attachment::Tcx
}

fn attach_way(
    kernel: &mut Kernel,
    links: &Path,
    name: &str,
    index: u32,
    way: Way,
) -> Result<(), String> {
    let pin = pin(links, index, way);
    let program = kernel.program(way).map_err(|error| error.to_string())?;
    let id = program.info().map_err(|error| chain(&error))?.id();
    let hook = match way {
        // As the host's side sees it.
        Way::In => TcAttachType::Egress,
        Way::Out => TcAttachType::Ingress,
    };
    if let Ok(pinned) = PinnedLink::from_pin(&pin) {
        let old = FdLink::from(pinned);
        // The link itself would also say so when its interface has gone.
        let attached = SchedClassifier::query_tcx(name, hook)
            .is_ok_and(|(_, programs)| programs.iter().any(|program| program.id() == id));
        if attached && old.info().is_ok_and(|info| info.program_id() == id) {
            // Dropping our descriptor leaves the pin's.
            return Ok(());
        }
        let replaced = SchedClassifierLink::try_from(old)
            .map_err(|error| chain(&error))
            .and_then(|old| program.attach_to_link(old).map_err(|error| chain(&error)));
        match replaced {
            Ok(link) => {
                // The program would detach it when it goes; the pin keeps it.
                drop(program.take_link(link));
                return Ok(());
            }
            // An interface that has gone took its links along, and its number may be used again.
            Err(_) => remove(&pin),
        }
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let made =
        program.attach_with_options(name, hook, options).map_err(|error| explain(&error, name))?;
    let made = program.take_link(made).map_err(|error| chain(&error))?;
    let made = FdLink::try_from(made).map_err(|_| "the kernel gave no link".to_owned())?;
    made.pin(&pin).map_err(|error| format!("cannot pin {}: {}", pin.display(), chain(&error)))?;
    tracing::info!(interface = name, ?way, "policy attached");
    Ok(())
}

/// Detaches from all interfaces but these.
pub fn detach_all_but(links: &Path, keep: &[u32]) {
    let pins = keep.iter().flat_map(|&index| [Way::In, Way::Out].map(|way| pin(links, index, way)));
    let keep: HashSet<PathBuf> = pins.collect();
    for entry in fs::read_dir(links).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("tc-") && !keep.contains(&entry.path()) {
            remove(&entry.path());
        }
    }
}

fn pin(links: &Path, index: u32, way: Way) -> PathBuf {
    links.join(match way {
        Way::In => format!("tc-{index}-in"),
        Way::Out => format!("tc-{index}-out"),
    })
}

/// Unpins a link, which detaches its program: nobody else holds it.
fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => tracing::info!(link = %path.display(), "policy detached"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(link = %path.display(), %error, "cannot detach"),
    }
}

fn explain(error: &ProgramError, name: &str) -> String {
    let code = match error {
        ProgramError::SyscallError(call) => call.io_error.raw_os_error(),
        _ => None,
    };
    match code {
        Some(libc::EINVAL) => {
            format!("{name}: this kernel has no TCX; policy needs Linux 6.6 or later")
        }
        Some(libc::EPERM | libc::EACCES) => {
            format!("the kernel refuses to attach to {name}: {RIGHTS}")
        }
        _ => format!("attaching policy to {name} failed: {}", chain(error)),
    }
}
