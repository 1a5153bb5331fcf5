//! IPv4: painted, weakest first, onto the 2^24 networks of length 24.

use abi::{
    limits::{MAX_BITMAPS, MAX_BLOCKS},
    prefix::{Bitmap, Block, Entry, LINE, One},
};
use config::Net4;

use super::{Full, Layers};
use crate::datapath::Tables;

/// Networks of length 24.
pub(super) const NETWORKS: usize = 1 << 24;

/// What becomes of each address: as the tables have it, with rows from 0 on.
#[derive(Default)]
pub(super) struct Painted {
    pub(super) words: Vec<u32>,
    pub(super) bitmaps: Vec<Bitmap>,
    pub(super) blocks: Vec<Block>,
    pub(super) free_bitmaps: Vec<u32>,
    pub(super) free_blocks: Vec<u32>,
}

/// The smallest form of a network.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    /// Needs no row.
    Entry(Entry),
    Bitmap(Bitmap, u8),
    Block(Box<[u8; 256]>),
}

impl Form {
    pub(super) fn of(lists: &[u8; 256]) -> Self {
        if let Some(one) = as_one(lists) {
            return Self::Entry(one);
        }
        let list = lists.iter().copied().find(|&l| l != 0).unwrap_or(0);
        if lists.iter().any(|&l| l != 0 && l != list) {
            return Self::Block(Box::new(*lists));
        }
        let mut words = [0; 4];
        for (low, _) in lists.iter().enumerate().filter(|(_, l)| **l != 0) {
            words[low / 64] |= 1 << (low % 64);
        }
        Self::Bitmap(Bitmap::new(words), list)
    }
}

/// A network of one list, or of one list and another one in a single prefix of it.
fn as_one(lists: &[u8; 256]) -> Option<Entry> {
    for outside in [lists[0], lists[255]] {
        let Some(first) = lists.iter().position(|&l| l != outside) else {
            return Some(Entry::List(outside));
        };
        let last = lists.iter().rposition(|&l| l != outside).unwrap_or(first);
        let (size, inside) = (last - first + 1, lists[first]);
        if size.is_power_of_two()
            && size < 256
            && first % size == 0
            && lists[first..=last].iter().all(|&l| l == inside)
        {
            let host_bits = size.trailing_zeros() as u8;
            return Some(Entry::One(One { base: first as u8, host_bits, inside, outside }));
        }
    }
    None
}

/// The list of each address of a network, from the sets themselves.
pub(super) fn lists_of(layers: &Layers<'_>, network: u32) -> [u8; 256] {
    let (first, last) = (network << 8, network << 8 | 255);
    let mut lists = [0; 256];
    for (set, number) in layers.weakest_first() {
        if set.longest4(first, 24).is_some() {
            lists = lists.map(|below| layers.over(number, below));
        }
        for net in set.within4(first, last).iter().filter(|net| net.bits() > 24) {
            for list in &mut lists[(net.first() & 255) as usize..=(net.last() & 255) as usize] {
                *list = layers.over(number, *list);
            }
        }
    }
    lists
}

/// The list of each address of a network, as an entry of the tables says.
pub(super) fn lists_in(tables: &dyn Tables, entry: Entry) -> [u8; 256] {
    match entry {
        Entry::Block(row) => *tables.block(row),
        Entry::Bitmap { row, list } => held(&Bitmap::new(tables.bitmap(row)), list),
        simple => of_simple(simple),
    }
}

fn held(bitmap: &Bitmap, list: u8) -> [u8; 256] {
    std::array::from_fn(|low| if bitmap.holds(low as u8) { list } else { 0 })
}

fn of_simple(entry: Entry) -> [u8; 256] {
    match entry {
        Entry::List(list) => [list; 256],
        Entry::One(one) => std::array::from_fn(|low| one.list(low as u8)),
        Entry::Block(_) | Entry::Bitmap { .. } => [0; 256],
    }
}

/// Paints all sets.
///
/// # Errors
/// More rows than any table has.
pub(super) fn compile(layers: &Layers<'_>) -> Result<Painted, Full> {
    // Pages that nothing is painted on are never made.
    let mut painted = Painted { words: vec![0; NETWORKS], ..Painted::default() };
    for (set, number) in layers.weakest_first() {
        for &net in set.v4() {
            painted.paint(net, number, layers)?;
        }
    }
    Ok(painted)
}

impl Painted {
    fn paint(&mut self, net: Net4, list: u8, layers: &Layers<'_>) -> Result<(), Full> {
        let (first, last) = (net.first(), net.last());
        let at = (first >> 8) as usize;
        if net.bits() <= 24 {
            let end = (last >> 8) as usize;
            if !layers.covers(list) {
                return (at..=end).try_for_each(|n| self.paint_over(n, 0..=255, list, layers));
            }
            if !(self.bitmaps.is_empty() && self.blocks.is_empty()) {
                (at..=end).for_each(|n| self.give(Entry::from_word(self.words[n])));
            }
            self.words[at..=end].fill(Entry::List(list).to_word());
            return Ok(());
        }
        let range = first as u8..=last as u8;
        let entry = match Entry::from_word(self.words[at]) {
            Entry::List(outside) => {
                let (host_bits, inside) = (32 - net.bits(), layers.over(list, outside));
                if inside == outside {
                    return Ok(());
                }
                Entry::One(One { base: first as u8, host_bits, inside, outside })
            }
            Entry::One(One { base, host_bits, inside, outside: 0 }) if inside == list => {
                let end = base | ((1 << host_bits) - 1);
                let both = or(bits(&(base..=end)), bits(&range));
                self.put_bitmap(both, list)?
            }
            Entry::Bitmap { row, list: own } if own == list || list == 0 => {
                self.mark(row, own, bits(&range), list != 0)
            }
            _ => return self.paint_over(at, range, list, layers),
        };
        self.words[at] = entry.to_word();
        Ok(())
    }

    /// The same for some addresses of a network, by what stands there.
    fn paint_over(
        &mut self,
        at: usize,
        range: std::ops::RangeInclusive<u8>,
        list: u8,
        layers: &Layers<'_>,
    ) -> Result<(), Full> {
        let before = Entry::from_word(self.words[at]);
        if let Entry::List(below) = before
            && range == (0..=255)
        {
            self.words[at] = Entry::List(layers.over(list, below)).to_word();
            return Ok(());
        }
        let mut lists = self.lists(before);
        for place in &mut lists[usize::from(*range.start())..=usize::from(*range.end())] {
            *place = layers.over(list, *place);
        }
        self.give(before);
        self.words[at] = self.put(Form::of(&lists))?.to_word();
        Ok(())
    }

    /// Adds addresses to a bitmap or takes them out; gives the network's entry after that.
    fn mark(&mut self, row: u32, list: u8, marks: [u64; 4], add: bool) -> Entry {
        let words = self.bitmaps[row as usize].words();
        let changed: [u64; 4] = std::array::from_fn(|i| match add {
            true => words[i] | marks[i],
            false => words[i] & !marks[i],
        });
        let uniform = match changed {
            [0, 0, 0, 0] => 0,
            [u64::MAX, u64::MAX, u64::MAX, u64::MAX] => list,
            _ => {
                self.bitmaps[row as usize] = Bitmap::new(changed);
                return Entry::Bitmap { row, list };
            }
        };
        self.free_bitmaps.push(row);
        Entry::List(uniform)
    }

    /// Lines that the entries need.
    pub(super) fn lines(&self) -> u64 {
        let entries = self.words.iter().filter(|word| **word != 0).count();
        entries.div_ceil(LINE) as u64
    }

    pub(super) fn lists(&self, entry: Entry) -> [u8; 256] {
        match entry {
            Entry::Block(row) => *self.blocks[row as usize].lists(),
            Entry::Bitmap { row, list } => held(&self.bitmaps[row as usize], list),
            simple => of_simple(simple),
        }
    }

    fn give(&mut self, entry: Entry) {
        match entry {
            Entry::Bitmap { row, .. } => self.free_bitmaps.push(row),
            Entry::Block(row) => self.free_blocks.push(row),
            Entry::List(_) | Entry::One(_) => {}
        }
    }

    fn put(&mut self, form: Form) -> Result<Entry, Full> {
        match form {
            Form::Entry(entry) => Ok(entry),
            Form::Bitmap(bitmap, list) => self.put_bitmap(bitmap.words(), list),
            Form::Block(lists) => {
                let block = Block::new(*lists);
                let row = put(&mut self.blocks, &mut self.free_blocks, block, MAX_BLOCKS);
                row.map(Entry::Block).ok_or(Full("BLOCKS"))
            }
        }
    }

    fn put_bitmap(&mut self, words: [u64; 4], list: u8) -> Result<Entry, Full> {
        if words == [u64::MAX; 4] {
            return Ok(Entry::List(list));
        }
        let bitmap = Bitmap::new(words);
        let row = put(&mut self.bitmaps, &mut self.free_bitmaps, bitmap, MAX_BITMAPS);
        row.map(|row| Entry::Bitmap { row, list }).ok_or(Full("BITMAPS"))
    }
}

fn put<T>(rows: &mut Vec<T>, free: &mut Vec<u32>, value: T, most: u32) -> Option<u32> {
    if let Some(row) = free.pop() {
        rows[row as usize] = value;
        return Some(row);
    }
    let row = u32::try_from(rows.len()).ok().filter(|row| *row < most)?;
    rows.push(value);
    Some(row)
}

/// The addresses that end in these.
fn bits(range: &std::ops::RangeInclusive<u8>) -> [u64; 4] {
    let (first, last) = (usize::from(*range.start()), usize::from(*range.end()));
    std::array::from_fn(|i| {
        let (from, to) = (first.max(i * 64), last.min(i * 64 + 63));
        if from > to { 0 } else { (u64::MAX >> (63 - (to - from))) << (from % 64) }
    })
}

fn or(a: [u64; 4], b: [u64; 4]) -> [u64; 4] {
    std::array::from_fn(|i| a[i] | b[i])
}
