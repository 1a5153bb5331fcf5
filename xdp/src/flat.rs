//! Flat tables: maps of one element, which has all the rows.
//!
//! The address of such an element is a constant of the program (`BPF_PSEUDO_MAP_VALUE`), and so is how many rows it
//! has, so a row is found by a mask or a comparison, a shift and an addition. A lookup of the kernel's, inlined, is
//! twice as many instructions, takes its index by way of the stack, and is a call to the compiler, which keeps
//! nothing in registers across it.
//!
//! The daemon makes the maps, as large as they must be, before the program is loaded; sections of the object file
//! only name them.

use core::{cell::UnsafeCell, mem::MaybeUninit};

use crate::constant;

/// A table of rows: as long as one in the object file; in memory, as long as the daemon made it. `ROWS` and `MASK`:
/// numbers of the constants that say how long.
#[repr(transparent)]
pub(crate) struct Flat<T, const ROWS: u32, const MASK: u32>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: rows are shared with the daemon and with other CPUs; which words of them change, and who changes them,
// is said at each type. They have no destructors and hold no pointers.
unsafe impl<T: Copy, const ROWS: u32, const MASK: u32> Sync for Flat<T, ROWS, MASK> {}

impl<T: Copy, const ROWS: u32, const MASK: u32> Flat<T, ROWS, MASK> {
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// A row that is known to be there: the verifier checks that it is.
    #[inline(always)]
    pub(crate) fn place(&'static self, row: u64) -> *mut T {
        self.moved(row as usize * size_of::<T>())
    }

    #[inline(always)]
    fn moved(&'static self, offset: usize) -> *mut T {
        let mut place = self.0.get() as usize;
        // SAFETY: an addition. The compiler, which knows where the table is and takes it for one row long, cannot
        // know what comes of it.
        unsafe {
            core::arch::asm!(
                "{place} += {offset}",
                place = inout(reg) place,
                offset = in(reg) offset,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        // SAFETY: no table is at 0, nor is what follows one.
        unsafe { core::hint::assert_unchecked(place != 0) };
        place as *mut T
    }

    /// A row that is known to be there, by its offset in bytes, which is a multiple of a row's.
    #[inline(always)]
    pub(crate) fn at_offset(&'static self, offset: u64) -> *mut T {
        self.moved(offset as usize)
    }

    /// A row that is known to be there: the verifier checks that it is.
    #[inline(always)]
    pub(crate) fn known(&'static self, row: u64) -> &'static T {
        // SAFETY: as in `at`.
        unsafe { &*self.place(row) }
    }

    /// The first row, which every table has.
    #[inline(always)]
    pub(crate) fn first(&'static self) -> &'static T {
        // SAFETY: as in `at`.
        unsafe { &*self.0.get().cast() }
    }

    /// A row of a table that has as many as a power of two says; its number is taken modulo that.
    #[inline(always)]
    pub(crate) fn at_ptr(&'static self, row: u64) -> *mut T {
        self.place(constant::masked::<MASK>(row))
    }

    /// A row of a table that has as many as a power of two says; its number is taken modulo that.
    #[inline(always)]
    pub(crate) fn at(&'static self, row: u64) -> &'static T {
        // SAFETY: the table has this row, the kernel's verifier holds us to it; its memory is of zeros at first and
        // of what the daemon writes later, and any bytes are a row.
        unsafe { &*self.at_ptr(row) }
    }

    /// The number of a row, if the table has as many, as the verifier knows it to be less.
    #[inline(always)]
    fn bound(row: u64) -> Option<u64> {
        let row = constant::less::<ROWS>(row)?;
        // SAFETY: there are no tables of more rows. Or the compiler would make 32 bits of it once more.
        unsafe { core::hint::assert_unchecked(row >> 32 == 0) };
        Some(row)
    }

    /// A row, if the table has as many.
    #[inline(always)]
    pub(crate) fn get_ptr(&'static self, row: u32) -> Option<*mut T> {
        Self::bound(row.into()).map(|row| self.place(row))
    }

    /// A row, if the table has as many.
    #[inline(always)]
    pub(crate) fn get(&'static self, row: u32) -> Option<&'static T> {
        self.find(row).map(|(_, found)| found)
    }

    /// A row, if the table has as many, and its number, which the verifier knows to be less.
    #[inline(always)]
    pub(crate) fn find(&'static self, row: u32) -> Option<(u32, &'static T)> {
        self.find_wide(row.into())
    }

    /// The same for a number of 64 bits that nobody has made one of 32 bits yet.
    #[inline(always)]
    pub(crate) fn find_wide(&'static self, row: u64) -> Option<(u32, &'static T)> {
        let row = Self::bound(row)?;
        // SAFETY: as in `at`.
        Some((row as u32, unsafe { &*self.place(row) }))
    }
}

/// Tables, each with the name that the daemon knows it by.
macro_rules! flat {
    ($($(#[$meta:meta])* $name:literal $table:ident: $row:ty;)*) => { $(
        $(#[$meta])*
        #[unsafe(link_section = concat!(".flat.", $name))]
        #[unsafe(no_mangle)]
        static $table: Flat<
            $row,
            { abi::constants::rows(abi::constants::table($name)) },
            { abi::constants::mask(abi::constants::table($name)) },
        > = Flat::new();
    )* };
}

pub(crate) use flat;
