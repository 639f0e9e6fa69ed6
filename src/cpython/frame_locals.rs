//! The local variables of a running function.
#![allow(unsafe_code)]

use std::ffi::c_int;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};

use crate::cpython::fallible_collections::try_push;
use crate::cpython::fallible_objects::{attribute, checked, dict};
use crate::cpython::gc_pause::GcPause;
use crate::cpython::unstable_functions::c_function;

/// `CO_OPTIMIZED` (Include/cpython/code.h): the flag of functions, whose locals are not in a dict.
const OPTIMIZED: u32 = 1;

/// `RESUME` of CPython 3.11 (Include/opcode.h), the first instruction of a function's body.
const RESUME: u8 = 151;

/// `PyFrame_GetVar` (Include/cpython/pyframe.h, from 3.12 on), which fills no dict.
type GetVar = unsafe extern "C" fn(*mut ffi::PyObject, *mut ffi::PyObject) -> *mut ffi::PyObject;

/// The locals of a frame by name, in a new dict. The frame gets no new references.
///
/// The dict is empty if the locals are in a namespace that is no dict, and before Python 3.12 if a debugger may be
/// tracing the function.
#[pyfunction]
#[pyo3(signature = (frame, /))]
pub fn frame_locals<'py>(
    py: Python<'py>,
    frame: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    // A finalizer could run other code in between.
    let _pause = GcPause::new(py);
    let locals = dict(py)?;
    let code = attribute(frame, c"f_code")?;
    let version = py.version_info();
    if attribute(&code, c"co_flags")?.extract::<u32>()? & OPTIMIZED == 0 {
        let namespace = attribute(frame, c"f_locals")?;
        if namespace.is_instance_of::<PyDict>() {
            update(&locals, &namespace)?;
        }
    } else if version >= (3, 13) {
        update(&locals, &attribute(frame, c"f_locals")?)?;
    } else if version >= (3, 12) {
        take_by_name(frame, &code, &locals)?;
    } else if !is_traced(frame, &code)? {
        take_from_dict(frame, &code, &locals)?;
    }
    Ok(locals)
}

fn update(locals: &Bound<'_, PyDict>, with: &Bound<'_, PyAny>) -> PyResult<()> {
    // SAFETY: attached; a live dict and a live mapping.
    checked(locals.py(), unsafe {
        ffi::PyDict_Update(locals.as_ptr(), with.as_ptr())
    })
}

fn names_of<'py>(code: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, PyString>>> {
    let mut names = Vec::new();
    for kind in [c"co_varnames", c"co_cellvars", c"co_freevars"] {
        for name in &attribute(code, kind)?.cast_into::<PyTuple>()? {
            try_push(&mut names, name.cast_into::<PyString>()?)?;
        }
    }
    Ok(names)
}

fn take_by_name(
    frame: &Bound<'_, PyAny>,
    code: &Bound<'_, PyAny>,
    locals: &Bound<'_, PyDict>,
) -> PyResult<()> {
    // SAFETY: `GetVar` is the type of the declaration.
    let Some(get_var) = (unsafe { c_function::<GetVar>(frame.py(), c"PyFrame_GetVar") }) else {
        return Ok(());
    };
    for name in names_of(code)? {
        // SAFETY: a live frame and a live str; the result is a new reference, or null with an exception if the variable
        // has no value.
        let value = unsafe {
            Bound::from_owned_ptr_or_err(frame.py(), get_var(frame.as_ptr(), name.as_ptr()))
        };
        if let Ok(value) = value {
            locals.set_item(name, value)?;
        }
    }
    Ok(())
}

/// Whether a trace function may be running for a frame. After it returns, the frame takes the values of its variables
/// from the dict (`call_trampoline` in Python/sysmodule.c).
fn is_traced(frame: &Bound<'_, PyAny>, code: &Bound<'_, PyAny>) -> PyResult<bool> {
    let last: c_int = attribute(frame, c"f_lasti")?.extract()?;
    if last < 0 || !attribute(frame, c"f_trace")?.is_none() {
        return Ok(true);
    }
    if frame.py().version_info() < (3, 11) {
        return Ok(false);
    }
    // Before the first instruction of the body `f_trace` is not set yet.
    let code = attribute(code, c"co_code")?.cast_into::<PyBytes>()?;
    let begin = code.as_bytes().chunks(2).position(|unit| unit[0] == RESUME);
    Ok(begin.is_none_or(|begin| usize::try_from(last).unwrap_or(0) <= 2 * begin))
}

/// Copies the locals from ``f_locals``, the only way before 3.12. That fills a dict which the frame keeps, with
/// references that outlive the function's own variables (PEP 667). If nothing else references the dict, its items are
/// removed again.
fn take_from_dict(
    frame: &Bound<'_, PyAny>,
    code: &Bound<'_, PyAny>,
    locals: &Bound<'_, PyDict>,
) -> PyResult<()> {
    let shown = attribute(frame, c"f_locals")?.cast_into::<PyDict>()?;
    update(locals, &shown)?;
    // SAFETY: attached, and `shown` is live. The frame has one reference, and this function another.
    if unsafe { ffi::Py_REFCNT(shown.as_ptr()) } == 2 {
        for name in names_of(code)? {
            if shown.contains(&name)? {
                shown.del_item(name)?;
            }
        }
    }
    Ok(())
}
