//! C functions of the running interpreter that the stable ABI leaves out, looked up by name.
#![allow(unsafe_code)]

use std::ffi::CStr;

use pyo3::prelude::*;

/// A function that the running interpreter exports, or `None`.
///
/// # Safety
/// `F` is the type of a pointer to that function, in every version that has it.
#[cfg(unix)]
pub unsafe fn c_function<F: Copy>(_py: Python<'_>, name: &CStr) -> Option<F> {
    let process = libloading::os::unix::Library::this();
    // SAFETY: by this function's contract; and the interpreter is never unloaded while an extension
    // module of it runs.
    let symbol = unsafe { process.get::<F>(name.to_bytes_with_nul()) };
    symbol.ok().map(|symbol| *symbol)
}

/// A function that the running interpreter exports, or `None`.
///
/// # Safety
/// `F` is the type of a pointer to that function, in every version that has it.
#[cfg(windows)]
pub unsafe fn c_function<F: Copy>(py: Python<'_>, name: &CStr) -> Option<F> {
    let version = py.version_info();
    let library = format!("python{}{}.dll", version.major, version.minor);
    let interpreter = libloading::os::windows::Library::open_already_loaded(library).ok()?;
    // SAFETY: as on Unix.
    let symbol = unsafe { interpreter.get::<F>(name.to_bytes_with_nul()) };
    symbol.ok().map(|symbol| *symbol)
}
