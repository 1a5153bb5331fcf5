//! The kernel and its settings.

use config::model::DesiredState;

use super::{Check, Facts};
use crate::refusal::RIGHTS;

/// Programs on frames in several buffers.
const OLDEST: (u32, u32) = (5, 18);
/// TCX.
const TCX: (u32, u32) = (6, 6);

pub(super) fn checks(facts: &Facts, state: &DesiredState) -> Vec<Check> {
    let mut out = vec![kernel(facts), rights(facts), bpffs(facts)];
    if !facts.btf {
        out.push(Check::warn(
            "kernel",
            "types",
            "/sys/kernel/btf/vmlinux is not there",
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y, as distributions have",
        ));
    }
    let policies = !state.endpoints.is_empty() || !state.policies.is_empty();
    if policies && version(&facts.release).is_some_and(|v| v < TCX) {
        out.push(Check::warn(
            "kernel",
            "tcx",
            format!("{} has no TCX, which identity policy attaches with", facts.release),
            "start the daemon with `--tc clsact`, or use kernel 6.6 or later",
        ));
    }
    match facts.jit {
        Some(0) => out.push(Check::warn(
            "kernel",
            "jit",
            "programs are interpreted: several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        )),
        Some(_) => out.push(Check::ok("kernel", "jit", "on")),
        None => {}
    }
    if let Some(clock) = &facts.clocksource {
        out.push(match clock.as_str() {
            "hpet" | "acpi_pm" | "jiffies" | "refined-jiffies" | "pit" => Check::warn(
                "kernel",
                "clock",
                format!("{clock}: reading it takes a microsecond or does not tell enough"),
                "boot without `tsc=unstable` or `clocksource=`; in a guest, have the host offer a stable TSC",
            ),
            _ => Check::ok("kernel", "clock", clock.clone()),
        });
    }
    out.extend(neighbours(facts, state));
    out
}

fn kernel(facts: &Facts) -> Check {
    match version(&facts.release) {
        Some(v) if v < OLDEST => Check::fail(
            "kernel",
            "version",
            format!("{}: programs on frames in several buffers do not load", facts.release),
            format!("use kernel {}.{} or later", OLDEST.0, OLDEST.1),
        ),
        _ => Check::ok("kernel", "version", facts.release.clone()),
    }
}

/// Major and minor number of a release.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn rights(facts: &Facts) -> Check {
    if facts.may_load {
        Check::ok("process", "rights", "may load and attach programs")
    } else {
        Check::warn("process", "rights", "may not load or attach programs", RIGHTS)
    }
}

fn bpffs(facts: &Facts) -> Check {
    let (path, good) = &facts.bpffs;
    if *good {
        return Check::ok("kernel", "bpffs", path.clone());
    }
    Check::fail(
        "kernel",
        "bpffs",
        format!("{path} is not on a BPF file system: nothing would outlive the daemon"),
        "mount -t bpf bpf /sys/fs/bpf; in a network namespace, `nsenter --net=/run/netns/NAME` in the place of \
         `ip netns exec`, which hides it",
    )
}

/// Room in the neighbour tables: each backend on a network of this machine takes an entry.
fn neighbours(facts: &Facts, state: &DesiredState) -> Vec<Check> {
    let backends = || state.services.values().flat_map(|s| &s.backends).map(|b| b.address);
    let addresses: std::collections::BTreeSet<_> = backends().collect();
    let mut out = Vec::new();
    for (family, v6) in [("ipv4", false), ("ipv6", true)] {
        let count = addresses.iter().filter(|a| a.is_ipv6() == v6).count();
        let Some(most) = facts.neighbours[usize::from(v6)] else { continue };
        if count == 0 {
            continue;
        }
        let found = format!("{count} backends, room for {most} neighbours");
        out.push(if count as u64 * 2 > u64::from(most) {
            Check::warn(
                format!("sysctl {family}"),
                "neighbours",
                found,
                format!(
                    "sysctl -w net.{family}.neigh.default.gc_thresh3={}",
                    (count * 4).max(4096)
                ),
            )
        } else {
            Check::ok(format!("sysctl {family}"), "neighbours", found)
        });
    }
    out
}
