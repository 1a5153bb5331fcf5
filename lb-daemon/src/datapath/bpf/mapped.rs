//! A BPF array in this process's memory: the one place that reads and writes it through pointers.

use std::{
    io,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

use aya::{Pod, maps::MapData};
use memmap2::{MmapOptions, MmapRaw};

use super::BpfError;

/// A BPF array in this process's memory.
pub(crate) struct Mapped<T> {
    memory: MmapRaw,
    pub(super) len: u32,
    _rows: std::marker::PhantomData<T>,
}

impl<T: Pod> Mapped<T> {
    const WORDS: usize = size_of::<T>() / 8;

    pub(crate) fn new(map: &MapData, name: &'static str) -> Result<Self, BpfError> {
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8) };
        let fail = |source| BpfError::Mmap { name, source };
        let info = map.info().map_err(|e| fail(io::Error::other(e)))?;
        // Rows of one element, or elements.
        let element = info.value_size().next_multiple_of(8) / size_of::<T>() as u32;
        let len = info.max_entries() * element;
        let bytes = len as usize * size_of::<T>();
        let memory = MmapOptions::new().len(bytes).map_raw(&map.fd().as_fd()).map_err(fail)?;
        Ok(Self { memory, len, _rows: std::marker::PhantomData })
    }

    /// The word at a byte offset of a row.
    pub(super) fn word(&self, row: u32, offset: usize) -> &AtomicU64 {
        assert!(row < self.len && offset + 8 <= size_of::<T>() && offset.is_multiple_of(8));
        let at = row as usize * size_of::<T>() + offset;
        // SAFETY: inside the mapping by the check above and `len`; aligned, as the mapping begins on
        // a page and all terms are multiples of 8; the kernel's programs access it as whole words.
        unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().add(at).cast()) }
    }

    pub(crate) fn read(&self, row: u32) -> T {
        let mut value = std::mem::MaybeUninit::<T>::uninit();
        for i in 0..Self::WORDS {
            let word = self.word(row, i * 8).load(Ordering::Relaxed);
            // SAFETY: word `i` lies inside `T`, whose size is a multiple of 8.
            unsafe { value.as_mut_ptr().cast::<u64>().add(i).write_unaligned(word) };
        }
        // SAFETY: every word is written, and `T: Pod` takes any bit pattern.
        unsafe { value.assume_init() }
    }

    pub(crate) fn write(&self, row: u32, value: &T) {
        for i in 0..Self::WORDS {
            // SAFETY: word `i` lies inside `T`, whose size is a multiple of 8.
            let word = unsafe { std::ptr::from_ref(value).cast::<u64>().add(i).read_unaligned() };
            self.word(row, i * 8).store(word, Ordering::Relaxed);
        }
        // What is stored after this must not be seen before it.
        fence(Ordering::Release);
    }

    pub(crate) fn store(&self, row: u32, offset: usize, word: u64) {
        self.word(row, offset).store(word, Ordering::Release);
    }

    /// As [`Self::store`], for 32 bits at a multiple of 4.
    pub(super) fn store_half_word(&self, row: u32, offset: usize, value: u32) {
        let word = self.word(row, offset / 8 * 8).as_ptr().cast::<u32>();
        // SAFETY: one half of a word inside the mapping, aligned to 4.
        unsafe { AtomicU32::from_ptr(word.add(offset / 4 % 2)) }.store(value, Ordering::Release);
    }

    /// Copies rows, as bytes, to where no program reads.
    pub(super) fn fill(&self, first: u32, rows: &[u8]) {
        let (start, all) = (first as usize * size_of::<T>(), self.len as usize * size_of::<T>());
        assert!(start <= all && rows.len() <= all - start);
        // SAFETY: inside the mapping by the check above; the two do not overlap, as one of them is the
        // mapping, which `rows` cannot point into: nobody is given a reference to it.
        unsafe {
            std::ptr::copy_nonoverlapping(
                rows.as_ptr(),
                self.memory.as_mut_ptr().add(start),
                rows.len(),
            );
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.len) * size_of::<T>() as u64
    }
}

/// The bytes of rows.
pub(super) fn bytes_of<T: Pod>(rows: &[T]) -> &[u8] {
    // SAFETY: `T: Pod` has no padding, so every byte is initialised; the lifetime is that of `rows`.
    unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), size_of_val(rows)) }
}
