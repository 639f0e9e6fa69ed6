//! How many references tracked objects hold to each other: what the cyclic collector calls `gc_refs`.

use rustc_hash::FxHashMap;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_collect, try_entry};
use crate::heap::address_table::{GRANULE, ObjectBytes, PAGE};
use crate::heap::prefetch::prefetch;

/// The byte of an object with more references than a byte can say. That of another one is 0 if it is not counted,
/// and else one more than the references to it.
const MANY: u8 = u8::MAX;

/// References by the address of the object that they are to.
#[derive(Default)]
pub struct Counts {
    bytes: ObjectBytes,
    many: FxHashMap<usize, usize>,
    /// Those that begin at no multiple of `GRANULE`: what another allocator than the interpreter's has made.
    unaligned: FxHashMap<usize, usize>,
}

/// How many objects are looked at together: their loads from memory overlap.
pub const BATCH: usize = 64;

/// What was begun, in the order of addresses, and at last what is not aligned.
///
/// The lists of the collector lead from object to object in the order in which they were made, or have last
/// survived: to follow one is to wait for memory at every step, and takes as long as to traverse the objects.
pub struct Begun {
    /// Each page with the place of its block.
    pages: Vec<(usize, usize)>,
    page: usize,
    word: usize,
    unaligned: Vec<usize>,
}

impl Begun {
    /// The next objects, by their addresses, on their way from memory; none after the last.
    pub fn next(&mut self, counts: &Counts, batch: &mut [usize; BATCH]) -> usize {
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

impl Counts {
    /// Counts the references to an object from now on; `true` if they were not counted before.
    #[inline]
    pub fn begin<T>(&mut self, object: *const T) -> Result<bool, Failure> {
        if !is_aligned(object) {
            let is_new = !self.unaligned.contains_key(&(object as usize));
            try_entry(&mut self.unaligned, object as usize)?;
            return Ok(is_new);
        }
        let byte = self.bytes.made(object)?;
        let is_new = *byte == 0;
        *byte += u8::from(is_new);
        Ok(is_new)
    }

    /// What was begun, from the start; what is begun meanwhile may be among it.
    pub fn begun(&self) -> Result<Begun, Failure> {
        Ok(Begun {
            pages: self.bytes.in_order()?,
            page: 0,
            word: 0,
            unaligned: try_collect(self.unaligned.keys().copied())?,
        })
    }

    /// Adds a reference; `false` if those to this object are not counted.
    #[inline]
    pub fn add<T>(&mut self, object: *const T) -> Result<bool, Failure> {
        if !is_aligned(object) {
            let count = self.unaligned.get_mut(&(object as usize));
            return Ok(count.map(|count| *count += 1).is_some());
        }
        let Some(byte) = self.bytes.get_mut(object) else {
            return Ok(false);
        };
        match *byte {
            0 => return Ok(false),
            MANY => *try_entry(&mut self.many, object as usize)? += 1,
            few => {
                *byte = few + 1;
                if few + 1 == MANY {
                    *try_entry(&mut self.many, object as usize)? = usize::from(few);
                }
            }
        }
        Ok(true)
    }

    /// The references to an object that were counted.
    #[inline]
    pub fn of<T>(&self, object: *const T) -> usize {
        if !is_aligned(object) {
            let count = self.unaligned.get(&(object as usize));
            return count.copied().unwrap_or(0);
        }
        match self.bytes.get(object) {
            0 => 0,
            MANY => self.many.get(&(object as usize)).copied().unwrap_or(0),
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
    fn only_what_was_begun_is_counted() {
        let mut counts = Counts::default();
        let object = 0x7000_0010 as *const u8;
        assert!(!counts.add(object).unwrap());
        assert!(counts.begin(object).unwrap());
        assert!(!counts.begin(object).unwrap());
        assert!(counts.add(object).unwrap());
        assert_eq!(counts.of(object), 1);
        assert_eq!(counts.of(0x7000_0020 as *const u8), 0);
    }

    #[test]
    fn what_was_begun_comes_once_and_in_the_order_of_addresses() {
        let mut counts = Counts::default();
        let few = [0x7000_0010, 0x7000_0ff0, 0x9000_0000, 0x1_7000_0000_usize];
        let many = (0x2_0000_0000..0x2_0000_4000).step_by(16);
        let unaligned = [0x7000_0028];
        let objects: Vec<_> = few.into_iter().chain(many).chain(unaligned).collect();
        for &object in objects.iter().rev() {
            counts.begin(object as *const u8).unwrap();
            counts.add(object as *const u8).unwrap();
        }
        let (mut met, mut batch) = (Vec::new(), [0; BATCH]);
        let mut begun = counts.begun().unwrap();
        loop {
            match begun.next(&counts, &mut batch) {
                0 => break,
                some => met.extend_from_slice(&batch[..some]),
            }
        }
        assert_eq!(met, objects);
    }

    #[test]
    fn a_count_goes_beyond_a_byte() {
        let mut counts = Counts::default();
        let object = 0x7000_0010 as *const u8;
        counts.begin(object).unwrap();
        for expected in 1..1000 {
            counts.add(object).unwrap();
            assert_eq!(counts.of(object), expected);
        }
    }
}
