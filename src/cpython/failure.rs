//! Why something that the core was asked for was not done.
#![allow(unsafe_code)]

use std::any::Any;
use std::panic::resume_unwind;

use pyo3::ffi;
use pyo3::prelude::*;

/// Why a walk stopped early.
#[derive(Debug)]
pub enum Failure {
    OutOfMemory,
    /// A Rust panic, caught before it could cross a C frame; it goes on once that frame is left.
    Panic(Box<dyn Any + Send>),
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            // What walks is attached. An error that PyO3 would make later could not be made for want of memory.
            Failure::OutOfMemory => Python::attach(memory_error),
            Failure::Panic(panic) => resume_unwind(panic),
        }
    }
}

/// `MemoryError`, with a message if there is memory for one.
pub fn memory_error(py: Python<'_>) -> PyErr {
    // SAFETY: attached; the message is a C string, and what is made is let go.
    unsafe {
        let message = c"fastpurge ran out of memory while walking the heap";
        ffi::PyErr_SetString(ffi::PyExc_MemoryError, message.as_ptr());
    }
    PyErr::fetch(py)
}
