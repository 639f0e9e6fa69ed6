//! Counting references: which objects are held from where the collector cannot look.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;
use rustc_hash::FxHashMap;

use crate::gc::{Failure, GcPause, walk};
use crate::types::TypeTable;

/// For each object, whether something that the collector cannot see into holds a reference to it.
///
/// This is the arithmetic of the cyclic collector (`subtract_refs` in Modules/gcmodule.c): references
/// that tracked objects hold are taken off the reference count, and what is left comes from outside.
#[pyfunction]
#[pyo3(signature = (objects, /))]
pub fn untraced(py: Python<'_>, objects: &Bound<'_, PyList>) -> PyResult<Vec<bool>> {
    let mut references = FxHashMap::default();
    for object in objects.iter() {
        references.insert(object.as_ptr() as usize, 0);
    }
    let mut types = TypeTable::new(Vec::new(), Vec::new());
    let _pause = GcPause::new(py);
    walk(py, |object| {
        // SAFETY: the walk hands on live objects, and this thread is attached.
        unsafe { count(object, &mut types, &mut references) }
    })?;
    Ok((0..objects.len())
        .map(|index| {
            // SAFETY: `objects` holds the item, and nothing shrinks the list in between.
            let object = unsafe { ffi::PyList_GetItem(objects.as_ptr(), index as ffi::Py_ssize_t) };
            // SAFETY: a live object.
            let count = unsafe { ffi::Py_REFCNT(object) };
            count > references[&(object as usize)]
        })
        .collect())
}

type References = FxHashMap<usize, ffi::Py_ssize_t>;

/// # Safety
/// `object` is live and the thread is attached.
unsafe fn count(
    object: *mut ffi::PyObject,
    types: &mut TypeTable,
    references: &mut References,
) -> Result<(), Failure> {
    // SAFETY: by this function's contract; a tracked object is one its type's tp_traverse is for.
    unsafe {
        if let Some(traverse) = types.of(object).traverse {
            traverse(object, visit, (&raw mut *references).cast());
        }
    }
    Ok(())
}

/// # Safety
/// `references` points to the live map of `count`.
unsafe extern "C" fn visit(object: *mut ffi::PyObject, references: *mut c_void) -> c_int {
    // SAFETY: by this function's contract; nothing here can panic.
    let references = unsafe { &mut *references.cast::<References>() };
    if let Some(count) = references.get_mut(&(object as usize)) {
        *count += 1;
    }
    0
}
