//! What C code is to call some day: hooks of an autograd graph, handlers of signals, and the like.
//!
//! C++ holds them where no `tp_traverse` shows them. So they are told by their reference count: more
//! than tracked objects and running functions account for.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple, PyType};
use rustc_hash::FxHashMap;

use crate::cpython::fallible_collections::{
    try_collect, try_entry, try_extend, try_insert, try_push,
};
use crate::cpython::fallible_objects::{ask, attribute, caller_of, list, types_in};
use crate::cpython::gc_pause::GcPause;
use crate::cpython::unstable_functions::Functions;
use crate::graph::external_references::{executes, executing_types};
use crate::heap::object_stream::Stream;
use crate::heap::type_facts::{TypeTable, Wanted};

/// The functions, bound methods and instances of other types that C code holds, and that are not what
/// a function running now is.
///
/// Functions that hold no values are left out. ``executing`` are the types whose frame is their own, as for
/// ``RunningCode``: what one that runs shows is what running code holds.
#[pyfunction]
#[pyo3(signature = (*, function, method, others, executing=None))]
pub fn callbacks<'py>(
    py: Python<'py>,
    function: &Bound<'py, PyType>,
    method: &Bound<'py, PyType>,
    others: &Bound<'py, PyTuple>,
    executing: Option<&Bound<'py, PyTuple>>,
) -> PyResult<Bound<'py, PyList>> {
    let _pause = GcPause::new(py);
    let stream = Stream::open(py)?;
    let functions = Functions::new(py);
    let (function, method) = (function.as_type_ptr(), method.as_type_ptr());
    let mut containers = types_in(Some(others))?;
    try_extend(&mut containers, [function, method])?;
    let mut types = TypeTable::new(Wanted {
        containers,
        ..Wanted::default()
    })?;
    let running = running_codes(py)?;
    let executing = executing_types(executing)?;

    let mut references = References::default();
    stream.walk(|object| {
        // SAFETY: the walk hands on live objects, and this thread is attached.
        unsafe {
            let is_one = types.of(object).container
                && !(ffi::Py_TYPE(object) == function && functions.holds_nothing(object));
            if is_one {
                try_insert(&mut references.0, object as usize, 0)?;
            }
        }
        Ok(())
    })?;
    stream.walk(|object| {
        // From CPython 3.14 on a frame may borrow the function that it runs from a local of its caller
        // (LOAD_FAST_BORROW). If the caller is a generator, its locals are shown, and were taken off twice.
        // SAFETY: as above; the visitor panics as little as it allocates.
        unsafe {
            if let Some(traverse) = types.of(object).traverse
                && !executes(&executing, object)
            {
                traverse(object, count, (&raw mut references).cast());
            }
        }
        Ok(())
    })?;

    // Which function of a code a frame runs cannot be told: if more are held than frames run it, any of
    // them may be what C code is to call.
    let mut held = Vec::new();
    let mut surplus: FxHashMap<usize, ffi::Py_ssize_t> = FxHashMap::default();
    for (&at, &seen) in &references.0 {
        let object = at as *mut ffi::PyObject;
        // SAFETY: nothing has been let go since the first walk.
        unsafe {
            let more = ffi::Py_REFCNT(object) - seen - stream.references();
            if more > 0 {
                let code = functions.code_of(object, function, method) as usize;
                *try_entry(&mut surplus, code)? += more;
                try_push(&mut held, (object, code))?;
            }
        }
    }
    held.retain(|(_, code)| surplus[code] > running.get(code).copied().unwrap_or(0));
    // SAFETY: live, as above; the first list is made when all are owned.
    let own = |(object, _)| unsafe { Bound::from_borrowed_ptr(py, object) };
    let held = try_collect(held.into_iter().map(own))?;
    list(py, held, Ok)
}

/// How many references tracked objects hold, by address.
#[derive(Default)]
struct References(FxHashMap<usize, ffi::Py_ssize_t>);

/// # Safety
/// `references` points to a live `References` that nothing else borrows.
unsafe extern "C" fn count(referent: *mut ffi::PyObject, references: *mut c_void) -> c_int {
    // SAFETY: by this function's contract.
    let references = unsafe { &mut *references.cast::<References>() };
    if let Some(seen) = references.0.get_mut(&(referent as usize)) {
        *seen += 1;
    }
    0
}

/// How many frames run each code now, in all threads, by the address of the code.
fn running_codes(py: Python<'_>) -> PyResult<FxHashMap<usize, ffi::Py_ssize_t>> {
    let mut codes = FxHashMap::default();
    let threads = ask(py, c"sys", c"_current_frames")?;
    for (_, frame) in threads.cast_into::<PyDict>()? {
        let mut at = frame;
        while !at.is_none() {
            let code = attribute(&at, c"f_code")?.as_ptr() as usize;
            *try_entry(&mut codes, code)? += 1;
            at = caller_of(&at)?;
        }
    }
    Ok(codes)
}
