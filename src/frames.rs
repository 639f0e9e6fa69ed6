//! The local variables of a function that is running.
#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::gc::GcPause;

/// `CO_OPTIMIZED`: the code of a function, whose locals are not in a dict (Include/cpython/code.h).
const OPTIMIZED: u32 = 1;

/// The locals of a frame by name, in a dict of their own.
///
/// Before 3.13 to read ``f_locals`` fills a dict that the frame keeps from then on, with references to what
/// the function may let go of later (PEP 667). If nobody else holds that dict, they are taken out again.
#[pyfunction]
#[pyo3(signature = (frame, /))]
pub fn frame_locals<'py>(
    py: Python<'py>,
    frame: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    // No finalizer may run the function's own code in between.
    let _pause = GcPause::new(py);
    let shown = frame.getattr("f_locals")?;
    let locals = PyDict::new(py);
    locals.update(shown.cast()?)?;
    if py.version_info() >= (3, 13) {
        return Ok(locals);
    }
    let code = frame.getattr("f_code")?;
    let is_function = code.getattr("co_flags")?.extract::<u32>()? & OPTIMIZED != 0;
    // SAFETY: attached, and `shown` is live. The frame has one reference, and this function another.
    if is_function && unsafe { ffi::Py_REFCNT(shown.as_ptr()) } == 2 {
        let shown = shown.cast_into::<PyDict>()?;
        for kind in ["co_varnames", "co_cellvars", "co_freevars"] {
            for name in code.getattr(kind)?.cast_into::<PyTuple>()? {
                let name = name.cast_into::<PyString>()?;
                if shown.contains(&name)? {
                    shown.del_item(name)?;
                }
            }
        }
    }
    Ok(locals)
}
