//! Calls to C functions, made only while no other thread runs a given code object.
//!
//! For reading what another thread may be changing without the GIL.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_collect, try_extend, try_push};
use crate::cpython::fallible_objects::{attribute, call, list, or_none, pair};
use crate::cpython::frames::{call_stack, frames_of_other_threads};
use crate::cpython::gc_pause::GcPause;

/// Calls C functions, each with one argument, unless another thread runs the code object ``unless_inside``.
///
/// No other thread runs between the first call and the last. ``reads`` are pairs of a function and its argument.
/// Returns the results in order; a result that is a list or a tuple is replaced by its items. With ``then``, each of
/// these is replaced by what the functions in ``then`` return for it. Results that are ``None`` are left out, and so
/// are calls that raise ``RuntimeError``; other exceptions are raised.
///
/// Returns ``None``, and calls nothing, if another thread runs the code object, directly or further up its stack.
#[pyfunction]
#[pyo3(signature = (reads, *, unless_inside=None, then=None))]
pub fn read_unless_inside<'py>(
    py: Python<'py>,
    reads: &Bound<'py, PyList>,
    unless_inside: Option<&Bound<'py, PyAny>>,
    then: Option<&Bound<'py, PyList>>,
) -> PyResult<Bound<'py, PyAny>> {
    // A finalizer could let another thread run.
    let _pause = GcPause::new(py);
    if let Some(code) = unless_inside {
        for frame in frames_of_other_threads(py)? {
            if is_on_stack(code, frame)? {
                return Ok(or_none(py, None));
            }
        }
    }
    let mut values = Vec::new();
    for each in reads {
        let [function, argument] = pair(&each)?;
        let Some(value) = value_of(&function, &argument)? else {
            continue;
        };
        for item in items(value)? {
            match then {
                None => try_push(&mut values, item)?,
                Some(then) => {
                    for function in then {
                        try_extend(&mut values, value_of(&function, &item)?)?;
                    }
                }
            }
        }
    }
    values.retain(|value| !value.is_none());
    Ok(list(py, values, Ok)?.into_any())
}

fn is_on_stack(code: &Bound<'_, PyAny>, innermost: Bound<'_, PyAny>) -> PyResult<bool> {
    for frame in call_stack(innermost) {
        if attribute(&frame?, c"f_code")?.is(code) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn value_of<'py>(
    function: &Bound<'py, PyAny>,
    argument: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    match call(function, argument) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_instance_of::<PyRuntimeError>(argument.py()) => Ok(None),
        Err(error) => Err(error),
    }
}

fn items(value: Bound<'_, PyAny>) -> Result<Vec<Bound<'_, PyAny>>, Failure> {
    if let Ok(list) = value.cast_exact::<PyList>() {
        return try_collect(list.iter());
    }
    match value.cast_exact::<PyTuple>() {
        Ok(tuple) => try_collect(tuple.iter()),
        Err(_) => try_collect([value]),
    }
}
