//! How many references tracked objects have to each other: what the cyclic collector calls `gc_refs`.

use rustc_hash::FxHashMap;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_collect, try_entry};
use crate::heap::address_table::{ByteTable, GRANULE, PAGE};
use crate::heap::prefetch::prefetch;

/// The byte of an object whose count does not fit in a byte, and is in `overflow`. The byte of any other object is 0 if
/// it is not registered, and otherwise its count plus one.
const OVERFLOW: u8 = u8::MAX;

/// The number of references to each registered object, by its address.
#[derive(Default)]
pub struct ReferenceCounts {
    bytes: ByteTable,
    overflow: FxHashMap<usize, usize>,
    /// Counts of objects whose address is no multiple of `GRANULE`, made by another allocator than the interpreter's.
    unaligned: FxHashMap<usize, usize>,
}

/// How many objects a batch has. Their loads from memory overlap.
pub const BATCH: usize = 64;

/// The registered objects in the order of their addresses, followed by those that are not aligned.
///
/// The collector's own lists have objects in the order in which they were made or last survived a collection. Walking
/// such a list waits for memory at every step, and takes as long as traversing the objects.
pub struct RegisteredObjects {
    /// Each page with the index of its block.
    pages: Vec<(usize, usize)>,
    page: usize,
    word: usize,
    unaligned: Vec<usize>,
}

impl RegisteredObjects {
    /// Fills `batch` with the addresses of the next objects, which are being prefetched, and returns how many there are:
    /// 0 after the last object.
    pub fn next_batch(&mut self, counts: &ReferenceCounts, batch: &mut [usize; BATCH]) -> usize {
        let mut filled = 0;
        while let Some(&(page, block)) = self.pages.get(self.page) {
            let words = &counts.bytes.block(block).as_chunks::<WORD>().0[self.word..];
            for &word in words {
                if filled + WORD > BATCH {
                    return filled;
                }
                let mut bytes = u64::from_le_bytes(word);
                while bytes != 0 {
                    let at = bytes.trailing_zeros() as usize / 8;
                    bytes &= !(0xff << (8 * at));
                    let address = page * PAGE + (self.word * WORD + at) * GRANULE;
                    prefetch(address as *const u8);
                    batch[filled] = address;
                    filled += 1;
                }
                self.word += 1;
            }
            self.page += 1;
            self.word = 0;
        }
        while filled < BATCH
            && let Some(address) = self.unaligned.pop()
        {
            batch[filled] = address;
            filled += 1;
        }
        filled
    }
}

const WORD: usize = 8;

impl ReferenceCounts {
    /// Counts the references to an object from now on; `true` if it was not registered before.
    #[inline]
    pub fn register<T>(&mut self, object: *const T) -> Result<bool, Failure> {
        if !is_aligned(object) {
            let is_new = !self.unaligned.contains_key(&(object as usize));
            try_entry(&mut self.unaligned, object as usize)?;
            return Ok(is_new);
        }
        let byte = self.bytes.get_or_insert(object)?;
        let is_new = *byte == 0;
        *byte += u8::from(is_new);
        Ok(is_new)
    }

    /// The registered objects. Objects that are registered meanwhile may be among them.
    pub fn registered(&self) -> Result<RegisteredObjects, Failure> {
        Ok(RegisteredObjects {
            pages: self.bytes.in_order()?,
            page: 0,
            word: 0,
            unaligned: try_collect(self.unaligned.keys().copied())?,
        })
    }

    /// Counts one reference; `false` if the object is not registered.
    #[inline]
    pub fn increment<T>(&mut self, object: *const T) -> Result<bool, Failure> {
        if !is_aligned(object) {
            let count = self.unaligned.get_mut(&(object as usize));
            return Ok(count.map(|count| *count += 1).is_some());
        }
        let Some(byte) = self.bytes.get_mut(object) else {
            return Ok(false);
        };
        match *byte {
            0 => return Ok(false),
            OVERFLOW => *try_entry(&mut self.overflow, object as usize)? += 1,
            few => {
                *byte = few + 1;
                if few + 1 == OVERFLOW {
                    *try_entry(&mut self.overflow, object as usize)? = usize::from(few);
                }
            }
        }
        Ok(true)
    }

    /// How many references to an object were counted.
    #[inline]
    pub fn count_of<T>(&self, object: *const T) -> usize {
        if !is_aligned(object) {
            let count = self.unaligned.get(&(object as usize));
            return count.copied().unwrap_or(0);
        }
        match self.bytes.get(object) {
            0 => 0,
            OVERFLOW => self.overflow.get(&(object as usize)).copied().unwrap_or(0),
            few => usize::from(few) - 1,
        }
    }
}

#[inline]
fn is_aligned<T>(object: *const T) -> bool {
    (object as usize).is_multiple_of(GRANULE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registered_objects_are_counted() {
        let mut counts = ReferenceCounts::default();
        let object = 0x7000_0010 as *const u8;
        assert!(!counts.increment(object).unwrap());
        assert!(counts.register(object).unwrap());
        assert!(!counts.register(object).unwrap());
        assert!(counts.increment(object).unwrap());
        assert_eq!(counts.count_of(object), 1);
        assert_eq!(counts.count_of(0x7000_0020 as *const u8), 0);
    }

    #[test]
    fn registered_objects_come_once_and_in_the_order_of_addresses() {
        let mut counts = ReferenceCounts::default();
        let few = [0x7000_0010, 0x7000_0ff0, 0x9000_0000, 0x1_7000_0000_usize];
        let overflow = (0x2_0000_0000..0x2_0000_4000).step_by(16);
        let unaligned = [0x7000_0028];
        let objects: Vec<_> = few.into_iter().chain(overflow).chain(unaligned).collect();
        for &object in objects.iter().rev() {
            counts.register(object as *const u8).unwrap();
            counts.increment(object as *const u8).unwrap();
        }
        let (mut found, mut batch) = (Vec::new(), [0; BATCH]);
        let mut registered = counts.registered().unwrap();
        loop {
            match registered.next_batch(&counts, &mut batch) {
                0 => break,
                some => found.extend_from_slice(&batch[..some]),
            }
        }
        assert_eq!(found, objects);
    }

    #[test]
    fn a_count_may_exceed_a_byte() {
        let mut counts = ReferenceCounts::default();
        let object = 0x7000_0010 as *const u8;
        counts.register(object).unwrap();
        for expected in 1..1000 {
            counts.increment(object).unwrap();
            assert_eq!(counts.count_of(object), expected);
        }
    }
}
