//! `IdSet`: a set of object identities, keyed by address.

use pyo3::prelude::*;
use rustc_hash::FxHashSet;

use crate::gc::Failure;

/// Addresses of objects. Holds no references: an address says something only while its object lives.
#[derive(Default)]
pub struct Addresses(FxHashSet<usize>);

impl Addresses {
    /// Adds an address; `true` if it was not there. Running out of memory is an error, not an abort.
    #[inline]
    pub fn insert<T>(&mut self, object: *const T) -> Result<bool, Failure> {
        if self.0.len() == self.0.capacity() {
            self.0.try_reserve(1).map_err(|_| Failure::OutOfMemory)?;
        }
        Ok(self.0.insert(object as usize))
    }

    #[inline]
    pub fn contains<T>(&self, object: *const T) -> bool {
        self.0.contains(&(object as usize))
    }

    pub fn remove<T>(&mut self, object: *const T) -> bool {
        self.0.remove(&(object as usize))
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// A set of object identities.
///
/// Membership is by identity alone: no `__eq__` and no `__hash__` is run. The set holds no
/// references, so it is for the caller to keep alive what it asks about.
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
            // Borrowed anew each time: advancing the iterator runs code that may use this very set.
            slf.borrow_mut().addresses.insert(object?.as_ptr())?;
        }
        Ok(())
    }

    /// Removes one object, if it is there.
    #[pyo3(signature = (object, /))]
    fn discard(&mut self, object: &Bound<'_, PyAny>) {
        self.addresses.remove(object.as_ptr());
    }

    fn __contains__(&self, object: &Bound<'_, PyAny>) -> bool {
        self.addresses.contains(object.as_ptr())
    }

    fn __len__(&self) -> usize {
        self.addresses.len()
    }

    fn __repr__(&self) -> String {
        format!("<IdSet of {} objects>", self.addresses.len())
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
        assert_eq!(set.len(), 2);
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
        assert_eq!(set.len(), 100_000);
        assert!(set.contains(16 as *const u8));
        assert!(!set.contains(8 as *const u8));
    }
}
