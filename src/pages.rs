//! A table by address, in pages of memory.
//!
//! Objects that were made together lie together, so most questions go to a page that was asked about before,
//! and it is found in a small direct-mapped table without hashing.

use rustc_hash::FxHashMap;

use crate::gc::Failure;
use crate::room::try_push;

/// How many bytes of memory a block stands for.
pub const PAGE: usize = 4096;

const FRONT: usize = 1024;
const NO_PAGE: usize = usize::MAX;
const NO_BLOCK: u32 = u32::MAX;

/// A block for each page of memory that something was put into.
pub struct Pages<B> {
    places: FxHashMap<usize, u32>,
    blocks: Vec<B>,
    front: [(usize, u32); FRONT],
    empty: B,
}

impl<B: Copy> Pages<B> {
    pub fn new(empty: B) -> Self {
        Self {
            places: FxHashMap::default(),
            blocks: Vec::new(),
            front: [(NO_PAGE, NO_BLOCK); FRONT],
            empty,
        }
    }

    /// The block of a page, which is made if there is none.
    #[inline]
    pub fn made(&mut self, page: usize) -> Result<&mut B, Failure> {
        let (known, at) = self.front[page % FRONT];
        let at = match known == page && at != NO_BLOCK {
            true => at,
            false => self.make(page)?,
        };
        Ok(&mut self.blocks[at as usize])
    }

    #[cold]
    fn make(&mut self, page: usize) -> Result<u32, Failure> {
        let at = match self.places.get(&page) {
            Some(&at) => at,
            None => {
                let at = u32::try_from(self.blocks.len()).map_err(|_| Failure::OutOfMemory)?;
                let room = self.places.try_reserve(1);
                room.map_err(|_| Failure::OutOfMemory)?;
                try_push(&mut self.blocks, self.empty)?;
                self.places.insert(page, at);
                at
            }
        };
        self.front[page % FRONT] = (page, at);
        Ok(at)
    }

    /// The block of a page, if there is one.
    #[inline]
    pub fn get(&self, page: usize) -> Option<&B> {
        let (known, at) = self.front[page % FRONT];
        let at = match known == page {
            true => at,
            false => self.places.get(&page).copied().unwrap_or(NO_BLOCK),
        };
        self.blocks.get(at as usize)
    }

    /// The block of a page, if there is one; remembers where, and also that there is none.
    #[inline]
    pub fn get_mut(&mut self, page: usize) -> Option<&mut B> {
        let front = &mut self.front[page % FRONT];
        if front.0 != page {
            *front = (page, self.places.get(&page).copied().unwrap_or(NO_BLOCK));
        }
        self.blocks.get_mut(front.1 as usize)
    }
}
