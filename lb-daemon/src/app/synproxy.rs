//! Whether the kernel can do what the SYN proxy needs of it.

use std::{fs, io};

use aya::{programs::ProgramType, sys::is_helper_supported};
use aya_obj::generated::bpf_func_id::{self, BPF_FUNC_tcp_gen_syncookie, BPF_FUNC_xdp_load_bytes};
use config::model::SynProxy;

/// Of the network namespace that this process runs in.
const SYSCTL: &str = "/proc/sys/net/ipv4/tcp_syncookies";

/// Why there cannot be a SYN proxy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error(
        "prefilter.syn_proxy: net.ipv4.tcp_syncookies is 0, and the kernel would not take connections that were \
         answered with cookies; `sysctl -w net.ipv4.tcp_syncookies=1` has them answered while a listener's queue is \
         full, 2 always"
    )]
    Off,
    #[error(
        "prefilter.syn_proxy: the kernel has no SYN cookies ({SYSCTL}: {0}); it needs CONFIG_SYN_COOKIES"
    )]
    NoCookies(String),
    #[error(
        "prefilter.syn_proxy: the kernel does not make SYN cookies for XDP programs ({0} is missing); it needs \
         Linux 5.18 or later: take `syn_proxy` out"
    )]
    NoHelper(&'static str),
}

/// # Errors
/// What stands in the way of this SYN proxy.
pub(super) fn check(proxy: &SynProxy) -> Result<(), Unfit> {
    if proxy.ports.is_empty() {
        return Ok(());
    }
    cookies(fs::read_to_string(SYSCTL))?;
    for (helper, name) in [
        (BPF_FUNC_tcp_gen_syncookie, "bpf_tcp_gen_syncookie"),
        (BPF_FUNC_xdp_load_bytes, "bpf_xdp_load_bytes"),
    ] {
        has(helper, name)?;
    }
    Ok(())
}

/// A probe that fails says nothing: loading the program will.
fn has(helper: bpf_func_id, name: &'static str) -> Result<(), Unfit> {
    match is_helper_supported(ProgramType::Xdp, helper) {
        Ok(false) => Err(Unfit::NoHelper(name)),
        Ok(true) | Err(_) => Ok(()),
    }
}

fn cookies(sysctl: io::Result<String>) -> Result<(), Unfit> {
    match sysctl {
        Ok(text) if text.trim() == "0" => Err(Unfit::Off),
        Ok(_) => Ok(()),
        Err(error) => Err(Unfit::NoCookies(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_must_have() {
        for on in ["1\n", "2\n"] {
            assert_eq!(cookies(Ok(on.to_owned())), Ok(()));
        }
        let off = cookies(Ok("0\n".to_owned())).unwrap_err().to_string();
        assert!(off.contains("sysctl -w net.ipv4.tcp_syncookies=1"), "{off}");
        let none = cookies(Err(io::ErrorKind::NotFound.into())).unwrap_err().to_string();
        assert!(none.contains("CONFIG_SYN_COOKIES"), "{none}");
        assert_eq!(check(&SynProxy::default()), Ok(()), "nothing is asked for");
    }
}
