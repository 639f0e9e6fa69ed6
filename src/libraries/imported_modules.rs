//! The modules in `sys.modules`.
#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::prelude::*;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::try_push;
use crate::heap::type_facts::each_item;

/// The name and the module of an entry of `sys.modules`.
pub type Entry = (*mut ffi::PyObject, *mut ffi::PyObject);

/// The modules in `sys.modules` with their names, as borrowed pointers, which are valid until Python code runs.
pub fn imported_modules(_py: Python<'_>) -> Result<Vec<Entry>, Failure> {
    let mut entries = Vec::new();
    // SAFETY: attached, as `_py` proves; the dict is the interpreter's own, and types are compared in C.
    unsafe {
        each_item(ffi::PyImport_GetModuleDict(), |name, module| {
            if ffi::PyUnicode_CheckExact(name) != 0
                && ffi::PyObject_TypeCheck(module, &raw mut ffi::PyModule_Type) != 0
            {
                try_push(&mut entries, (name, module))?;
            }
            Ok(())
        })?;
    }
    Ok(entries)
}
