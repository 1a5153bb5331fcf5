//! The frame: the only place with raw packet pointers. Nothing is written.

use abi::wire::{Frame, Wire};
use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_pull_data, programs::TcContext};

/// Headers lie within this many bytes.
const HEADERS: u32 = 256;

/// One frame of a socket buffer.
///
/// Bounds of its linear part are read from the context once, and again after more was pulled into it:
/// the verifier knows a checked pointer by the register it came from.
pub(crate) struct Packet {
    ctx: TcContext,
    data: usize,
    end: usize,
}

impl Packet {
    #[inline(always)]
    pub(crate) fn new(ctx: TcContext) -> Self {
        let mut packet = Self { ctx, data: 0, end: 0 };
        packet.bound();
        packet
    }

    #[inline(always)]
    fn bound(&mut self) {
        // SAFETY: the context is the one the program was called with; volatile keeps the compiler
        // from taking these for the values read before.
        unsafe {
            self.data = (&raw const (*self.ctx.skb.skb).data).read_volatile() as usize;
            self.end = (&raw const (*self.ctx.skb.skb).data_end).read_volatile() as usize;
        }
    }

    /// For helpers that read the frame.
    #[inline(always)]
    pub(crate) fn context(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }

    /// Bytes of the frame, all its buffers counted.
    #[inline(always)]
    pub(crate) fn all(&self) -> u64 {
        u64::from(self.ctx.skb.len())
    }

    /// Index of the interface that it goes through.
    #[inline(always)]
    pub(crate) fn interface(&self) -> u32 {
        // SAFETY: as in `bound`.
        unsafe { (*self.ctx.skb.skb).ifindex }
    }

    /// Pulls headers into the linear part; false: there is nothing more to pull. Every header must be
    /// read again.
    #[inline(always)]
    pub(crate) fn pull(&mut self) -> bool {
        let all = self.ctx.skb.len();
        if self.end - self.data >= all as usize {
            return false;
        }
        let wanted = if all < HEADERS { all } else { HEADERS };
        // SAFETY: as in `bound`; `&mut self` ends every borrow of a header.
        let failed = unsafe { bpf_skb_pull_data(self.ctx.skb.skb, wanted) } != 0;
        self.bound();
        !failed
    }
}

impl Frame for Packet {
    #[inline(always)]
    fn header<T: Wire>(&self, offset: usize) -> Option<&T> {
        const { assert!(align_of::<T>() == 1) };
        let start = self.data + offset;
        if start + T::LEN > self.end {
            return None;
        }
        // SAFETY: the check above keeps the header inside the linear part; `T: Wire` has alignment 1
        // and no invalid bit patterns; `pull`, the only call that moves the frame, takes `&mut self`
        // and so cannot run while this borrow lives.
        Some(unsafe { &*(start as *const T) })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.data
    }
}
