//! For build scripts: builds the BPF programs and leaves each crate's object file in `OUT_DIR`.
//!
//! The crate in the directory `xdp` is the package `lb-xdp` and becomes `xdp.o`; that in `bench/ebpf` is
//! `lb-bench-ebpf` and becomes `bench-ebpf.o`. Libraries embed them with
//! `aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xdp.o"))`, so that whoever installs a
//! package needs no compiler. A crate without `src/main.rs` has no programs yet and gets no object.
//!
//! A cargo call of its own does the work, because the BPF target needs another compiler than the
//! rest: Debian's, which comes with a `core` for that target, or else a nightly of rustup's, which
//! builds `core` from source. `LB_EBPF_COMPILER=debian|nightly` insists on one of them.
//!
//! This crate does not choose compiler flags for the host and installs nothing: `make setup` does.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The target of the programs; the appliance runs on little-endian machines.
const TARGET: &str = "bpfel-unknown-none";

const WHAT_TO_INSTALL: &str = "\
no compiler for BPF programs was found. `make setup` installs what is missing on Debian 12 and later: \
the packages rustc-web and libstd-rust-web-dev-bpf, the llvm-N-dev of the same LLVM, and bpf-linker. \
Elsewhere: `rustup toolchain install nightly --component rust-src` and `cargo install bpf-linker`, \
whose LLVM must be that compiler's or newer.";

/// Builds the programs of the crates in these directories of the workspace; ends the process with a
/// message when that fails. The whole `main` of a build script.
pub fn main(directories: &[&str]) {
    if let Err(fault) = run(directories) {
        eprintln!("error: {fault}");
        std::process::exit(1);
    }
}

fn run(directories: &[&str]) -> Result<(), String> {
    let workspace = workspace()?;
    let out = PathBuf::from(variable("OUT_DIR")?);
    watch(&workspace, directories);
    let crates: Vec<String> = directories
        .iter()
        .filter(|directory| workspace.join(directory).join("src/main.rs").is_file())
        .map(|directory| directory.replace('/', "-"))
        .collect();
    if crates.is_empty() {
        return Ok(());
    }

    let compiler = Compiler::find()?;
    let target_dir = target_dir(&out);
    build(&compiler, &workspace, &target_dir, &crates)?;
    for name in crates {
        let built = target_dir.join(TARGET).join("release").join(format!("lb-{name}"));
        let object = out.join(format!("{name}.o"));
        copy(&built, &object).map_err(|error| {
            format!("cannot copy {} to {}: {error}", built.display(), object.display())
        })?;
    }
    Ok(())
}

/// Which compiler makes the programs.
enum Compiler {
    /// Debian's rustc, whose `core` for the target is precompiled.
    Debian { rustc: PathBuf },
    /// A nightly of rustup's with the component rust-src.
    Nightly { rustc: PathBuf },
}

impl Compiler {
    fn find() -> Result<Self, String> {
        let wanted = env::var("LB_EBPF_COMPILER").unwrap_or_default();
        let found = match wanted.as_str() {
            "" => Self::debian().or_else(Self::nightly),
            "debian" => Self::debian(),
            "nightly" => Self::nightly(),
            other => {
                return Err(format!(
                    "LB_EBPF_COMPILER is \"{other}\"; debian or nightly is allowed"
                ));
            }
        };
        if !on_path("bpf-linker") {
            return Err(format!("bpf-linker is missing: {WHAT_TO_INSTALL}"));
        }
        found.ok_or_else(|| WHAT_TO_INSTALL.to_owned())
    }

    fn debian() -> Option<Self> {
        let rustc = PathBuf::from("/usr/bin/rustc");
        if !rustc.is_file() {
            return None;
        }
        let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"]))?;
        let core = Path::new(&sysroot).join("lib/rustlib").join(TARGET).join("lib");
        core.is_dir().then_some(Self::Debian { rustc })
    }

    fn nightly() -> Option<Self> {
        let which = ["which", "--toolchain", "nightly", "rustc"];
        let rustc = PathBuf::from(output(Command::new("rustup").args(which))?);
        let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"]))?;
        let source = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
        source.is_dir().then_some(Self::Nightly { rustc })
    }

    /// The cargo call that builds with this compiler, all but what is to be built.
    fn cargo(&self) -> Command {
        match self {
            Self::Debian { rustc } => {
                let mut cargo =
                    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                scrub(&mut cargo);
                // aya-ebpf uses an unstable feature, and Debian's compiler is a stable one.
                cargo.arg("build").env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Self::Nightly { rustc } => {
                let mut cargo = Command::new(rustc.with_file_name("cargo"));
                scrub(&mut cargo);
                cargo.args(["build", "-Z", "build-std=core"]).env("RUSTC", rustc);
                cargo
            }
        }
    }
}

/// Builds the binaries of `crates`; cargo's messages go to the build script's own error output, which
/// cargo shows when it fails.
fn build(
    compiler: &Compiler,
    workspace: &Path,
    target_dir: &Path,
    crates: &[String],
) -> Result<(), String> {
    let mut cargo = compiler.cargo();
    cargo
        .current_dir(workspace)
        .args(["--release", "--all-features", "--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .env("PATH", search_path())
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            concat!(
                "-Clinker=bpf-linker\x1f-Cdebuginfo=2\x1f-Ctarget-cpu=v3\x1f-Clink-arg=--btf",
                // Packet headers are not aligned; without this each word is loaded byte by byte.
                "\x1f-Clink-arg=--cpu-features=+allows-misaligned-mem-access"
            ),
        )
        // One code generation unit for what is inlined too, or programs outgrow the 512-byte stack.
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .stdout(Stdio::null());
    for name in crates {
        cargo.args(["-p", &format!("lb-{name}"), "--bin", &format!("lb-{name}")]);
    }
    let status = cargo.status().map_err(|error| format!("cannot run {cargo:?}: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err("the BPF programs do not build; cargo's messages stand above".to_owned())
    }
}

/// Takes away what the outer cargo says to its own compilers (clippy's wrapper, host flags, profiles),
/// and leaves what concerns the machine: proxies, registries, the job server.
fn scrub(cargo: &mut Command) {
    const MACHINE: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const COMPILERS: [&str; 9] = [
        "CLIPPY_ARGS",
        "HOST",
        "OUT_DIR",
        "RUSTC",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "TARGET",
    ];
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let of_cargo = name.starts_with("CARGO") || name.starts_with("RUSTC_");
        let of_machine = MACHINE.iter().any(|prefix| name.starts_with(prefix));
        if (of_cargo && !of_machine) || COMPILERS.contains(&name.as_ref()) {
            cargo.env_remove(name.as_ref());
        }
    }
}

/// Names what the objects are made from, so that a change elsewhere does not come here.
fn watch(workspace: &Path, directories: &[&str]) {
    println!("cargo:rerun-if-env-changed=LB_EBPF_COMPILER");
    println!("cargo:rerun-if-changed=build.rs");
    for file in ["Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", workspace.join(file).display());
    }
    for name in directories.iter().chain(&["abi"]) {
        for part in ["Cargo.toml", "src"] {
            let path = workspace.join(name).join(part);
            // What does not exist counts as changed each time.
            if path.exists() {
                println!("cargo:rerun-if-changed={}", path.display());
            }
        }
    }
}

/// `target/ebpf`: shared by all profiles, and not the directory that the outer cargo has locked.
fn target_dir(out: &Path) -> PathBuf {
    let profile = out.ancestors().find(|path| path.ends_with("build")).and_then(Path::parent);
    profile.and_then(Path::parent).unwrap_or(out).join("ebpf")
}

/// Copies only what differs: an object that stayed the same keeps its time of change.
fn copy(built: &Path, object: &Path) -> io::Result<()> {
    let new = fs::read(built)?;
    match fs::read(object) {
        Ok(old) if old == new => Ok(()),
        _ => fs::write(object, new),
    }
}

/// The nearest directory above the crate that is being built with a lock file.
fn workspace() -> Result<PathBuf, String> {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let top = manifest.ancestors().find(|path| path.join("Cargo.lock").is_file());
    top.map(Path::to_path_buf).ok_or_else(|| format!("no Cargo.lock above {}", manifest.display()))
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}

/// `PATH` and behind it where `cargo install` puts bpf-linker.
fn search_path() -> OsString {
    let mut paths: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    paths.extend(home.map(|home| home.join("bin")));
    env::join_paths(paths).unwrap_or_else(|_| env::var_os("PATH").unwrap_or_default())
}

fn on_path(program: &str) -> bool {
    env::split_paths(&search_path()).any(|directory| directory.join(program).is_file())
}

/// The trimmed output of a command that succeeds.
fn output(command: &mut Command) -> Option<String> {
    let done = command.stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(done.stdout).ok()?;
    done.status.success().then(|| text.trim().to_owned())
}
