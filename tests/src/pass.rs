//! An XDP program of two instructions that passes every packet.
//!
//! `XDP_TX` on a veth wakes the other end only if that has an XDP program of its own
//! (`veth_xdp_flush` of `drivers/net/veth.c` looks for one). With GRO alone frames wait there until
//! something else is sent the same way.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    process::Command,
};

use anyhow::Context as _;
use aya_obj::generated::{
    BPF_ALU64, BPF_EXIT, BPF_JMP, BPF_K, BPF_MOV, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type,
};

use crate::netns;

/// `BPF_F_XDP_HAS_FRAGS`: it takes frames in several buffers, and so does not bound the MTU.
const FRAGS: u32 = 1 << 5;

/// Verdict of `enum xdp_action` in `linux/bpf.h`.
const XDP_PASS: i32 = 2;

/// The program, in the kernel.
#[derive(Debug)]
pub struct Pass(OwnedFd);

impl Pass {
    /// Loads it.
    ///
    /// # Errors
    ///
    /// Not root.
    pub fn load() -> anyhow::Result<Self> {
        let mut verdict = bpf_insn { code: (BPF_ALU64 | BPF_MOV | BPF_K) as u8, ..empty() };
        verdict.imm = XDP_PASS;
        let code = [verdict, bpf_insn { code: (BPF_JMP | BPF_EXIT) as u8, ..empty() }];
        let licence = c"Apache-2.0";

        let mut attr = zeroed();
        // SAFETY: these are the fields of BPF_PROG_LOAD, all plain integers.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
        load.insns = code.as_ptr() as u64;
        load.insn_cnt = code.len() as u32;
        load.prog_flags = FRAGS;
        load.license = licence.as_ptr() as u64;
        let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("cannot load an XDP program")?;
        // SAFETY: the kernel has just opened it for us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Attaches it natively to interfaces of the namespace that `enter` enters. It goes with them.
    ///
    /// # Errors
    ///
    /// `directory` is not in a BPF file system, or there is no such interface.
    pub fn attach(
        &self,
        namespace: &netns::Namespace,
        interface: &str,
        directory: &Path,
    ) -> anyhow::Result<()> {
        let path = directory.join(format!("pass-{interface}"));
        self.pin(&path).with_context(|| format!("cannot pin {}", path.display()))?;
        let attached = namespace.enter(|| {
            netns::run(
                Command::new("ip")
                    .args(["link", "set", "dev", interface, "xdpdrv", "pinned"])
                    .arg(&path),
            )
        })?;
        fs::remove_file(&path)?;
        attached
    }

    fn pin(&self, path: &Path) -> io::Result<()> {
        let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
        let mut attr = zeroed();
        // SAFETY: these are the fields of BPF_OBJ_PIN, all plain integers.
        let pin = unsafe { &mut attr.__bindgen_anon_4 };
        pin.pathname = path.as_ptr() as u64;
        pin.bpf_fd = self.0.as_raw_fd() as u32;
        bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
    }
}

fn empty() -> bpf_insn {
    bpf_insn {
        code: 0,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm: 0,
    }
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of plain integers, for all of which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is as large as said, and what it points to lives until the call is over.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as i32,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
