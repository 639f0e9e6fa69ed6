//! Callbacks that C code references: hooks of an autograd graph, handlers of signals, and the like.
//!
//! C and C++ code references them where no `tp_traverse` shows it. They are found by their reference count, which is
//! larger than the number of references from tracked objects and running functions.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple, PyType};
use rustc_hash::FxHashMap;

use crate::cpython::fallible_collections::{
    try_collect, try_entry, try_extend, try_insert, try_push,
};
use crate::cpython::fallible_objects::{attribute, list, types_in};
use crate::cpython::frames::each_frame;
use crate::cpython::gc_pause::GcPause;
use crate::cpython::unstable_functions::Functions;
use crate::graph::external_references::{generator_types_in, is_running_generator};
use crate::heap::object_stream::Stream;
use crate::heap::type_facts::{TypeTable, TypesOfInterest};

/// The functions, bound methods and instances of ``other_types`` that C code references, without the functions that
/// run now.
///
/// ``function_type`` and ``method_type`` are the types of functions and of bound methods. Functions without values, in
/// a closure or as defaults, are left out. ``generator_types`` are as for ``RunningCode``: references from a generator
/// that runs now count as references from running code.
#[pyfunction]
#[pyo3(signature = (*, function_type, method_type, other_types, generator_types=None))]
pub fn c_callbacks<'py>(
    py: Python<'py>,
    function_type: &Bound<'py, PyType>,
    method_type: &Bound<'py, PyType>,
    other_types: &Bound<'py, PyTuple>,
    generator_types: Option<&Bound<'py, PyTuple>>,
) -> PyResult<Bound<'py, PyList>> {
    let _pause = GcPause::new(py);
    let stream = Stream::open(py)?;
    let functions = Functions::new(py);
    let (function_type, method_type) = (function_type.as_type_ptr(), method_type.as_type_ptr());
    let mut callable_types = types_in(Some(other_types))?;
    try_extend(&mut callable_types, [function_type, method_type])?;
    let mut types = TypeTable::new(TypesOfInterest {
        containers: callable_types,
        ..TypesOfInterest::default()
    })?;
    let running = running_codes(py)?;
    let generator_types = generator_types_in(generator_types)?;

    let mut references = References::default();
    stream.walk(|object| {
        // SAFETY: the walk passes live objects, and this thread is attached.
        unsafe {
            let is_one = types.of(object).container
                && !(ffi::Py_TYPE(object) == function_type && functions.has_no_values(object));
            if is_one {
                try_insert(&mut references.0, object as usize, 0)?;
            }
        }
        Ok(())
    })?;
    stream.walk(|object| {
        // From CPython 3.14 on a frame may borrow the function that it runs from a local of its caller
        // (LOAD_FAST_BORROW). If the caller is a generator, `gen_traverse` shows that local, and the reference would
        // be subtracted twice.
        // SAFETY: as above; `count` neither panics nor allocates.
        unsafe {
            if let Some(traverse) = types.of(object).traverse
                && !is_running_generator(&generator_types, object)
            {
                traverse(object, count, (&raw mut references).cast());
            }
        }
        Ok(())
    })?;

    // A frame does not say which function of its code object it runs. So all functions of a code object are returned
    // if they have more unexplained references than there are frames that run it.
    let mut callbacks = Vec::new();
    let mut unexplained: FxHashMap<usize, ffi::Py_ssize_t> = FxHashMap::default();
    for (&address, &counted) in &references.0 {
        let object = address as *mut ffi::PyObject;
        // SAFETY: no object was freed since the first walk.
        unsafe {
            let more = ffi::Py_REFCNT(object) - counted - stream.references();
            if more > 0 {
                let code = functions.code_of(object, function_type, method_type) as usize;
                *try_entry(&mut unexplained, code)? += more;
                try_push(&mut callbacks, (object, code))?;
            }
        }
    }
    callbacks.retain(|(_, code)| unexplained[code] > running.get(code).copied().unwrap_or(0));
    // SAFETY: live, as above; the list is made after a reference to each was taken.
    let own = |(object, _)| unsafe { Bound::from_borrowed_ptr(py, object) };
    let callbacks = try_collect(callbacks.into_iter().map(own))?;
    list(py, callbacks, Ok)
}

/// How many references tracked objects have to each object, by its address.
#[derive(Default)]
struct References(FxHashMap<usize, ffi::Py_ssize_t>);

/// # Safety
/// `references` points to a live `References` that nothing else borrows.
unsafe extern "C" fn count(referent: *mut ffi::PyObject, references: *mut c_void) -> c_int {
    // SAFETY: by this function's contract.
    let references = unsafe { &mut *references.cast::<References>() };
    if let Some(counted) = references.0.get_mut(&(referent as usize)) {
        *counted += 1;
    }
    0
}

/// How many frames of all threads run each code object, by its address.
fn running_codes(py: Python<'_>) -> PyResult<FxHashMap<usize, ffi::Py_ssize_t>> {
    let mut codes = FxHashMap::default();
    each_frame(py, |frame| {
        let code = attribute(frame, c"f_code")?.as_ptr() as usize;
        *try_entry(&mut codes, code)? += 1;
        Ok(())
    })?;
    Ok(codes)
}
