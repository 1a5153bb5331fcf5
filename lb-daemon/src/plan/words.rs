//! Words that a frontend's row points to, in the arena that rings stand in too.

use super::{Full, alloc::Arena};
use crate::datapath::{Op, Tables};

/// Where they are; by default nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    at: Option<u32>,
    len: u32,
}

impl Place {
    /// Takes note of what stands in the arena at `at`, unless it has been noted already: as many words as `length`
    /// says. What makes no sense there (`None`, or words that are not all free) is left alone, and written anew.
    pub(super) fn adopt(
        &mut self,
        at: Option<u32>,
        length: impl FnOnce(u32) -> Option<u32>,
        arena: &mut Arena,
    ) {
        let Some(at) = at.filter(|_| self.at.is_none()) else { return };
        if let Some(len) = length(at).filter(|&len| arena.claim(at, len)) {
            *self = Self { at: Some(at), len };
        }
    }

    /// Index of the first one, as [`abi::table::Frontend::special_word`] wants it.
    pub(super) fn at(self) -> Option<u32> {
        self.at
    }

    /// How many they are.
    pub(super) fn len(self) -> u32 {
        self.len
    }

    /// Gives them back.
    pub(super) fn give(self, arena: &mut Arena) {
        if let Some(at) = self.at {
            arena.give(at, self.len);
        }
    }

    /// Has these stand in their place. What stands there and is the same stays; what it replaces is given back.
    ///
    /// # Errors
    /// [`Full`].
    pub(super) fn put(
        self,
        words: Vec<u64>,
        arena: &mut Arena,
        tables: &dyn Tables,
        ops: &mut Vec<Op>,
    ) -> Result<Self, Full> {
        let len = words.len() as u32;
        if let Some(at) = self.at
            && self.len == len
            && (at..).zip(&words).all(|(i, &word)| tables.slot(i) == word)
        {
            return Ok(self);
        }
        self.give(arena);
        if words.is_empty() {
            return Ok(Self::default());
        }
        let at = arena.take(len).ok_or(Full("SLOTS"))?;
        ops.push(Op::Words { offset: at, words });
        Ok(Self { at: Some(at), len })
    }
}
