//! The last step of a release: objects are exchanged with replacements, all of them or none.
//!
//! No other code may run between the last snapshot and the exchange, in this thread or any other. Another thread may
//! have taken a reference to an object since the survey, and may be inside a C++ operation that uses it without a lock.
#![allow(unsafe_code)]

use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple, PyType};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_collect, try_repeat, try_with_capacity};
use crate::cpython::fallible_objects::{checked, list, number, or_none, owned_or_error, tuple};
use crate::cpython::frames::frames_of_other_threads;
use crate::cpython::gc_pause::GcPause;
use crate::graph::running_code::RunningCode;
use crate::graph::scan::SnapshotRequest;
use crate::heap::address_sets::IdSet;
use crate::libraries::library_folders::Libraries;

/// Exchanges class, attributes and implementation of each object with those of its replacement.
///
/// Takes a last snapshot, and exchanges all objects if all of them are still unprotected. No other thread runs between
/// the two. An object stays in ``self_referenced`` only while ``count_owners``, a C function, returns more than 1.
///
/// ``implementation`` is a type, and the C function that exchanges the C part of two of its instances. ``set_class``
/// must be a C function too. Externally referenced objects are protected if ``spare_external``, and otherwise only if
/// another thread runs.
///
/// Returns the objects that were refused, each as its index and the exception, or ``None`` if it is in use. If there
/// are any, no object was changed.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
#[pyo3(signature = (named, roots, objects, replacements, *, scan_for, libraries, running_code, self_referenced, count_owners, spare_external, set_class, implementation))]
pub fn exchange<'py>(
    py: Python<'py>,
    named: &Bound<'py, PyTuple>,
    roots: &Bound<'py, PyList>,
    objects: &Bound<'py, PyList>,
    replacements: &Bound<'py, PyList>,
    scan_for: &Bound<'py, PyTuple>,
    libraries: &Libraries,
    running_code: &RunningCode,
    self_referenced: &Bound<'py, IdSet>,
    count_owners: &Bound<'py, PyAny>,
    spare_external: bool,
    set_class: &Bound<'py, PyAny>,
    implementation: (Bound<'py, PyType>, Bound<'py, PyAny>),
) -> PyResult<Bound<'py, PyList>> {
    let _pause = GcPause::new(py);
    let mut self_referenced = self_referenced.try_borrow_mut()?;
    discard_without_other_owner(
        &mut self_referenced,
        objects,
        &implementation.0,
        count_owners,
    )?;
    let request = SnapshotRequest {
        named,
        roots,
        scan_for,
        report: None,
        libraries,
        guarded: None,
        boundary: None,
        running_code: (spare_external || !frames_of_other_threads(py)?.is_empty())
            .then_some(running_code),
        self_referenced: Some(&self_referenced),
        lists: &[objects.as_ptr(), replacements.as_ptr()],
    };
    let exchanger = Exchanger {
        py,
        set_class: set_class.as_ptr(),
        type_with_implementation: implementation.0.as_type_ptr(),
        swap: implementation.1.as_ptr(),
    };
    let both = objects.iter().zip(replacements.iter());
    let pairs =
        try_collect(both.map(|(object, replacement)| (object.as_ptr(), replacement.as_ptr())))?;

    // Made before anything changes: afterwards there may be no memory to report the exchange.
    let answer = list(py, Vec::new(), Ok)?;
    let snapshot = request.take(py)?;
    let is_protected = |object| snapshot.list_being_sorted || snapshot.closure.contains(object);
    let protected = pairs.iter().map(|&(object, _)| is_protected(object));
    let protected = protected.enumerate();
    let mut refused =
        try_collect(protected.filter_map(|(index, protected)| protected.then_some((index, None))))?;
    if refused.is_empty() {
        // SAFETY: the lists reference the pairs, and no other code can change the lists meanwhile.
        refused = unsafe { exchanger.exchange_all(&pairs) }?;
    }
    // Passing exceptions to Python may let other threads run, so it comes last.
    for (index, error) in refused {
        let error = error.map(|error| error.into_value(py).into_bound(py).into_any());
        let refusal = tuple(py, [number(py, index)?, or_none(py, error)])?;
        // SAFETY: attached; a live list, and a live object.
        checked(py, unsafe {
            ffi::PyList_Append(answer.as_ptr(), refusal.as_ptr())
        })?;
    }
    Ok(answer)
}

/// Removes objects whose only owner is their Python object by now. Such an object no longer references itself, so the
/// reference that was its own belongs to other code.
fn discard_without_other_owner(
    self_referenced: &mut IdSet,
    objects: &Bound<'_, PyList>,
    with_owners: &Bound<'_, PyType>,
    count_owners: &Bound<'_, PyAny>,
) -> PyResult<()> {
    for object in objects {
        let known = self_referenced.addresses().contains(object.as_ptr());
        // SAFETY: attached; a live object, and a live type.
        let is_with =
            unsafe { ffi::PyObject_TypeCheck(object.as_ptr(), with_owners.as_type_ptr()) };
        if known && is_with != 0 {
            let end = ptr::null_mut::<ffi::PyObject>();
            // SAFETY: attached; live objects, and a C function, which returns a new reference to a number, or null
            // with an exception.
            let count: usize = unsafe {
                let count =
                    ffi::PyObject_CallFunctionObjArgs(count_owners.as_ptr(), object.as_ptr(), end);
                owned_or_error(count_owners.py(), count)
            }?
            .extract()?;
            if count <= 1 {
                self_referenced.discard(&object);
            }
        }
    }
    Ok(())
}

type Pair = (*mut ffi::PyObject, *mut ffi::PyObject);

/// The index of a pair, with the exception, or `None` if the object is in use.
type Refusal = (usize, Option<PyErr>);

/// Bytes of memory that are reserved for undoing an exchange.
const RESERVE: usize = 1 << 16;

/// Runs an action that undoes another, and repeats it if it fails: a small allocation may succeed the next time.
fn retry<E>(action: impl Fn() -> Result<(), E>) -> Result<(), E> {
    let mut outcome = action();
    for _ in 0..TRIES {
        if outcome.is_ok() {
            break;
        }
        outcome = action();
    }
    outcome
}

const TRIES: usize = 8;

struct Exchanger<'py> {
    py: Python<'py>,
    set_class: *mut ffi::PyObject,
    type_with_implementation: *mut ffi::PyTypeObject,
    swap: *mut ffi::PyObject,
}

impl Exchanger<'_> {
    /// Exchanges all pairs, or none if one cannot be exchanged.
    ///
    /// # Safety
    /// All pointers are to live objects that stay alive.
    unsafe fn exchange_all(&self, pairs: &[Pair]) -> Result<Vec<Refusal>, Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            let count = |&(object, _): &Pair| ffi::Py_REFCNT(object);
            let counts = try_collect(pairs.iter().map(count))?;
            // All memory that will be needed, allocated while nothing has changed yet.
            let (mut done, mut refused) = (
                try_with_capacity(pairs.len())?,
                try_with_capacity(pairs.len())?,
            );
            let spare = try_repeat(0_u8, RESERVE)?;
            for (index, (&pair, &count)) in pairs.iter().zip(&counts).enumerate() {
                match self.exchange(pair, Some(count)) {
                    Ok(()) => done.push(pair),
                    Err(error) => refused.push((index, error)),
                }
            }
            // An exchange that failed for lack of memory must not keep the others from being undone.
            drop(spare);
            if !refused.is_empty() {
                for &pair in done.iter().rev() {
                    // The inverse of an exchange that succeeded has no reason to fail.
                    let _ = retry(|| self.exchange(pair, None));
                }
            }
            Ok(refused)
        }
    }

    /// Exchanges one pair, unless the object's reference count is not ``count``. Only an audit hook in Python can have
    /// changed it, which `__class__` assignment calls.
    ///
    /// # Safety
    /// As for `exchange_all`.
    unsafe fn exchange(
        &self,
        (object, replacement): Pair,
        count: Option<ffi::Py_ssize_t>,
    ) -> Result<(), Option<PyErr>> {
        // SAFETY: by this function's contract. This function references the classes while the objects drop them.
        unsafe {
            if count.is_some() {
                self.detach_attributes(object)?;
                self.detach_attributes(replacement)?;
            }
            let own_class = self.class_of(object);
            let replacement_class = self.class_of(replacement);
            let has_implementation =
                ffi::PyObject_TypeCheck(object, self.type_with_implementation) != 0;
            self.assign_class(object, &replacement_class)?;
            let done = if count.is_some_and(|count| ffi::Py_REFCNT(object) != count) {
                Err(None)
            } else {
                self.exchange_contents((object, replacement), &own_class, has_implementation)
                    .map_err(Some)
            };
            if done.is_err() {
                retry(|| self.assign_class(object, &own_class))?;
            }
            done
        }
    }

    /// Moves the attribute values of an object into its dict, before class or dict are assigned.
    ///
    /// From CPython 3.13 on the values may be embedded in the object. Both assignments then move them out first, and
    /// without memory for that they leave an empty dict (gh-124547). Adding a key that is no str moves them out as well
    /// (`dictresize` in Objects/dictobject.c), and without memory leaves the dict as it was.
    ///
    /// # Safety
    /// As for `exchange_all`.
    unsafe fn detach_attributes(&self, of: *mut ffi::PyObject) -> PyResult<()> {
        if self.py.version_info() < (3, 13) {
            return Ok(());
        }
        // SAFETY: by this function's contract. The key is a new plain `object`, which is equal to no other.
        unsafe {
            let dict = self.attributes(of)?;
            let key = ffi::PyObject_CallNoArgs((&raw mut ffi::PyBaseObject_Type).cast());
            let key = owned_or_error(self.py, key)?;
            let (dict, key) = (dict.as_ptr(), key.as_ptr());
            checked(self.py, ffi::PyDict_SetItem(dict, key, ffi::Py_None()))?;
            checked(self.py, ffi::PyDict_DelItem(dict, key))
        }
    }

    /// # Safety
    /// As for `exchange_all`.
    unsafe fn attributes(&self, of: *mut ffi::PyObject) -> PyResult<Bound<'_, PyAny>> {
        // SAFETY: by this function's contract.
        unsafe { owned_or_error(self.py, ffi::PyObject_GenericGetDict(of, ptr::null_mut())) }
    }

    /// # Safety
    /// As for `exchange_all`.
    unsafe fn exchange_contents(
        &self,
        (object, replacement): Pair,
        own_class: &Bound<'_, PyAny>,
        has_implementation: bool,
    ) -> PyResult<()> {
        // SAFETY: by this function's contract.
        unsafe {
            let swap = || match has_implementation {
                true => self.call(self.swap, object, replacement),
                false => Ok(()),
            };
            let replacement_class = self.class_of(replacement);
            swap()?;
            let done = self
                .assign_class(replacement, own_class)
                .and_then(|()| self.exchange_attributes(object, replacement));
            if done.is_err() {
                retry(|| self.assign_class(replacement, &replacement_class))?;
                retry(swap)?;
            }
            done
        }
    }

    /// # Safety
    /// As for `exchange_all`.
    unsafe fn exchange_attributes(
        &self,
        object: *mut ffi::PyObject,
        replacement: *mut ffi::PyObject,
    ) -> PyResult<()> {
        // SAFETY: by this function's contract. The dicts are exchanged, not their items, so that a dict with another
        // referrer stays as it is.
        unsafe {
            let set = |of, dict: &Bound<'_, PyAny>| {
                let set = ffi::PyObject_GenericSetDict(of, dict.as_ptr(), ptr::null_mut());
                checked(self.py, set)
            };
            let (own, other) = (self.attributes(object)?, self.attributes(replacement)?);
            set(object, &other)?;
            set(replacement, &own).or_else(|error| retry(|| set(object, &own)).and(Err(error)))
        }
    }

    /// # Safety
    /// As for `exchange_all`.
    unsafe fn class_of(&self, object: *mut ffi::PyObject) -> Bound<'_, PyAny> {
        // SAFETY: the class of a live object is live.
        unsafe { Bound::from_borrowed_ptr(self.py, ffi::Py_TYPE(object).cast()) }
    }

    /// # Safety
    /// As for `exchange_all`.
    unsafe fn assign_class(
        &self,
        object: *mut ffi::PyObject,
        class: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        // SAFETY: by this function's contract.
        unsafe { self.call(self.set_class, object, class.as_ptr()) }
    }

    /// # Safety
    /// As for `exchange_all`.
    unsafe fn call(
        &self,
        function: *mut ffi::PyObject,
        first: *mut ffi::PyObject,
        second: *mut ffi::PyObject,
    ) -> PyResult<()> {
        // SAFETY: by this function's contract.
        unsafe {
            let end = ptr::null_mut::<ffi::PyObject>();
            let result = ffi::PyObject_CallFunctionObjArgs(function, first, second, end);
            owned_or_error(self.py, result).map(drop)
        }
    }
}
