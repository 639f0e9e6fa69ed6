//! Errors of the core.
#![allow(unsafe_code)]

use std::any::Any;
use std::panic::resume_unwind;

use pyo3::ffi;
use pyo3::prelude::*;

/// Why a walk stopped early.
#[derive(Debug)]
pub enum Failure {
    OutOfMemory,
    /// A Rust panic, caught before it could cross a C frame, and resumed after that frame.
    Panic(Box<dyn Any + Send>),
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            // Walks are attached. The exception is made now: PyO3 would make it later, and abort without memory for it.
            Failure::OutOfMemory => Python::attach(memory_error),
            Failure::Panic(panic) => resume_unwind(panic),
        }
    }
}

/// `MemoryError`, with a message if there is memory for one.
pub fn memory_error(py: Python<'_>) -> PyErr {
    // SAFETY: attached; the message is a C string.
    unsafe {
        let message = c"fastpurge ran out of memory while walking the heap";
        ffi::PyErr_SetString(ffi::PyExc_MemoryError, message.as_ptr());
    }
    PyErr::fetch(py)
}
