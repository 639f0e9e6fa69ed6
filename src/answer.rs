//! What a function gives to Python, with running out of memory as `MemoryError`.
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use pyo3::prelude::*;
use pyo3::{IntoPyObjectExt, ffi};

/// Runs the body of a function and makes a Python object of what it gives.
///
/// PyO3 panics where the interpreter has no memory for a list, a str or an int of its own making, and aborts
/// if there is none for the exception that it makes of the panic.
pub fn answer<'py, T: IntoPyObject<'py>>(
    py: Python<'py>,
    body: impl FnOnce() -> PyResult<T>,
) -> PyResult<Bound<'py, PyAny>> {
    let done = catch_unwind(AssertUnwindSafe(|| body()?.into_bound_py_any(py)));
    done.unwrap_or_else(|panic| match panic.downcast_ref() {
        Some(&NO_OBJECT) => Err(memory_error(py)),
        _ => resume_unwind(panic),
    })
}

/// What PyO3 says in such a panic (`panic_on_null` in its src/instance.rs).
const NO_OBJECT: &str = "PyObject pointer is null";

/// `MemoryError`, with a message if there is memory for one.
pub fn memory_error(py: Python<'_>) -> PyErr {
    // SAFETY: attached; the message is a C string, and what is made is let go.
    unsafe {
        let message = c"fastpurge ran out of memory while walking the heap";
        ffi::PyErr_SetString(ffi::PyExc_MemoryError, message.as_ptr());
    }
    PyErr::fetch(py)
}
