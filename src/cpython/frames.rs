//! The frames of all threads.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::cpython::fallible_collections::try_push;
use crate::cpython::fallible_objects::{attribute, call_module_function};

/// Calls `each` with every frame of every thread.
pub fn each_frame(
    py: Python<'_>,
    mut each: impl FnMut(&Bound<'_, PyAny>) -> PyResult<()>,
) -> PyResult<()> {
    for (_, innermost) in innermost_frames(py)? {
        call_stack(innermost).try_for_each(|frame| each(&frame?))?;
    }
    Ok(())
}

/// The innermost frames of the other threads that run Python code, or C code called by it.
pub fn frames_of_other_threads(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyAny>>> {
    let this = call_module_function(py, c"_thread", c"get_ident")?;
    let mut others = Vec::new();
    for (thread, frame) in innermost_frames(py)? {
        if !thread.eq(&this)? {
            try_push(&mut others, frame)?;
        }
    }
    Ok(others)
}

/// A frame, the frame that called it, and so on.
pub fn call_stack<'py>(
    innermost: Bound<'py, PyAny>,
) -> impl Iterator<Item = PyResult<Bound<'py, PyAny>>> {
    let mut last = None;
    std::iter::from_fn(move || {
        let frame = match &last {
            None => Ok(innermost.clone()),
            Some(called) => caller_of(called),
        };
        match frame {
            Ok(frame) if frame.is_none() => None,
            Ok(frame) => Some(Ok(last.insert(frame).clone())),
            Err(error) => Some(Err(error)),
        }
    })
}

/// The innermost frame of each thread, by the identifier of the thread.
fn innermost_frames(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let frames = call_module_function(py, c"sys", c"_current_frames")?;
    Ok(frames.cast_into::<PyDict>()?)
}

/// The frame that called another, or None.
///
/// Without memory for a frame object, CPython returns None as well, and leaves the exception set (`frame_getback` in
/// Objects/frameobject.c, from 3.11 on).
fn caller_of<'py>(frame: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let caller = attribute(frame, c"f_back")?;
    PyErr::take(frame.py()).map_or(Ok(caller), Err)
}
