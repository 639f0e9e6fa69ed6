//! Root objects: objects that lead to most of what a program has. They are a boundary of walks.
#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_add, try_insert};
use crate::cpython::fallible_objects::{string_of, types_in};
use crate::libraries::library_types::LibraryTypes;

/// Objects that lead to most of what a program has: an interactive shell, a test session, an event loop.
#[derive(Default)]
pub struct RootObjects {
    /// With subtypes.
    types: Vec<*mut ffi::PyTypeObject>,
    /// Names of packages and modules. The instances of all their classes are root objects.
    packages: FxHashSet<String>,
    known: FxHashMap<usize, bool>,
}

impl RootObjects {
    pub fn new(types: &Bound<'_, PyTuple>, packages: &Bound<'_, PyTuple>) -> PyResult<Self> {
        let mut roots = Self {
            types: types_in(Some(types))?,
            ..Self::default()
        };
        for name in packages {
            try_add(&mut roots.packages, string_of(&name)?)?;
        }
        Ok(roots)
    }

    /// Whether the instances of a type are root objects.
    ///
    /// # Safety
    /// `of` is a live type, and the thread is attached.
    pub unsafe fn include_type(
        &mut self,
        of: *mut ffi::PyTypeObject,
        library_types: &mut LibraryTypes<'_, '_>,
    ) -> Result<bool, Failure> {
        if let Some(&known) = self.known.get(&(of as usize)) {
            return Ok(known);
        }
        // SAFETY: by this function's contract; PyType_IsSubtype walks the MRO.
        let answer = unsafe {
            let is = |&base: &*mut ffi::PyTypeObject| ffi::PyType_IsSubtype(of, base) != 0;
            // A dict subclass leads only to its items.
            let is_dict = ffi::PyType_GetFlags(of) & ffi::Py_TPFLAGS_DICT_SUBCLASS != 0;
            self.types.iter().any(is)
                || (!is_dict && library_types.is_of_package(of.cast(), &self.packages)?)
        };
        try_insert(&mut self.known, of as usize, answer)?;
        Ok(answer)
    }
}
