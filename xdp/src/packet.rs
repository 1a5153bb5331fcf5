//! The frame: the only place with raw packet pointers.

use core::{marker::PhantomData, ptr};

use abi::{
    addr::Addr,
    checksum,
    limits::OUTER_TTL,
    reason::Reason,
    wire::{self, Frame, Ip, Ports, Rest, Wire, Word, ethertype},
};
use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};

use crate::constant::stop;

/// One frame in the driver's memory.
///
/// Its bounds are read from the context once, and again after the head has moved: the verifier
/// knows a checked pointer by the register it came from, and a second read would be unchecked while
/// the compiler believes otherwise.
pub(crate) struct Packet {
    ctx: XdpContext,
    data: *mut u8,
    end: *mut u8,
    /// Bytes that are known to be there: a constant wherever it is not 0.
    checked: usize,
}

impl Packet {
    #[inline(always)]
    pub(crate) fn new(ctx: XdpContext) -> Self {
        let mut packet = Self { ctx, data: ptr::null_mut(), end: ptr::null_mut(), checked: 0 };
        packet.bound();
        packet
    }

    /// Reads the bounds again, and has every access checked again: needed where the compiler knows
    /// that an offset equals one that was checked by another name, which the verifier does not.
    #[inline(always)]
    pub(crate) fn bound(&mut self) {
        (self.data, self.end) = bounds(self.ctx.ctx);
        self.checked = 0;
    }

    /// Whether the first `N` bytes are there: if so, none of the headers within them is asked for again, until
    /// [`Self::unchecked`]. Both stand in one function, or `checked` is no constant.
    #[inline(always)]
    pub(crate) fn check<const N: usize>(&mut self) -> bool {
        if self.data.wrapping_add(N) > self.end {
            return false;
        }
        self.checked = N;
        true
    }

    /// The IPv4 header at `L3` with addresses that are loaded here, and by no one before, who would have to keep them until
    /// now. `None`: it is of IPv6, or has not been checked.
    #[inline(always)]
    pub(crate) fn reloaded<const L3: usize, const V4: bool>(&self, ip: &Ip) -> Option<Ip> {
        if !V4 {
            return None;
        }
        let [src, dst] = self.words::<L3, 12>()?;
        Some(Ip { src: Addr::v4(src), dst: Addr::v4(dst), ..*ip })
    }

    /// The ports behind a plain IPv4 header at `L3`, loaded here as above.
    #[inline(always)]
    pub(crate) fn ports_again<const L3: usize, const V4: bool>(&self) -> Option<u32> {
        if !V4 {
            return None;
        }
        let [ports, _] = self.words::<L3, 20>()?;
        Some(ports)
    }

    /// Two words, of four bytes each, as they stand `AT` bytes behind `L3`, which are loaded here. `None`: they have not been
    /// checked.
    #[inline(always)]
    fn words<const L3: usize, const AT: usize>(&self) -> Option<[u32; 2]> {
        if L3 + AT + 8 > self.checked {
            return None;
        }
        let (first, second): (u64, u64);
        // SAFETY: loads of what was checked. They are not said to be pure, so they stay here.
        unsafe {
            core::arch::asm!(
                "{first} = *(u32 *)({data} + {first_at})",
                "{second} = *(u32 *)({data} + {second_at})",
                data = in(reg) self.data,
                first = out(reg) first,
                second = lateout(reg) second,
                first_at = const L3 + AT,
                second_at = const L3 + AT + 4,
                options(readonly, nostack, preserves_flags),
            );
            core::hint::assert_unchecked(first >> 32 == 0 && second >> 32 == 0);
        }
        Some([first as u32, second as u32])
    }

    /// Ends what [`Self::check`] began.
    #[inline(always)]
    pub(crate) fn unchecked(&mut self) {
        self.checked = 0;
    }

    /// Bytes of the linear part as it arrived.
    #[inline(always)]
    pub(crate) fn arrived(&self) -> u64 {
        self.len() as u64
    }

    /// Whether `bytes` lie within the frame, all its buffers counted. Costs a call only when they do
    /// not lie within the first.
    #[inline(always)]
    pub(crate) fn holds(&self, bytes: usize) -> bool {
        if bytes <= self.len() {
            return true;
        }
        core::hint::cold_path();
        // SAFETY: the context is the one the program was called with.
        bytes as u64 <= unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) }
    }

    #[inline(always)]
    pub(crate) fn ingress(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }

    /// Adds `n` bytes in front (or, negative, takes them away). Every header must be read again.
    ///
    /// # Errors
    /// [`Reason::AdjustFailed`] when the driver has no room.
    #[inline(always)]
    pub(crate) fn grow_head(&mut self, n: i32) -> Result<(), Reason> {
        // SAFETY: the context is the one the program was called with; `&mut self` ends every borrow
        // of a header.
        let failed = unsafe { bpf_xdp_adjust_head(self.ctx.ctx, -n) } != 0;
        self.bound();
        if failed { Err(Reason::AdjustFailed) } else { Ok(()) }
    }

    /// The first `len` bytes, to be written.
    #[inline(always)]
    fn room(&mut self, len: usize) -> Option<Room<'_>> {
        Room::new(self.data, self.end, len)
    }

    /// Adds `n` bytes in front. What is left are the first `len` bytes, to be written, and the context: the bounds
    /// that this `Packet` knows are those of before, and no verifier takes an access by them.
    ///
    /// # Errors
    /// [`Reason::AdjustFailed`] when the driver has no room.
    #[inline(always)]
    pub(crate) fn grown(&mut self, n: i32, len: usize) -> Result<Room<'_>, Reason> {
        // SAFETY: the context is the one the program was called with; `&mut self` ends every borrow
        // of a header.
        if unsafe { bpf_xdp_adjust_head(self.ctx.ctx, -n) } != 0 {
            return Err(stop(Reason::AdjustFailed));
        }
        self.checked = 0;
        let (data, end) = bounds(self.ctx.ctx);
        Room::new(data, end, len).ok_or_else(|| stop(Reason::AdjustFailed))
    }

    /// `N` bytes at `offset`, to be written.
    #[inline(always)]
    pub(crate) fn bytes_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        let start = self.data.wrapping_add(offset);
        if offset + N > self.checked && start.wrapping_add(N) > self.end {
            return None;
        }
        // SAFETY: no frame is at 0, nor is what is in it.
        unsafe { core::hint::assert_unchecked(!start.is_null()) };
        // SAFETY: the check above, or an earlier one, keeps `start..start + N` inside the frame; the exclusive borrow
        // of `self` keeps every other access and `grow_head` out while it lives.
        Some(unsafe { &mut *start.cast::<[u8; N]>() })
    }

    /// The context, for a function that looks at the packet anew.
    #[inline(always)]
    pub(crate) fn context(&self) -> *mut aya_ebpf::bindings::xdp_md {
        self.ctx.ctx
    }

    /// Takes away everything after the first `len` bytes. Every header must be read again.
    ///
    /// # Errors
    /// [`Reason::AdjustFailed`].
    #[inline(always)]
    pub(crate) fn cut(&mut self, len: usize) -> Result<(), Reason> {
        // SAFETY: the context is the one the program was called with; `&mut self` ends every borrow
        // of a header.
        let failed = unsafe {
            let all = bpf_xdp_get_buff_len(self.ctx.ctx);
            bpf_xdp_adjust_tail(self.ctx.ctx, len as i32 - all as i32)
        } != 0;
        self.bound();
        if failed { Err(Reason::AdjustFailed) } else { Ok(()) }
    }

    /// MAC addresses change places.
    #[inline(always)]
    pub(crate) fn swap_macs(&mut self) -> Option<()> {
        let link = self.bytes_mut::<12>(0)?;
        let mut i = 0;
        while i < 6 {
            link.swap(i, i + 6);
            i += 1;
        }
        Some(())
    }

    /// Has the packet sent out of this interface.
    #[inline(always)]
    pub(crate) fn send(&self, ifindex: u32) -> Reason {
        if self.came_by(ifindex) {
            return Reason::ForwardedTx;
        }
        self.redirect(ifindex);
        Reason::ForwardedRedirect
    }

    /// Whether it came by this interface.
    #[inline(always)]
    pub(crate) fn came_by(&self, ifindex: u32) -> bool {
        ifindex == self.ingress()
    }

    /// Sends the packet back to where it came from: MAC and IP addresses change places, and it has all
    /// its hops again.
    #[inline(always)]
    pub(crate) fn turn_round<const L3: usize, const V4: bool>(&mut self, ip: &Ip) -> Option<()> {
        self.swap_macs()?;
        if V4 {
            let h = self.bytes_mut::<20>(L3)?;
            let old = u16::from_ne_bytes([h[8], h[9]]);
            h[8] = OUTER_TTL;
            let new = u16::from_ne_bytes([h[8], h[9]]);
            let check = checksum::replace(u16::from_ne_bytes([h[10], h[11]]), old, new);
            h[10..12].copy_from_slice(&check.to_ne_bytes());
            h[12..16].copy_from_slice(&ip.dst.as_v4_raw().to_ne_bytes());
            h[16..20].copy_from_slice(&ip.src.as_v4_raw().to_ne_bytes());
        } else {
            let h = self.bytes_mut::<40>(L3)?;
            h[7] = OUTER_TTL;
            h[8..16].copy_from_slice(&ip.dst.hi().to_ne_bytes());
            h[16..24].copy_from_slice(&ip.dst.lo().to_ne_bytes());
            h[24..32].copy_from_slice(&ip.src.hi().to_ne_bytes());
            h[32..40].copy_from_slice(&ip.src.lo().to_ne_bytes());
        }
        Some(())
    }

    /// What the IP header at `L3` says that is read when it is needed.
    ///
    /// # Errors
    /// [`Reason::Truncated`].
    #[inline(always)]
    pub(crate) fn rest<const L3: usize, const V4: bool>(&self) -> Result<Rest, Reason> {
        let rest = if V4 { wire::rest4(self, L3) } else { wire::rest6(self, L3) };
        rest.ok_or(Reason::Truncated)
    }

    /// The VLAN tags of a frame whose IP header begins at `L3`: the bytes between the MAC addresses
    /// and the last ethertype, at most eight.
    #[inline(always)]
    pub(crate) fn tags<const L3: usize>(&self) -> Option<u64> {
        Some(match L3 {
            14 => 0,
            18 => u64::from(u32::from_ne_bytes(self.header::<Ports>(12)?.both())),
            _ => u64::from_ne_bytes(self.header::<Word>(12)?.value()),
        })
    }

    /// Writes the link header of a frame whose IP header begins at `L3`: see [`Room::link`].
    #[inline(always)]
    pub(crate) fn put_link<const L3: usize>(
        &mut self,
        dst: u64,
        src: u64,
        tags: u64,
        ethertype: [u8; 2],
    ) -> Option<()> {
        self.room(L3)?.link::<L3>(dst, src, tags, ethertype);
        Some(())
    }

    /// Has the frame sent out of another interface when the program returns.
    #[inline(always)]
    pub(crate) fn redirect(&self, ifindex: u32) {
        // SAFETY: takes numbers only. It fails for unknown flags alone.
        unsafe { bpf_redirect(ifindex, 0) };
    }
}

/// The bounds of the frame, now.
#[inline(always)]
fn bounds(ctx: *mut xdp_md) -> (*mut u8, *mut u8) {
    // SAFETY: the context is the one the program was called with; volatile keeps the compiler from taking these for
    // values read before the head moved. No frame is at 0.
    unsafe {
        let data = (&raw const (*ctx).data).read_volatile() as usize;
        let end = (&raw const (*ctx).data_end).read_volatile() as usize;
        core::hint::assert_unchecked(data != 0);
        (data as *mut u8, end as *mut u8)
    }
}

/// The first bytes of a frame, whose bounds have been checked once, to be written at places that are constants.
pub(crate) struct Room<'a> {
    start: *mut u8,
    len: usize,
    frame: PhantomData<&'a mut Packet>,
}

impl Room<'_> {
    #[inline(always)]
    fn new(data: *mut u8, end: *mut u8, len: usize) -> Option<Self> {
        (data.wrapping_add(len) <= end).then_some(Self { start: data, len, frame: PhantomData })
    }

    /// Writes a word.
    #[inline(always)]
    pub(crate) fn put<T: Copy>(&mut self, at: usize, word: T) {
        // Of constants: no instruction is left of it.
        if at + size_of::<T>() <= self.len {
            // SAFETY: `Packet::room` checked that `len` bytes are inside the frame, which nobody else has while the
            // borrow lives.
            unsafe { self.start.wrapping_add(at).cast::<T>().write_unaligned(word) };
        }
    }

    /// The last of the first `SEEN` bytes from the inner IP header on; 0 for no `SEEN`.
    #[inline(always)]
    pub(crate) fn seen<
        const L3: usize,
        const OUTER: usize,
        const SHIM: usize,
        const SEEN: usize,
    >(
        &self,
    ) -> u64 {
        if SEEN == 0 || L3 + OUTER + SHIM + SEEN > self.len {
            return 0;
        }
        let byte: u64;
        // SAFETY: a load of what was checked, and not said to be pure: or its place would be computed.
        unsafe {
            core::arch::asm!(
                "{byte} = *(u8 *)({start} + {at})",
                start = in(reg) self.start,
                byte = lateout(reg) byte,
                at = const L3 + OUTER + SHIM + SEEN - 1,
                options(readonly, nostack, preserves_flags),
            );
        }
        byte
    }

    /// Writes the link header of a frame whose IP header begins at `L3`. MAC addresses come as they stand in the
    /// frame, in the first six bytes of a word; the last two do not matter.
    #[inline(always)]
    pub(crate) fn link<const L3: usize>(
        &mut self,
        dst: u64,
        src: u64,
        tags: u64,
        ethertype: [u8; 2],
    ) {
        self.macs_and_tags::<L3>(dst, src, tags);
        self.put(L3 - 2, ethertype);
    }

    /// The same before an outer IPv4 header, whose ethertype comes behind the source MAC address.
    #[inline(always)]
    pub(crate) fn link4<const L3: usize>(&mut self, dst: u64, src: u64, tags: u64) {
        self.macs_and_tags::<L3>(dst, src, tags);
        if L3 != 14 {
            self.put(L3 - 2, ethertype::IPV4);
        }
    }

    #[inline(always)]
    fn macs_and_tags<const L3: usize>(&mut self, dst: u64, src: u64, tags: u64) {
        const { assert!(L3 == 14 || L3 == 18 || L3 == 22) };
        // What one store writes too much, the next one puts right.
        self.put(0, dst);
        self.put(6, src);
        match L3 {
            14 => {}
            18 => self.put(12, tags as u32),
            _ => self.put(12, tags),
        }
    }
}

impl Frame for Packet {
    #[inline(always)]
    fn header<T: Wire>(&self, offset: usize) -> Option<&T> {
        const { assert!(align_of::<T>() == 1) };
        let start = self.data.wrapping_add(offset);
        if offset + T::LEN > self.checked && start.wrapping_add(T::LEN) > self.end {
            return None;
        }
        // SAFETY: no frame is at 0, nor is what is in it.
        unsafe { core::hint::assert_unchecked(!start.is_null()) };
        // SAFETY: the check above, or an earlier one, keeps the header inside the frame; `T: Wire` has alignment 1 and
        // no invalid bit patterns; `grow_head`, the only call that moves the frame, takes
        // `&mut self` and so cannot run while this borrow lives.
        Some(unsafe { &*start.cast::<T>() })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.end as usize - self.data as usize
    }
}
