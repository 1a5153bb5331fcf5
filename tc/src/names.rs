//! DNS messages that pass, for the daemon: it learns from them the addresses of names that rules select.

use abi::{
    names::{CAPTURED, Message, PORT},
    policy::{Head, Part, Way},
};
use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};

use crate::{
    maps::{self, Maps},
    packet::Packet,
};

const UDP: u8 = 17;

/// Whether it is a question of the endpoint or an answer to it, as far as ports tell.
#[inline(always)]
pub(crate) fn is_one(head: &Head, way: Way) -> bool {
    let port = match way {
        Way::In => head.ports as u16,
        Way::Out => (head.ports >> 16) as u16,
    };
    head.protocol == UDP && port == PORT && head.part as u8 == Part::Whole as u8
}

/// Hands a message over, if rules select names at all.
#[inline(always)]
pub(crate) fn note(packet: &Packet, way: Way) {
    if Maps::has_names() {
        copy(packet.context(), way as u32);
    }
}

/// Out of line: it is rare.
#[inline(never)]
fn copy(ctx: *mut __sk_buff, way: u32) -> u32 {
    let Some(mut record) = maps::NAMES.reserve::<Message>(0) else {
        maps::lose_name();
        return 0;
    };
    let message: *mut Message = record.as_mut_ptr();
    // SAFETY: the context is the one the program was called with; the record is as large as a message and
    // aligned to 8; the helper writes `captured` bytes at most into the frame's place, which has `CAPTURED`.
    let failed = unsafe {
        let length = (*ctx).len;
        let captured = if length < CAPTURED as u32 { length } else { CAPTURED as u32 };
        message.cast::<[u32; 4]>().write(Message::head((*ctx).ifindex, captured, length, way));
        captured == 0
            || bpf_skb_load_bytes(
                ctx.cast(),
                0,
                message.cast::<u8>().add(Message::BYTES).cast(),
                captured,
            ) != 0
    };
    if failed {
        record.discard(0);
    } else {
        record.submit(0);
    }
    1
}
