//! Sets of objects by address, and `IdSet`, such a set for Python.

use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_objects::text;
use crate::heap::address_table::PageTable;

/// The least alignment of objects in bytes: static objects are aligned to a word, objects on the heap to two words.
const ALIGNMENT: usize = 8;
/// The size of a page in bytes.
const PAGE: usize = 4096;
/// One bit for each address in a page where an object may begin: 64 bytes, one cache line.
type Bits = [u64; PAGE / ALIGNMENT / 64];

/// A set of addresses of objects. It has no references to them: an address is meaningful only while its object is alive.
pub struct Addresses {
    pages: PageTable<Bits, 256>,
    len: usize,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            pages: PageTable::new(|| Ok(Bits::default())),
            len: 0,
        }
    }
}

impl Addresses {
    /// Adds an address; `true` if it was not there. Running out of memory is an error, not an abort.
    #[inline]
    pub fn insert<T>(&mut self, object: *const T) -> Result<bool, Failure> {
        let (page, word, bit) = page_word_and_bit(object);
        let word = &mut self.pages.get_or_insert(page)?[word];
        let is_new = *word & bit == 0;
        *word |= bit;
        self.len += usize::from(is_new);
        Ok(is_new)
    }

    #[inline]
    pub fn contains<T>(&self, object: *const T) -> bool {
        let (page, word, bit) = page_word_and_bit(object);
        self.pages
            .get(page)
            .is_some_and(|bits| bits[word] & bit != 0)
    }

    pub fn remove<T>(&mut self, object: *const T) -> bool {
        let (page, word, bit) = page_word_and_bit(object);
        let was_there = self.contains(object);
        if let Some(bits) = self.pages.get_mut(page) {
            bits[word] &= !bit;
        }
        self.len -= usize::from(was_there);
        was_there
    }

    pub fn count(&self) -> usize {
        self.len
    }
}

/// The page of an address, and the word and the bit for it in that page's block.
#[inline]
fn page_word_and_bit<T>(object: *const T) -> (usize, usize, u64) {
    let address = object as usize;
    debug_assert_eq!(address % ALIGNMENT, 0, "an object that is not aligned");
    let index = address % PAGE / ALIGNMENT;
    (address / PAGE, index / 64, 1 << (index % 64))
}

/// A set of objects by identity.
///
/// No `__eq__` and no `__hash__` is called. The set has no references to its objects: the caller must keep them alive,
/// because the address of a freed object may be reused.
#[pyclass(module = "fastpurge._core")]
#[derive(Default)]
pub struct IdSet {
    addresses: Addresses,
}

impl IdSet {
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }
}

impl From<Addresses> for IdSet {
    fn from(addresses: Addresses) -> Self {
        Self { addresses }
    }
}

#[pymethods]
impl IdSet {
    #[new]
    #[pyo3(signature = (objects=None, /))]
    fn new(objects: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let mut set = Self::default();
        if let Some(objects) = objects {
            for object in objects.try_iter()? {
                set.addresses.insert(object?.as_ptr())?;
            }
        }
        Ok(set)
    }

    /// Adds one object.
    #[pyo3(signature = (object, /))]
    fn add(&mut self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        self.addresses.insert(object.as_ptr())?;
        Ok(())
    }

    /// Adds every object of an iterable.
    #[pyo3(signature = (objects, /))]
    fn update(slf: &Bound<'_, Self>, objects: &Bound<'_, PyAny>) -> PyResult<()> {
        for object in objects.try_iter()? {
            // Borrowed for each object: the iterator may run code that uses this set.
            slf.borrow_mut().addresses.insert(object?.as_ptr())?;
        }
        Ok(())
    }

    /// Removes one object, if it is there.
    #[pyo3(signature = (object, /))]
    pub fn discard(&mut self, object: &Bound<'_, PyAny>) {
        self.addresses.remove(object.as_ptr());
    }

    fn __contains__(&self, object: &Bound<'_, PyAny>) -> bool {
        self.addresses.contains(object.as_ptr())
    }

    fn __len__(&self) -> usize {
        self.addresses.count()
    }

    fn __repr__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        text(
            py,
            &format!("<IdSet of {} objects>", self.addresses.count()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_new_once() {
        let mut set = Addresses::default();
        let (a, b) = (Box::new(1u64), Box::new(1u64));
        assert!(set.insert(&raw const *a).unwrap());
        assert!(!set.insert(&raw const *a).unwrap());
        assert!(set.insert(&raw const *b).unwrap());
        assert_eq!(set.count(), 2);
    }

    #[test]
    fn what_is_removed_is_gone() {
        let mut set = Addresses::default();
        let a = Box::new(1u64);
        set.insert(&raw const *a).unwrap();
        assert!(set.remove(&raw const *a));
        assert!(!set.remove(&raw const *a));
        assert!(!set.contains(&raw const *a));
    }

    #[test]
    fn grows_past_its_first_capacity() {
        let mut set = Addresses::default();
        for address in (16..1_600_016usize).step_by(16) {
            assert!(set.insert(address as *const u8).unwrap());
        }
        assert_eq!(set.count(), 100_000);
        assert!(set.contains(16 as *const u8));
        assert!(!set.contains(8 as *const u8));
    }
}
