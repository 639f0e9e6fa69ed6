//! Tables by address: a block of data for each page of memory that has an entry.
//!
//! Objects that were made together are near each other in memory, so most look-ups are for a page that was looked up
//! recently. A small direct-mapped cache finds its block without hashing.

use rustc_hash::FxHashMap;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_collect, try_push, try_repeat};

const NO_PAGE: usize = usize::MAX;
const NO_BLOCK: u32 = u32::MAX;

/// A block for each page; `CACHED` is the number of entries in the cache.
pub struct PageTable<B, const CACHED: usize> {
    /// The index of the block of each page.
    indices: FxHashMap<usize, u32>,
    blocks: Vec<B>,
    cached: [(usize, u32); CACHED],
    /// Pages that were looked up and have no block.
    known_absent: [usize; CACHED],
    empty: fn() -> Result<B, Failure>,
}

impl<B, const CACHED: usize> PageTable<B, CACHED> {
    /// `empty` makes an empty block.
    pub fn new(empty: fn() -> Result<B, Failure>) -> Self {
        Self {
            indices: FxHashMap::default(),
            blocks: Vec::new(),
            cached: [(NO_PAGE, NO_BLOCK); CACHED],
            known_absent: [NO_PAGE; CACHED],
            empty,
        }
    }

    /// The block of a page, which is inserted if there is none.
    #[inline]
    pub fn get_or_insert(&mut self, page: usize) -> Result<&mut B, Failure> {
        let (known, at) = self.cached[page % CACHED];
        let at = if known == page {
            at
        } else {
            self.insert(page)?
        };
        Ok(&mut self.blocks[at as usize])
    }

    #[cold]
    fn insert(&mut self, page: usize) -> Result<u32, Failure> {
        let at = match self.indices.get(&page) {
            Some(&at) => at,
            None => {
                let at = u32::try_from(self.blocks.len()).map_err(|_| Failure::OutOfMemory)?;
                let room = self.indices.try_reserve(1);
                room.map_err(|_| Failure::OutOfMemory)?;
                try_push(&mut self.blocks, (self.empty)()?)?;
                self.indices.insert(page, at);
                self.known_absent[page % CACHED] = NO_PAGE;
                at
            }
        };
        self.cached[page % CACHED] = (page, at);
        Ok(at)
    }

    /// Every page that has a block, in the order of addresses, each with the index of its block.
    pub fn in_order(&self) -> Result<Vec<(usize, usize)>, Failure> {
        let mut pages = try_collect(self.indices.iter().map(|(&page, &at)| (page, at as usize)))?;
        pages.sort_unstable();
        Ok(pages)
    }

    /// The block with an index.
    pub fn block(&self, at: usize) -> &B {
        &self.blocks[at]
    }

    /// The block of a page, if there is one.
    #[inline]
    pub fn get(&self, page: usize) -> Option<&B> {
        let (known, at) = self.cached[page % CACHED];
        let at = match known == page {
            true => at,
            false => self.indices.get(&page).copied()?,
        };
        Some(&self.blocks[at as usize])
    }

    /// The block of a page, if there is one. Caches the answer.
    #[inline]
    pub fn get_mut(&mut self, page: usize) -> Option<&mut B> {
        let (known, at) = self.cached[page % CACHED];
        if known == page {
            return Some(&mut self.blocks[at as usize]);
        }
        if self.known_absent[page % CACHED] == page {
            return None;
        }
        let Some(&at) = self.indices.get(&page) else {
            self.known_absent[page % CACHED] = page;
            return None;
        };
        self.cached[page % CACHED] = (page, at);
        Some(&mut self.blocks[at as usize])
    }
}

/// The size of a page of `ByteTable`, in bytes. With larger pages a table of scattered objects would be large.
pub const PAGE: usize = 1 << 14;

/// The alignment of tracked objects in bytes: `PyObject_Malloc` aligns to it, and the header that the collector puts
/// before an object has the same size (`PyGC_Head`). So no two objects begin within this many bytes.
pub const GRANULE: usize = 16;

/// A byte for each address where an object may begin, 0 at first.
pub struct ByteTable(PageTable<Vec<u8>, 1024>);

impl Default for ByteTable {
    fn default() -> Self {
        Self(PageTable::new(|| try_repeat(0, PAGE / GRANULE)))
    }
}

impl ByteTable {
    /// The byte of an object, which is inserted if it is missing.
    #[inline]
    pub fn get_or_insert<T>(&mut self, object: *const T) -> Result<&mut u8, Failure> {
        let (page, at) = page_and_index(object);
        Ok(&mut self.0.get_or_insert(page)?[at])
    }

    /// The byte of an object, if its page has a block.
    #[inline]
    pub fn get_mut<T>(&mut self, object: *const T) -> Option<&mut u8> {
        let (page, at) = page_and_index(object);
        self.0.get_mut(page).map(|bytes| &mut bytes[at])
    }

    #[inline]
    pub fn get<T>(&self, object: *const T) -> u8 {
        let (page, at) = page_and_index(object);
        self.0.get(page).map_or(0, |bytes| bytes[at])
    }

    /// Every page that has a block, in the order of addresses, each with the index of its block.
    pub fn in_order(&self) -> Result<Vec<(usize, usize)>, Failure> {
        self.0.in_order()
    }

    /// The bytes of the block with an index.
    pub fn block(&self, at: usize) -> &[u8] {
        self.0.block(at)
    }
}

#[inline]
fn page_and_index<T>(object: *const T) -> (usize, usize) {
    let address = object as usize;
    (address / PAGE, address % PAGE / GRANULE)
}
