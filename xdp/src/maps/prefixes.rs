//! The tables of prefix sets, two halves of each, and of what lists do.

use abi::{
    prefix::{self, Bitmap, Block, Bucket6, Filter6, Line, ListRow, Prefixes},
    scope::Scope,
    summary,
    table::Control,
};
use aya_ebpf::{Global, bindings::BPF_F_MMAPABLE, macros::map, maps::Array};

use crate::flat::{Flat, flat};

flat! {
    ".flat.SUMMARY" SUMMARY: u64, SUMMARY_N;
    /// See [`summary`]; one row where there are no fine bits.
    ".flat.FINE4" FINE4: u64, FINE4_N;
    ".flat.LINES" LINES: Line, LINES_N;
    ".flat.LISTS" LISTS: ListRow, LISTS_N;
}

/// Rows of [`LINES`] in each half.
#[unsafe(no_mangle)]
static LINE_ROWS: Global<u32> = Global::new(0);
/// Rows of [`BITMAPS`] in each half.
#[unsafe(no_mangle)]
static BITMAP_ROWS: Global<u32> = Global::new(1);
/// Rows of [`BLOCKS`] in each half.
#[unsafe(no_mangle)]
static BLOCK_ROWS: Global<u32> = Global::new(1);
/// Rows of [`FILTER6`] in each half; a power of two.
#[unsafe(no_mangle)]
static FILTER6_ROWS: Global<u32> = Global::new(1);
/// Rows of [`BUCKETS6`] in each half; a power of two.
#[unsafe(no_mangle)]
static BUCKET6_ROWS: Global<u32> = Global::new(1);

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
        let Some(word) = SUMMARY.get_ptr(self.0 * summary::WORDS + row, &SUMMARY_N) else {
            return 0;
        };
        // SAFETY: a row of the table; aligned; volatile because the daemon stores.
        unsafe { word.read_volatile() }
    }

    #[inline(always)]
    fn fine(&self, row: u32) -> u64 {
        if FINE4_N.load() == 1 {
            return u64::MAX;
        }
        let Some(word) = FINE4.get_ptr(self.0 * summary::FINE4 + row, &FINE4_N) else { return 0 };
        // SAFETY: a row of the table; aligned; volatile because the daemon stores.
        unsafe { word.read_volatile() }
    }

    #[inline(always)]
    fn entry(&self, place: u32) -> u32 {
        let line = self.0 * LINE_ROWS.load() + place / prefix::LINE as u32;
        let line = LINES.get(line, &LINES_N);
        line.map_or(0, |line| line.word(place))
    }

    #[inline(always)]
    fn bitmap(&self, row: u32, low: u8) -> bool {
        BITMAPS.get(self.0 * BITMAP_ROWS.load() + row).is_some_and(|bitmap| bitmap.holds(low))
    }

    #[inline(always)]
    fn block(&self, row: u32, low: u8) -> u8 {
        let block = BLOCKS.get(self.0 * BLOCK_ROWS.load() + row);
        block.map_or(0, |block| block.lists()[usize::from(low)])
    }

    #[inline(always)]
    fn filter6(&self, row: u32) -> [u64; 2] {
        let rows = FILTER6_ROWS.load();
        FILTER6.get(self.0 * rows + (row & (rows - 1))).map_or([0; 2], Filter6::words)
    }

    #[inline(always)]
    fn bucket6(&self, index: u32) -> Option<&Bucket6> {
        let rows = BUCKET6_ROWS.load();
        BUCKETS6.get(self.0 * rows + (index & (rows - 1)))
    }
}

#[inline(always)]
pub(crate) fn list(number: u32) -> Option<&'static ListRow> {
    LISTS.get(number, &LISTS_N)
}

/// Which packets a list is about.
#[inline(always)]
pub(crate) fn scope(number: u32) -> Option<&'static Scope> {
    SCOPES.get(number)
}
