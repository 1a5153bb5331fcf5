//! Numbers that the daemon writes into the code before it is loaded ([`abi::constants`]).
//!
//! The compiler sees a value that it knows nothing of, the verifier one that it knows: what a constant rules out is
//! dead code and is removed.

use abi::constants::{FEATURES, NARROW, WIDE};

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
