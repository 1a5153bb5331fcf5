//! Programs at the socket, attached to a cgroup: processes in it reach services by their address.
//!
//! `connect` and `sendmsg` are given a backend's address and port in place of the service's, so no
//! packet is translated; `recvmsg` and `getpeername` are given the service's back, so the process
//! does not notice. What is not for a service, or finds no backend, stays as it is: no program here
//! refuses anything.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, asm_goto_with_outputs)]
#![expect(missing_docs, reason = "the macro makes items that cannot carry any")]
#![expect(unreachable_pub, reason = "the kernel is who reaches them")]

#[path = "../../xdp/src/constant.rs"]
#[expect(dead_code, reason = "the XDP program uses all of it")]
mod constant;
mod context;
#[path = "../../xdp/src/flat.rs"]
#[expect(dead_code, reason = "the XDP program uses all of it")]
mod flat;
mod maps;

use abi::{
    addr::Addr,
    hash,
    sock::{Peer, PeerEntry, PeerKey, translate},
};
use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{
    context::{Call, Inet4, Inet6, Sockaddr},
    maps::Maps,
};

/// The call goes on. Everything returns it.
const GO_ON: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&Call::<Inet4>::new(ctx))
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&Call::<Inet6>::new(ctx))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    send(&Call::<Inet4>::new(ctx))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    send(&Call::<Inet6>::new(ctx))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    restore(&Call::<Inet4>::new(ctx))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    restore(&Call::<Inet6>::new(ctx))
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    restore(&Call::<Inet4>::new(ctx))
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    restore(&Call::<Inet6>::new(ctx))
}

/// Each connection goes to a backend of its own.
#[inline(always)]
fn connect<F: Sockaddr>(call: &Call<F>) -> i32 {
    let random = u64::from(maps::random());
    redirect(call, call.bound(), random << 32 | random)
}

/// Datagrams of one socket go to one backend, as long as the ring stays: they may be of one
/// conversation.
#[inline(always)]
fn send<F: Sockaddr>(call: &Call<F>) -> i32 {
    redirect(call, call.sender(), hash::again(call.cookie()))
}

#[inline(always)]
fn redirect<F: Sockaddr>(call: &Call<F>, client: Addr, hash: u64) -> i32 {
    let service = call.peer();
    if let Some(backend) = translate(&Maps, client, service, call.protocol(), hash) {
        let key = PeerKey::new(call.cookie(), backend);
        maps::remember(&key, &PeerEntry::new(service));
        call.set_peer(backend);
    }
    GO_ON
}

#[inline(always)]
fn restore<F: Sockaddr>(call: &Call<F>) -> i32 {
    let backend: Peer = call.peer();
    if let Some(entry) = maps::recall(&PeerKey::new(call.cookie(), backend)) {
        call.set_peer(entry.service());
    }
    GO_ON
}

/// The licence under which the kernel takes the programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
