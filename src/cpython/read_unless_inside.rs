//! Reading what another thread may be changing without the GIL, when it is sure that none does.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_collect, try_extend, try_push};
use crate::cpython::fallible_objects::{ask, attribute, call, caller_of, list, or_none, pair};
use crate::cpython::gc_pause::GcPause;

/// Calls functions in C, each with an object, unless another thread is inside a function: that of a code object.
///
/// All of it is one go, in which no other thread runs. Gives the results, or of what is
/// a list or a tuple its items; with ``then``, what these functions give of each. What raises
/// ``RuntimeError`` gives nothing, and neither does ``None``. ``None`` for all: another thread is inside.
#[pyfunction]
#[pyo3(signature = (reads, *, unless_inside=None, then=None))]
pub fn read_unless_inside<'py>(
    py: Python<'py>,
    reads: &Bound<'py, PyList>,
    unless_inside: Option<&Bound<'py, PyAny>>,
    then: Option<&Bound<'py, PyList>>,
) -> PyResult<Bound<'py, PyAny>> {
    // A finalizer could let another thread in.
    let _pause = GcPause::new(py);
    if let Some(code) = unless_inside {
        for frame in other_threads(py)? {
            if is_inside(frame, code)? {
                return Ok(or_none(py, None));
            }
        }
    }
    let mut values = Vec::new();
    for each in reads {
        let [function, object] = pair(&each)?;
        let Some(value) = read(&function, &object)? else {
            continue;
        };
        for item in items(value)? {
            match then {
                None => try_push(&mut values, item)?,
                Some(then) => {
                    for function in then {
                        try_extend(&mut values, read(&function, &item)?)?;
                    }
                }
            }
        }
    }
    values.retain(|value| !value.is_none());
    Ok(list(py, values, Ok)?.into_any())
}

/// The frames of the other threads that run Python code, or C code called by it.
pub fn other_threads(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyAny>>> {
    let this = ask(py, c"_thread", c"get_ident")?;
    let frames = ask(py, c"sys", c"_current_frames")?;
    let frames = frames.cast_into::<PyDict>()?;
    let mut others = Vec::new();
    for (thread, frame) in frames.iter() {
        if !thread.eq(&this)? {
            try_push(&mut others, frame)?;
        }
    }
    Ok(others)
}

fn is_inside(mut frame: Bound<'_, PyAny>, code: &Bound<'_, PyAny>) -> PyResult<bool> {
    while !frame.is_none() {
        if attribute(&frame, c"f_code")?.is(code) {
            return Ok(true);
        }
        frame = caller_of(&frame)?;
    }
    Ok(false)
}

fn read<'py>(
    function: &Bound<'py, PyAny>,
    object: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    match call(function, object) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_instance_of::<PyRuntimeError>(object.py()) => Ok(None),
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
