//! The object stream: every object the garbage collector tracks, one after the other.
//!
//! CPython 3.12 added `PyUnstable_GC_VisitObjects` (Modules/gcmodule.c), which walks the collector's own lists and
//! builds no list. It is not part of the stable ABI, so it is looked up at run time. Older versions use
//! `gc.get_objects()`, which returns the same objects as a list.
#![allow(unsafe_code)]

use std::cell::OnceCell;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyString};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_objects::{attribute, import, text};
use crate::cpython::unstable_functions::c_function;

pub type GcVisitor = unsafe extern "C" fn(*mut ffi::PyObject, *mut c_void) -> c_int;
pub type VisitObjects = unsafe extern "C" fn(GcVisitor, *mut c_void);

struct Walk<F> {
    each: F,
    seen: usize,
    outcome: Result<(), Failure>,
}

impl<F: FnMut(*mut ffi::PyObject) -> Result<(), Failure>> Walk<F> {
    /// Passes one object to `each`; `false` ends the walk.
    #[inline]
    fn step(&mut self, object: *mut ffi::PyObject) -> bool {
        self.seen += 1;
        match catch_unwind(AssertUnwindSafe(|| (self.each)(object))) {
            Ok(Ok(())) => return true,
            Ok(Err(failure)) => self.outcome = Err(failure),
            Err(panic) => self.outcome = Err(Failure::Panic(panic)),
        }
        false
    }
}

/// # Safety
/// `walk` points to the live `Walk<F>` that `PyUnstable_GC_VisitObjects` was given.
unsafe extern "C" fn visit_one<F: FnMut(*mut ffi::PyObject) -> Result<(), Failure>>(
    object: *mut ffi::PyObject,
    walk: *mut c_void,
) -> c_int {
    // SAFETY: by this function's contract; nothing else borrows the walk while it runs.
    let walk = unsafe { &mut *walk.cast::<Walk<F>>() };
    c_int::from(walk.step(object))
}

/// The object stream of this interpreter, ready for any number of walks.
///
/// A walk must not let another thread run. `PyOnceLock` and `intern!` release the GIL when they are initialized: the
/// first is initialized when the module is loaded, the second is not used in this crate.
pub enum Stream<'py> {
    Visitor(VisitObjects, Python<'py>),
    /// `gc.get_objects`, and the list that it returned for the first walk. All walks use the same list.
    List(Bound<'py, PyAny>, OnceCell<Bound<'py, PyList>>),
}

impl<'py> Stream<'py> {
    /// Initializes what may let other threads run.
    pub fn prepare(py: Python<'py>) {
        visit_objects(py);
    }

    pub fn open(py: Python<'py>) -> PyResult<Self> {
        match visit_objects(py) {
            Some(visit_objects) => Ok(Self::Visitor(visit_objects, py)),
            None => {
                let get_objects = attribute(&import(py, c"gc")?, c"get_objects")?;
                Ok(Self::List(get_objects, OnceCell::new()))
            }
        }
    }

    /// Calls `gc.get_objects` now, if this stream uses it. That may run Python code (an audit hook), which must not happen
    /// while there are borrowed pointers.
    pub fn fill(&self) -> PyResult<()> {
        if let Self::List(get_objects, objects) = self
            && objects.get().is_none()
        {
            let fresh = get_objects.call0()?.cast_into::<PyList>()?;
            objects.get_or_init(|| fresh);
        }
        Ok(())
    }

    /// How many references the stream itself has to each object.
    pub fn references(&self) -> ffi::Py_ssize_t {
        ffi::Py_ssize_t::from(matches!(self, Self::List(_, objects) if objects.get().is_some()))
    }

    /// Calls `each` with every object the collector tracks, and returns the number of objects.
    ///
    /// `each` must run no Python code, and must not allocate or free tracked objects. The pointers are borrowed, and
    /// valid as long as the caller stays attached and runs no Python code.
    pub fn walk<F>(&self, each: F) -> PyResult<usize>
    where
        F: FnMut(*mut ffi::PyObject) -> Result<(), Failure>,
    {
        let mut walk = Walk {
            each,
            seen: 0,
            outcome: Ok(()),
        };
        match self {
            Self::Visitor(visit_objects, _py) => {
                // SAFETY: the signature is that of Include/cpython/objimpl.h (3.12 and up), this
                // thread is attached, and `walk` outlives the call.
                unsafe { visit_objects(visit_one::<F>, (&raw mut walk).cast()) };
            }
            Self::List(_, objects) => {
                self.fill()?;
                let objects = objects.get().expect("filled");
                let count = ffi::Py_ssize_t::try_from(objects.len())?;
                for index in 0..count {
                    // SAFETY: `index` is within the list, which nothing else can reach.
                    let object = unsafe { ffi::PyList_GetItem(objects.as_ptr(), index) };
                    // The list does not contain itself, and no other code has a reference to it.
                    if !walk.step(object) {
                        break;
                    }
                }
            }
        }
        walk.outcome?;
        Ok(walk.seen)
    }
}

/// `PyUnstable_GC_VisitObjects`, if the running interpreter has it.
fn visit_objects(py: Python<'_>) -> Option<VisitObjects> {
    static FOUND: PyOnceLock<Option<VisitObjects>> = PyOnceLock::new();
    // SAFETY: the type is that of the declaration in Include/cpython/objimpl.h.
    *FOUND.get_or_init(py, || unsafe {
        c_function(py, c"PyUnstable_GC_VisitObjects")
    })
}

/// How this interpreter lists its objects: ``"visitor"`` (by a C callback) or ``"list"``.
#[pyfunction]
pub fn object_stream(py: Python<'_>) -> PyResult<Bound<'_, PyString>> {
    let name = match visit_objects(py) {
        Some(_) => "visitor",
        None => "list",
    };
    text(py, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pyo3::exceptions::PyMemoryError;
    use pyo3::types::PyDict;

    #[test]
    fn a_tracked_object_is_in_the_stream() {
        Python::attach(|py| {
            let list = PyList::empty(py);
            let mut found = 0;
            let stream = Stream::open(py).unwrap();
            let seen = stream
                .walk(|object| {
                    found += usize::from(object == list.as_ptr());
                    Ok(())
                })
                .unwrap();
            assert_eq!(found, 1);
            assert!(seen > 1000);
        });
    }

    #[test]
    fn a_failure_ends_the_walk() {
        Python::attach(|py| {
            let _objects = PyDict::new(py);
            let mut calls = 0;
            let stream = Stream::open(py).unwrap();
            let error = stream
                .walk(|_| {
                    calls += 1;
                    Err(Failure::OutOfMemory)
                })
                .unwrap_err();
            assert_eq!(calls, 1);
            assert!(error.is_instance_of::<PyMemoryError>(py));
        });
    }

    #[test]
    fn a_panic_does_not_unwind_through_the_interpreter() {
        Python::attach(|py| {
            let stream = Stream::open(py).unwrap();
            let caught = catch_unwind(AssertUnwindSafe(|| {
                stream.walk(|_| panic!("in the visitor"))
            }));
            let message = caught.unwrap_err();
            assert_eq!(message.downcast_ref(), Some(&"in the visitor"));
            // The visitor has enabled the collector again, so another walk is possible.
            assert!(stream.walk(|_| Ok(())).unwrap() > 1000);
        });
    }
}
