//! Numbers that the daemon writes into the code before it is loaded ([`abi::constants`]).
//!
//! The compiler sees a value that it knows nothing of, the verifier one that it knows: what a constant rules out is
//! dead code and is removed.

use abi::{
    constants::{FEATURES, NARROW, WIDE},
    reason::Reason,
};

/// Constant `N`.
#[inline(always)]
pub(crate) fn get<const N: u32>() -> u64 {
    let value: u64;
    // SAFETY: an instruction that loads an immediate.
    unsafe {
        core::arch::asm!(
            "{value} = {placeholder} ll",
            value = out(reg) value,
            placeholder = const WIDE | N as u64,
            options(nomem, nostack, preserves_flags),
        );
    }
    value
}

/// Operations of one instruction, whose other operand is constant `N`.
macro_rules! immediate {
    ($($(#[$doc:meta])* $name:ident: $operator:literal;)*) => { $(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name<const N: u32>(mut value: u64) -> u64 {
            // SAFETY: an instruction with an immediate operand.
            unsafe {
                core::arch::asm!(
                    concat!("{value} ", $operator, " {placeholder}"),
                    value = inout(reg) value,
                    placeholder = const NARROW | N,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            value
        }
    )* };
}

immediate! {
    /// `value`, and no more of it than constant `N` has bits.
    masked: "&=";
    /// `value` shifted to the right by constant `N`.
    shifted: ">>=";
    /// `value` times constant `N`.
    times: "*=";
}

/// `value` shifted to the left by the low six bits of `places` (RFC 9669 section 4.1), which no mask need keep below 64.
#[inline(always)]
pub(crate) fn up(mut value: u64, places: u64) -> u64 {
    // SAFETY: an operation on registers.
    unsafe {
        core::arch::asm!(
            "{value} <<= {places}",
            value = inout(reg) value,
            places = in(reg) places,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    value
}

/// `value`, and no more of it than is less than `END`, a power of two: for the verifier, where the compiler knows that
/// it is and would leave the operation out.
#[inline(always)]
pub(crate) fn below<const END: u32>(mut value: u64) -> u64 {
    const { assert!(END.is_power_of_two()) };
    // SAFETY: an instruction with an immediate operand.
    unsafe {
        core::arch::asm!(
            "{value} &= {mask}",
            value = inout(reg) value,
            mask = const END - 1,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    value
}

/// `value`, of which the compiler knows nothing more: what follows from it is then computed, and not decided by the way
/// that led here; and it is a register of its own, of which alone the verifier learns what is asked of it.
#[inline(always)]
pub(crate) fn unknown(value: u32) -> u64 {
    let copy: u64;
    // SAFETY: a copy. No instruction at all would be no place of its own, and the kernel takes no two lines for one.
    unsafe {
        core::arch::asm!(
            "{copy} = {value}",
            copy = lateout(reg) copy,
            value = in(reg) u64::from(value),
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    // SAFETY: a copy of 32 bits. Or the compiler would make 32 bits of it once more.
    unsafe { core::hint::assert_unchecked(copy >> 32 == 0) };
    copy
}

/// `value`, computed here and not where it is first wanted.
#[inline(always)]
pub(crate) fn computed(mut value: u64) -> u64 {
    // SAFETY: a copy onto itself. As it is not said to be pure, it stays where it is; no instruction at all would be no
    // place of its own, and the kernel takes no two lines for one.
    unsafe {
        core::arch::asm!(
            "{value} = {value}",
            value = inout(reg) value,
            options(nomem, nostack, preserves_flags),
        );
    }
    value
}

/// A reason why a packet does not go on, away from the way of those that do: where it is a constant, the compiler puts
/// it at hand before it asks whether it is wanted.
#[inline(always)]
pub(crate) fn stop(reason: Reason) -> Reason {
    core::hint::cold_path();
    let number = unknown(reason as u32) as u32;
    // SAFETY: the number of a reason.
    unsafe { core::mem::transmute::<u32, Reason>(number) }
}

/// Whether the program has one of the features of `BITS`.
#[inline(always)]
pub(crate) fn has<const BITS: u32>() -> bool {
    let any: u64;
    // SAFETY: as in `get`.
    unsafe {
        core::arch::asm!(
            "{any} = {placeholder} ll",
            any = out(reg) any,
            placeholder = const WIDE | (FEATURES | BITS) as u64,
            options(nomem, nostack, preserves_flags),
        );
    }
    any != 0
}

/// `value`, if it is less than constant `N`: in a register of which the verifier knows that, and which alone is used then. A
/// copy that was put aside before would be of no use to it.
#[inline(always)]
pub(crate) fn less<const N: u32>(value: u64) -> Option<u64> {
    let less: u64;
    // SAFETY: a branch.
    unsafe {
        core::arch::asm!(
            "if {value} >= {placeholder} goto {no}",
            value = inout(reg) value => less,
            placeholder = const NARROW | N,
            no = label { return None },
            options(nomem, nostack, preserves_flags),
        );
    }
    Some(less)
}
