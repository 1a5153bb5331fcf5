//! The tables of prefix sets, two halves of each, and of what lists do.

use abi::{
    constants,
    prefix::{self, Bitmap, Block, Bucket6, Filter6, Line, ListRow, Prefixes},
    scope::Scope,
    summary,
    table::Control,
};
use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};

use crate::{
    constant,
    flat::{Flat, flat},
};

flat! {
    "SUMMARY" SUMMARY: u64;
    /// See [`summary`]; one row where there are no fine bits.
    "FINE4" FINE4: u64;
    "LINES" LINES: Line;
    "LISTS" LISTS: ListRow;
}

#[map(name = "BITMAPS")]
static BITMAPS: Array<Bitmap> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "BLOCKS")]
static BLOCKS: Array<Block> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "FILTER6")]
static FILTER6: Array<Filter6> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "BUCKETS6")]
static BUCKETS6: Array<Bucket6> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map(name = "SCOPES")]
static SCOPES: Array<Scope> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// A half of the prefix sets: 0 or 1.
#[derive(Clone, Copy)]
pub(crate) struct Half(u32);

impl Half {
    /// The one in force, as the control table's flags say. Computed: a branch would double the paths.
    #[inline(always)]
    pub(crate) const fn of(flags: u64) -> Self {
        const { assert!(Control::HALF == 2) };
        Self((flags >> 1) as u32 & 1)
    }
}

impl Prefixes for Half {
    #[inline(always)]
    fn summary(&self, row: u32) -> u64 {
        let Some(word) = SUMMARY.get_ptr(self.0 * summary::WORDS + row) else {
            return 0;
        };
        // SAFETY: a row of the table; aligned; volatile because the daemon stores.
        unsafe { word.read_volatile() }
    }

    #[inline(always)]
    fn fine(&self, row: u32) -> u64 {
        if constant::get::<{ constants::rows(constants::table("FINE4")) }>() == 1 {
            return u64::MAX;
        }
        let Some(word) = FINE4.get_ptr(self.0 * summary::FINE4 + row) else { return 0 };
        // SAFETY: a row of the table; aligned; volatile because the daemon stores.
        unsafe { word.read_volatile() }
    }

    #[inline(always)]
    fn entry(&self, place: u32) -> u32 {
        let line = self.0 * constant::get::<{ constants::LINE_ROWS }>() as u32
            + place / prefix::LINE as u32;
        let line = LINES.get(line);
        line.map_or(0, |line| line.word(place))
    }

    #[inline(always)]
    fn bitmap(&self, row: u32, low: u8) -> bool {
        BITMAPS
            .get(self.0 * constant::get::<{ constants::BITMAP_ROWS }>() as u32 + row)
            .is_some_and(|bitmap| bitmap.holds(low))
    }

    #[inline(always)]
    fn block(&self, row: u32, low: u8) -> u8 {
        let block = BLOCKS.get(self.0 * constant::get::<{ constants::BLOCK_ROWS }>() as u32 + row);
        block.map_or(0, |block| block.lists()[usize::from(low)])
    }

    #[inline(always)]
    fn filter6(&self, row: u32) -> [u64; 2] {
        let rows = constant::get::<{ constants::FILTER6_ROWS }>() as u32;
        FILTER6.get(self.0 * rows + (row & (rows - 1))).map_or([0; 2], Filter6::words)
    }

    #[inline(always)]
    fn bucket6(&self, index: u32) -> Option<&Bucket6> {
        let rows = constant::get::<{ constants::BUCKET6_ROWS }>() as u32;
        BUCKETS6.get(self.0 * rows + (index & (rows - 1)))
    }
}

#[inline(always)]
pub(crate) fn list(number: u32) -> Option<&'static ListRow> {
    LISTS.get(number)
}

/// Which packets a list is about.
#[inline(always)]
pub(crate) fn scope(number: u32) -> Option<&'static Scope> {
    SCOPES.get(number)
}
