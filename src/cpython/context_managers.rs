//! Which types are context managers.
#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::cpython::fallible_objects::text;
use crate::cpython::unstable_functions::c_function;

/// Recognizes types with `__exit__` or `__aexit__`.
pub struct ContextManagers<'py> {
    look_up: Option<TypeLookup>,
    names: [Bound<'py, PyString>; 2],
}

/// `_PyType_Lookup` (Include/cpython/object.h): walks the MRO, and runs no code of a metaclass.
type TypeLookup =
    unsafe extern "C" fn(*mut ffi::PyTypeObject, *mut ffi::PyObject) -> *mut ffi::PyObject;

impl<'py> ContextManagers<'py> {
    pub fn new(py: Python<'py>) -> PyResult<Self> {
        Ok(Self {
            // SAFETY: `TypeLookup` is the type of the declaration.
            look_up: unsafe { c_function(py, c"_PyType_Lookup") },
            names: [text(py, "__exit__")?, text(py, "__aexit__")?],
        })
    }

    /// # Safety
    /// `of` is a live type and the thread is attached.
    pub unsafe fn is_context_manager_type(&self, of: *mut ffi::PyTypeObject) -> bool {
        // Without the function any type may be a context manager.
        self.look_up.is_none_or(|look_up| {
            // SAFETY: by this function's contract; the result is borrowed, and only compared.
            let found =
                |name: &Bound<'_, PyString>| unsafe { !look_up(of, name.as_ptr()).is_null() };
            self.names.iter().any(found)
        })
    }
}
