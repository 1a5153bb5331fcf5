//! The kernel's `bpf_sock_addr`: the only place that holds its pointer.
//!
//! The verifier rewrites each access by its offset and size, so every field is read and written whole
//! and volatile, and only fields of the program's own family are touched.

use core::{marker::PhantomData, ptr::addr_of_mut};

use abi::{addr::Addr, sock::Peer};
use aya_ebpf::{
    EbpfContext,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::bpf_get_socket_cookie,
    programs::SockAddrContext,
};

/// Where a family's addresses stand.
pub(crate) trait Sockaddr {
    /// Reads the address.
    ///
    /// # Safety
    /// `raw` is the context of a program of this family.
    unsafe fn read(raw: *mut bpf_sock_addr) -> Addr;

    /// Writes the address.
    ///
    /// # Safety
    /// As for [`Self::read`].
    unsafe fn write(raw: *mut bpf_sock_addr, addr: Addr);

    /// Reads what the socket is bound to: unspecified, if it is not.
    ///
    /// # Safety
    /// As for [`Self::read`].
    unsafe fn bound(raw: *mut bpf_sock_addr) -> Addr;

    /// Reads what a datagram is sent from, likewise.
    ///
    /// # Safety
    /// As for [`Self::read`]; the program's kind is `sendmsg`.
    unsafe fn sender(raw: *mut bpf_sock_addr) -> Addr;
}

/// The socket of a call.
///
/// # Safety
/// `raw` is the context of a program.
#[inline(always)]
unsafe fn socket(raw: *mut bpf_sock_addr) -> *mut bpf_sock {
    // SAFETY: the kernel's context, by the caller.
    unsafe { addr_of_mut!((*raw).__bindgen_anon_1.sk).read_volatile() }
}

/// `sockaddr_in`.
pub(crate) struct Inet4;
/// `sockaddr_in6`.
pub(crate) struct Inet6;

impl Sockaddr for Inet4 {
    #[inline(always)]
    unsafe fn read(raw: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the kernel's context, by the caller; this family has the field.
        Addr::v4(unsafe { addr_of_mut!((*raw).user_ip4).read_volatile() })
    }

    #[inline(always)]
    unsafe fn write(raw: *mut bpf_sock_addr, addr: Addr) {
        // SAFETY: as in `read`; the kernel lets programs write it.
        unsafe { addr_of_mut!((*raw).user_ip4).write_volatile(addr.as_v4_raw()) };
    }

    #[inline(always)]
    unsafe fn bound(raw: *mut bpf_sock_addr) -> Addr {
        // SAFETY: as in `read`; the verifier knows the socket to be one.
        Addr::v4(unsafe { addr_of_mut!((*socket(raw)).src_ip4).read_volatile() })
    }

    #[inline(always)]
    unsafe fn sender(raw: *mut bpf_sock_addr) -> Addr {
        // SAFETY: as in `read`; programs of this kind have the field, by the caller.
        Addr::v4(unsafe { addr_of_mut!((*raw).msg_src_ip4).read_volatile() })
    }
}

impl Sockaddr for Inet6 {
    #[inline(always)]
    unsafe fn read(raw: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the kernel's context, by the caller; this family has the fields.
        let word = |i: usize| unsafe { addr_of_mut!((*raw).user_ip6[i]).read_volatile() };
        Addr::from_words(word(0), word(1), word(2), word(3))
    }

    #[inline(always)]
    unsafe fn write(raw: *mut bpf_sock_addr, addr: Addr) {
        // SAFETY: as in `read`; the kernel lets programs write them.
        let put = |i: usize, word: u32| unsafe {
            addr_of_mut!((*raw).user_ip6[i]).write_volatile(word);
        };
        put(0, addr.hi() as u32);
        put(1, (addr.hi() >> 32) as u32);
        put(2, addr.lo() as u32);
        put(3, (addr.lo() >> 32) as u32);
    }

    #[inline(always)]
    unsafe fn bound(raw: *mut bpf_sock_addr) -> Addr {
        // SAFETY: as for IPv4.
        let word = |i: usize| unsafe { addr_of_mut!((*socket(raw)).src_ip6[i]).read_volatile() };
        Addr::from_words(word(0), word(1), word(2), word(3))
    }

    #[inline(always)]
    unsafe fn sender(raw: *mut bpf_sock_addr) -> Addr {
        // SAFETY: as for IPv4.
        let word = |i: usize| unsafe { addr_of_mut!((*raw).msg_src_ip6[i]).read_volatile() };
        Addr::from_words(word(0), word(1), word(2), word(3))
    }
}

/// One call of a process, with the address that it gave or is to be given.
pub(crate) struct Call<F> {
    ctx: SockAddrContext,
    family: PhantomData<F>,
}

impl<F: Sockaddr> Call<F> {
    #[inline(always)]
    pub(crate) const fn new(ctx: SockAddrContext) -> Self {
        Self { ctx, family: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn peer(&self) -> Peer {
        let raw = self.ctx.sock_addr;
        // SAFETY: `raw` is the context that the kernel called this program with; `F` is the family of
        // its attach type.
        let addr = unsafe { F::read(raw) };
        // SAFETY: as above. The port stands in the low half, in network byte order.
        let port = unsafe { addr_of_mut!((*raw).user_port).read_volatile() } as u16;
        Peer { addr, port }
    }

    #[inline(always)]
    pub(crate) fn set_peer(&self, peer: Peer) {
        let raw = self.ctx.sock_addr;
        // SAFETY: as in `peer`; these fields may be written.
        unsafe {
            F::write(raw, peer.addr);
            addr_of_mut!((*raw).user_port).write_volatile(u32::from(peer.port));
        }
    }

    /// What the socket is bound to.
    #[inline(always)]
    pub(crate) fn bound(&self) -> Addr {
        // SAFETY: as in `peer`.
        unsafe { F::bound(self.ctx.sock_addr) }
    }

    /// What a datagram is sent from: for programs at `sendmsg` alone, the kernel refuses others.
    #[inline(always)]
    pub(crate) fn sender(&self) -> Addr {
        // SAFETY: as in `peer`; a program of another kind is not loaded.
        unsafe { F::sender(self.ctx.sock_addr) }
    }

    /// Transport of the socket.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u8 {
        // SAFETY: as in `peer`.
        let protocol = unsafe { addr_of_mut!((*self.ctx.sock_addr).protocol).read_volatile() };
        u8::try_from(protocol).unwrap_or(0)
    }

    /// The kernel's number of the socket.
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: the kernel's own context, unchanged.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }
}
