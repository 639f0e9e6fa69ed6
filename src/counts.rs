//! How many references tracked objects hold to each other: what the cyclic collector calls `gc_refs`.

use rustc_hash::FxHashMap;

use crate::gc::Failure;
use crate::pages::{PAGE, Pages};
use crate::room::try_entry;

/// No two objects begin within this many bytes: the head of an object alone has as many.
const GRANULE: usize = 16;

/// A byte for each place in a page where an object may begin: 0 for an object that is not counted, one more than
/// the references to one that is, and `MANY` if a byte is too small.
type Bytes = [u8; PAGE / GRANULE];

const MANY: u8 = u8::MAX;

/// References by the address of the object that they are to.
pub struct Counts {
    pages: Pages<Bytes, 1024>,
    many: FxHashMap<usize, usize>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            pages: Pages::new([0; PAGE / GRANULE]),
            many: FxHashMap::default(),
        }
    }
}

impl Counts {
    /// Counts the references to an object from now on; `true` if they were not counted before.
    #[inline]
    pub fn begin<T>(&mut self, object: *const T) -> Result<bool, Failure> {
        let (page, at) = place(object);
        let byte = &mut self.pages.made(page)?[at];
        let is_new = *byte == 0;
        *byte += u8::from(is_new);
        Ok(is_new)
    }

    /// Adds a reference; `false` if those to this object are not counted.
    #[inline]
    pub fn add<T>(&mut self, object: *const T) -> Result<bool, Failure> {
        let (page, at) = place(object);
        let Some(bytes) = self.pages.get_mut(page) else {
            return Ok(false);
        };
        match bytes[at] {
            0 => return Ok(false),
            MANY => *try_entry(&mut self.many, object as usize)? += 1,
            few => {
                bytes[at] = few + 1;
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
        let (page, at) = place(object);
        match self.pages.get(page).map_or(0, |bytes| bytes[at]) {
            0 => 0,
            MANY => self.many.get(&(object as usize)).copied().unwrap_or(0),
            few => usize::from(few) - 1,
        }
    }
}

#[inline]
fn place<T>(object: *const T) -> (usize, usize) {
    let address = object as usize;
    (address / PAGE, address % PAGE / GRANULE)
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
