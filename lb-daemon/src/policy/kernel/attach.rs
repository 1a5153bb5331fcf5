//! Programs on the interfaces of endpoints: they stay when the daemon ends, stand beside the programs of
//! others, in front of those that are there already, and are replaced in one step.
//!
//! By TCX links that are pinned where the kernel has them (6.6), else as filters of a clsact queueing
//! discipline ([`filter`]).

mod filter;

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
    /// Both directions, by filters of a clsact queueing discipline.
    Clsact,
    /// Why not, and what mends it.
    Failed(String),
}

impl Attachment {
    /// Whether policy is enforced.
    #[must_use]
    pub const fn is_attached(&self) -> bool {
        !matches!(self, Self::Failed(_))
    }
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// By TCX where the kernel has it, else by clsact.
    #[default]
    Auto,
    /// By TCX or not at all.
    Tcx,
    /// By clsact.
    Clsact,
}

/// Why a program is not attached.
enum Refused {
    NoTcx,
    Other(String),
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

/// Attaches both programs to an interface; what is pinned there goes on with them. `host`: it is this machine's
/// own, so that what it receives comes in.
#[must_use]
pub fn attach(
    kernel: &mut Kernel,
    links: &Path,
    name: &str,
    index: u32,
    host: bool,
    method: Method,
) -> Attachment {
    let done = match method {
        Method::Clsact => Err(Refused::NoTcx),
        Method::Auto | Method::Tcx => {
            let mut ways = [Way::Out, Way::In].into_iter();
            ways.try_for_each(|way| attach_way(kernel, links, (name, index, host), way))
        }
    };
    match done {
        Ok(()) => {
            filter::detach(links, index);
            Attachment::Tcx
        }
        Err(Refused::NoTcx) if method != Method::Tcx => {
            match filter::attach(kernel, links, (name, index, host)) {
                Ok(()) => {
                    // Only now: there is no moment without a program.
                    for way in [Way::Out, Way::In] {
                        remove(&pin(links, index, way));
                    }
                    Attachment::Clsact
                }
                Err(why) => Attachment::Failed(why),
            }
        }
        Err(Refused::NoTcx) => Attachment::Failed(format!(
            "{name}: this kernel has no TCX, which is what `--tc tcx` asks for; it came with Linux 6.6"
        )),
        Err(Refused::Other(why)) => Attachment::Failed(why),
    }
}

/// The program at the hook of an endpoint's interface for this way.
const fn role(way: Way, host: bool) -> Way {
    if host { way.back() } else { way }
}

/// As the host's side of an endpoint's interface sees it.
const fn hook(way: Way) -> TcAttachType {
    match way {
        Way::In => TcAttachType::Egress,
        Way::Out => TcAttachType::Ingress,
    }
}

fn attach_way(
    kernel: &mut Kernel,
    links: &Path,
    (name, index, host): (&str, u32, bool),
    way: Way,
) -> Result<(), Refused> {
    let pin = pin(links, index, way);
    let program = kernel.program(role(way, host)).map_err(|error| error.to_string())?;
    let id = program.info().map_err(|error| chain(&error))?.id();
    let hook = hook(way);
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
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
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
    let pins: HashSet<PathBuf> = pins.collect();
    for index in filter::attached(links).difference(&keep.iter().copied().collect()) {
        filter::detach(links, *index);
    }
    for entry in fs::read_dir(links).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("tc-") && !pins.contains(&entry.path()) {
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

fn explain(error: &ProgramError, name: &str) -> Refused {
    let code = match error {
        ProgramError::SyscallError(call) => call.io_error.raw_os_error(),
        _ => None,
    };
    match code {
        // An interface that is there and a program that is loaded: what is not valid is the kind of link.
        Some(libc::EINVAL) => Refused::NoTcx,
        Some(libc::EPERM | libc::EACCES) => {
            Refused::Other(format!("the kernel refuses to attach to {name}: {RIGHTS}"))
        }
        _ => Refused::Other(format!("attaching policy to {name} failed: {}", chain(error))),
    }
}
