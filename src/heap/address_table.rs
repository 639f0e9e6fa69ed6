//! A table by address: a block for each stretch of memory that something was put into.
//!
//! Objects that were made together lie together, so most questions go to a stretch that was asked about before,
//! and it is found in a small direct-mapped table without hashing.

use rustc_hash::FxHashMap;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_collect, try_push, try_repeat};

const NO_PAGE: usize = usize::MAX;
const NO_BLOCK: u32 = u32::MAX;

/// A block for each stretch of memory; ``FRONT`` is how many are found without hashing.
pub struct Pages<B, const FRONT: usize> {
    places: FxHashMap<usize, u32>,
    blocks: Vec<B>,
    front: [(usize, u32); FRONT],
    /// Pages without a block.
    absent: [usize; FRONT],
    empty: fn() -> Result<B, Failure>,
}

impl<B, const FRONT: usize> Pages<B, FRONT> {
    /// `empty` makes a block that nothing was put into.
    pub fn new(empty: fn() -> Result<B, Failure>) -> Self {
        Self {
            places: FxHashMap::default(),
            blocks: Vec::new(),
            front: [(NO_PAGE, NO_BLOCK); FRONT],
            absent: [NO_PAGE; FRONT],
            empty,
        }
    }

    /// The block of a page, which is made if there is none.
    #[inline]
    pub fn made(&mut self, page: usize) -> Result<&mut B, Failure> {
        let (known, at) = self.front[page % FRONT];
        let at = if known == page { at } else { self.make(page)? };
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
                try_push(&mut self.blocks, (self.empty)()?)?;
                self.places.insert(page, at);
                self.absent[page % FRONT] = NO_PAGE;
                at
            }
        };
        self.front[page % FRONT] = (page, at);
        Ok(at)
    }

    /// Every page that has a block, in the order of their addresses, each with the place of its block.
    pub fn in_order(&self) -> Result<Vec<(usize, usize)>, Failure> {
        let mut pages = try_collect(self.places.iter().map(|(&page, &at)| (page, at as usize)))?;
        pages.sort_unstable();
        Ok(pages)
    }

    /// The block at a place.
    pub fn block(&self, at: usize) -> &B {
        &self.blocks[at]
    }

    /// The block of a page, if there is one.
    #[inline]
    pub fn get(&self, page: usize) -> Option<&B> {
        let (known, at) = self.front[page % FRONT];
        let at = match known == page {
            true => at,
            false => self.places.get(&page).copied()?,
        };
        Some(&self.blocks[at as usize])
    }

    /// The block of a page, if there is one; remembers where it is, or that there is none.
    #[inline]
    pub fn get_mut(&mut self, page: usize) -> Option<&mut B> {
        let (known, at) = self.front[page % FRONT];
        if known == page {
            return Some(&mut self.blocks[at as usize]);
        }
        if self.absent[page % FRONT] == page {
            return None;
        }
        let Some(&at) = self.places.get(&page) else {
            self.absent[page % FRONT] = page;
            return None;
        };
        self.front[page % FRONT] = (page, at);
        Some(&mut self.blocks[at as usize])
    }
}

/// How many bytes of memory a block of `ObjectBytes` stands for. More, and a table of objects that lie scattered
/// would be large.
pub const PAGE: usize = 1 << 14;

/// Objects that the collector tracks begin at a multiple of this: `PyObject_Malloc` aligns to it, and the head that
/// the collector puts before an object has as many bytes (`PyGC_Head`). No two objects begin within so many bytes.
pub const GRANULE: usize = 16;

/// A byte for each place where an object may begin; 0 where nothing was put.
pub struct ObjectBytes(Pages<Vec<u8>, 1024>);

impl Default for ObjectBytes {
    fn default() -> Self {
        Self(Pages::new(|| try_repeat(0, PAGE / GRANULE)))
    }
}

impl ObjectBytes {
    /// The byte of an object, to put something there.
    #[inline]
    pub fn made<T>(&mut self, object: *const T) -> Result<&mut u8, Failure> {
        let (page, at) = place(object);
        Ok(&mut self.0.made(page)?[at])
    }

    /// The byte of an object, if anything was put near it.
    #[inline]
    pub fn get_mut<T>(&mut self, object: *const T) -> Option<&mut u8> {
        let (page, at) = place(object);
        self.0.get_mut(page).map(|bytes| &mut bytes[at])
    }

    #[inline]
    pub fn get<T>(&self, object: *const T) -> u8 {
        let (page, at) = place(object);
        self.0.get(page).map_or(0, |bytes| bytes[at])
    }

    /// Every page that has a block, in the order of their addresses, each with the place of its block.
    pub fn in_order(&self) -> Result<Vec<(usize, usize)>, Failure> {
        self.0.in_order()
    }

    /// The bytes of the block at a place.
    pub fn block(&self, at: usize) -> &[u8] {
        self.0.block(at)
    }
}

#[inline]
fn place<T>(object: *const T) -> (usize, usize) {
    let address = object as usize;
    (address / PAGE, address % PAGE / GRANULE)
}
