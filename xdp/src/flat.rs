//! Flat tables: maps of one element, which has all the rows.
//!
//! The address of such an element is a constant of the program (`BPF_PSEUDO_MAP_VALUE`), so a row is found by a
//! comparison, a shift and an addition. A lookup of the kernel's, inlined, is twice as many instructions, takes its
//! index by way of the stack, and is a call to the compiler, which keeps nothing in registers across it.
//!
//! The daemon makes the maps, as large as they must be, before the program is loaded; sections of the object file
//! only name them.

use core::{cell::UnsafeCell, mem::MaybeUninit};

use aya_ebpf::Global;

/// A table of rows. As long as one in the object file; in memory, as long as the daemon made it.
#[repr(transparent)]
pub(crate) struct Flat<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: rows are shared with the daemon and with other CPUs; which words of them change, and who changes them,
// is said at each type. They have no destructors and hold no pointers.
unsafe impl<T: Copy> Sync for Flat<T> {}

impl<T: Copy> Flat<T> {
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// A row that is known to be there, by a mask for example: the verifier checks that it is.
    #[inline(always)]
    pub(crate) fn place(&'static self, row: u64) -> *mut T {
        let mut place = self.0.get() as usize;
        // SAFETY: an addition. The compiler, which knows where the table is and takes it for one row long, cannot
        // know what comes of it.
        unsafe {
            core::arch::asm!(
                "{place} += {offset}",
                place = inout(reg) place,
                offset = in(reg) row as usize * size_of::<T>(),
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        // SAFETY: no table is at 0, nor is what follows one.
        unsafe { core::hint::assert_unchecked(place != 0) };
        place as *mut T
    }

    /// A row, if the table has as many.
    #[inline(always)]
    pub(crate) fn get_ptr(&'static self, row: u32, rows: &Global<u32>) -> Option<*mut T> {
        let mut row = u64::from(row);
        // SAFETY: nothing happens. What is compared is then the very register that is added; else the compiler
        // may take another one with the same number in it, of which the verifier does not know that.
        unsafe {
            core::arch::asm!(
                "{row} = {row}",
                row = inout(reg) row,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        (row < u64::from(rows.load())).then(|| self.place(row))
    }

    /// A row, if the table has as many.
    #[inline(always)]
    pub(crate) fn get(&'static self, row: u32, rows: &Global<u32>) -> Option<&'static T> {
        // SAFETY: the table has this row, the kernel's verifier holds us to it; its memory is of zeros at first and
        // of what the daemon writes later, and any bytes are a row.
        self.get_ptr(row, rows).map(|row| unsafe { &*row })
    }
}

/// Tables, and for each how many rows it has.
macro_rules! flat {
    ($($(#[$meta:meta])* $section:literal $table:ident: $row:ty, $rows:ident;)*) => { $(
        $(#[$meta])*
        #[unsafe(link_section = $section)]
        #[unsafe(no_mangle)]
        static $table: Flat<$row> = Flat::new();
        #[unsafe(no_mangle)]
        static $rows: Global<u32> = Global::new(1);
    )* };
}

pub(crate) use flat;
