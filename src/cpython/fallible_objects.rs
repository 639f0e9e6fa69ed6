//! Calls to Python and new Python objects, with running out of memory as `MemoryError`.
//!
//! PyO3 panics if the interpreter has no memory for a str, an int, a list or a tuple, and aborts if there is none for
//! the exception that it makes of the panic (`panic_on_null` in its src/instance.rs). It also makes such objects for
//! the name of an attribute and the arguments of a call, and imports `collections.abc` to unpack a sequence. So none of that
//! is used once the module is loaded.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::ptr;

use pyo3::exceptions::PyMemoryError;
use pyo3::ffi;
use pyo3::panic::PanicException;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple, PyType};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_copy, try_push};

/// Initializes the type that PyO3 needs to fetch its first exception. Without memory for that it would panic later.
pub fn prepare(py: Python<'_>) {
    py.get_type::<PanicException>();
}

/// The result of a C function.
///
/// # Safety
/// `new` is a new reference, or null with an exception set.
pub unsafe fn owned_or_error(
    py: Python<'_>,
    new: *mut ffi::PyObject,
) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: by this function's contract.
    unsafe { Bound::from_owned_ptr_or_err(py, new) }
}

pub fn checked(py: Python<'_>, result: std::ffi::c_int) -> PyResult<()> {
    if result == 0 {
        return Ok(());
    }
    Err(PyErr::fetch(py))
}

pub fn text<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyString>> {
    // SAFETY: attached, and the length is that of the bytes, which are UTF-8.
    let get_or_insert = unsafe {
        let length = ffi::Py_ssize_t::try_from(text.len())?;
        owned_or_error(
            py,
            ffi::PyUnicode_FromStringAndSize(text.as_ptr().cast(), length),
        )
    };
    Ok(get_or_insert?.cast_into::<PyString>()?)
}

pub fn number(py: Python<'_>, number: usize) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: attached.
    unsafe { owned_or_error(py, ffi::PyLong_FromSize_t(number)) }
}

/// A list of what `give` returns for each item.
pub fn list<'py, T>(
    py: Python<'py>,
    items: Vec<T>,
    mut give: impl FnMut(T) -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyList>> {
    let length = ffi::Py_ssize_t::try_from(items.len())?;
    // SAFETY: attached; the list is new and as long as the items, and takes over the reference to each.
    unsafe {
        let list = owned_or_error(py, ffi::PyList_New(length))?;
        for (at, item) in (0..).zip(items) {
            let item = give(item)?.into_ptr();
            checked(py, ffi::PyList_SetItem(list.as_ptr(), at, item))?;
        }
        Ok(list.cast_into::<PyList>()?)
    }
}

pub fn tuple<'py, const LENGTH: usize>(
    py: Python<'py>,
    items: [Bound<'py, PyAny>; LENGTH],
) -> PyResult<Bound<'py, PyAny>> {
    let length = ffi::Py_ssize_t::try_from(LENGTH)?;
    // SAFETY: as for a list.
    unsafe {
        let tuple = owned_or_error(py, ffi::PyTuple_New(length))?;
        for (at, item) in (0..).zip(items) {
            checked(
                py,
                ffi::PyTuple_SetItem(tuple.as_ptr(), at, item.into_ptr()),
            )?;
        }
        Ok(tuple)
    }
}

pub fn dict(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    // SAFETY: attached.
    Ok(unsafe { owned_or_error(py, ffi::PyDict_New()) }?.cast_into::<PyDict>()?)
}

pub fn or_none<'py>(py: Python<'py>, object: Option<Bound<'py, PyAny>>) -> Bound<'py, PyAny> {
    object.unwrap_or_else(|| py.None().into_bound(py))
}

pub fn import<'py>(py: Python<'py>, module: &CStr) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: attached; a C string.
    unsafe { owned_or_error(py, ffi::PyImport_ImportModule(module.as_ptr())) }
}

pub fn attribute<'py>(of: &Bound<'py, PyAny>, name: &CStr) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: attached; a live object and a C string.
    unsafe {
        owned_or_error(
            of.py(),
            ffi::PyObject_GetAttrString(of.as_ptr(), name.as_ptr()),
        )
    }
}

/// Calls a function of a module without arguments.
pub fn call_module_function<'py>(
    py: Python<'py>,
    module: &CStr,
    function: &CStr,
) -> PyResult<Bound<'py, PyAny>> {
    attribute(&import(py, module)?, function)?.call0()
}

pub fn call<'py>(
    function: &Bound<'py, PyAny>,
    argument: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let end = ptr::null_mut::<ffi::PyObject>();
    let (function_ptr, argument) = (function.as_ptr(), argument.as_ptr());
    // SAFETY: attached; both are live, and null ends the arguments.
    unsafe {
        let result = ffi::PyObject_CallFunctionObjArgs(function_ptr, argument, end);
        owned_or_error(function.py(), result)
    }
}

/// The first two items of a tuple.
pub fn pair<'py>(of: &Bound<'py, PyAny>) -> PyResult<[Bound<'py, PyAny>; 2]> {
    let of = of.cast::<PyTuple>()?;
    Ok([of.get_item(0)?, of.get_item(1)?])
}

/// The types in a tuple. The pointers are valid as long as the tuple.
pub fn types_in(types: Option<&Bound<'_, PyTuple>>) -> PyResult<Vec<*mut ffi::PyTypeObject>> {
    let mut pointers = Vec::new();
    for of in types.into_iter().flatten() {
        try_push(&mut pointers, of.cast::<PyType>()?.as_type_ptr())?;
    }
    Ok(pointers)
}

/// A copy of a str.
pub fn string_of(text: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(try_copy(text.cast::<PyString>()?.to_str()?)?)
}

/// The text of a str; `None` if it is not valid UTF-8.
pub fn utf8<'a>(text: &'a Bound<'_, PyString>) -> Result<Option<&'a str>, Failure> {
    let of = text.to_str();
    of.map(Some)
        .or_else(|error| none_unless_out_of_memory(text.py(), &error))
}

/// `None` for any error but `MemoryError`.
pub fn none_unless_out_of_memory<T>(py: Python<'_>, error: &PyErr) -> Result<Option<T>, Failure> {
    match error.is_instance_of::<PyMemoryError>(py) {
        true => Err(Failure::OutOfMemory),
        false => Ok(None),
    }
}
