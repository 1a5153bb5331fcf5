//! Which machine, kernel and build the figures come from.

use std::{collections::BTreeMap, fs, process::Command};

use serde::Serialize;

/// What figures depend on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// As the kernel names it.
    pub cpu: String,
    /// CPUs that are online.
    pub cpus: usize,
    /// Its version.
    pub kernel: String,
    /// Whether the kernel says that it runs under a hypervisor.
    pub virtual_machine: bool,
    /// What the kernel does about each flaw of the CPU that affects it.
    pub mitigations: BTreeMap<String, String>,
    /// Whether BPF programs are compiled, and hardened.
    pub bpf_jit: String,
    /// The commit that was built, with a `+` when files differ from it.
    pub commit: String,
    /// As it was called.
    pub command: String,
}

impl Machine {
    /// This one, now.
    #[must_use]
    pub fn this() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let jit = |name: &str| read(&format!("/proc/sys/net/core/bpf_jit_{name}"));
        Self {
            cpu: field("model name").unwrap_or_else(|| "unknown".to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            kernel: read("/proc/sys/kernel/osrelease"),
            virtual_machine: field("flags").is_some_and(|flags| flags.contains(" hypervisor")),
            mitigations: mitigations(),
            bpf_jit: format!("enable={} harden={}", jit("enable"), jit("harden")),
            commit: commit(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
        }
    }

    /// Two lines to stand above a table.
    #[must_use]
    pub fn lines(&self) -> String {
        let Self { cpu, cpus, kernel, virtual_machine, mitigations, bpf_jit, commit, command } =
            self;
        let kind = if *virtual_machine { "virtual machine" } else { "bare metal" };
        let mitigations: Vec<String> =
            mitigations.iter().map(|(name, what)| format!("{name}: {what}")).collect();
        format!(
            "{cpu}, {cpus} CPUs, {kind}; kernel {kernel}; BPF JIT {bpf_jit}; commit {commit}\n\
             mitigations: {}\ncommand: {command}",
            if mitigations.is_empty() { "none".to_owned() } else { mitigations.join("; ") }
        )
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn mitigations() -> BTreeMap<String, String> {
    let directory = "/sys/devices/system/cpu/vulnerabilities";
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let what = read(&format!("{directory}/{name}"));
            (what != "Not affected").then_some((name, what))
        })
        .collect()
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let done = Command::new("git").args(arguments).output().ok()?;
        done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let clean =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| s.is_empty());
    if clean { commit } else { commit + "+" }
}
