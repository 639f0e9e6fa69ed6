//! The last step of a release: objects change places with blanks, all of them or none.
//!
//! Between a look at who holds an object and its exchange nothing may run, in this thread or any other.
//! Another thread may have taken it up since it was surveyed, and may be inside a C++ operation that
//! refers to it without a lock.
#![allow(unsafe_code)]

use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple, PyType};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_collect, try_repeat, try_room};
use crate::cpython::fallible_objects::{checked, list, number, or_none, taken, tuple};
use crate::cpython::gc_pause::GcPause;
use crate::cpython::read_unless_inside::other_threads;
use crate::graph::running_code::RunningCode;
use crate::graph::scan::Question;
use crate::heap::address_sets::IdSet;
use crate::libraries::library_folders::Libraries;

/// Exchanges class, attributes and implementation of each object with those of its blank, if all of
/// them are still unprotected: takes a last snapshot, and changes all of them in the same go or none.
///
/// What is in ``self_held`` counts so as long as ``owners``, a C function, says of it that it has more than one.
///
/// ``implementation`` is a type, and the function that exchanges what its instances have in C.
/// ``set_class`` and that function must be C functions. What is held from outside is protected if
/// ``spare_held``, and otherwise only if another thread runs.
///
/// Returns those that refused, each as its index with the exception, or ``None`` if it is in use.
/// If there are any, all is as before.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
#[pyo3(signature = (named, roots, objects, blanks, *, scan_for, libraries, running_code, self_held, owners, spare_held, set_class, implementation))]
pub fn exchange<'py>(
    py: Python<'py>,
    named: &Bound<'py, PyTuple>,
    roots: &Bound<'py, PyList>,
    objects: &Bound<'py, PyList>,
    blanks: &Bound<'py, PyList>,
    scan_for: &Bound<'py, PyTuple>,
    libraries: &Libraries,
    running_code: &RunningCode,
    self_held: &Bound<'py, IdSet>,
    owners: &Bound<'py, PyAny>,
    spare_held: bool,
    set_class: &Bound<'py, PyAny>,
    implementation: (Bound<'py, PyType>, Bound<'py, PyAny>),
) -> PyResult<Bound<'py, PyList>> {
    let _pause = GcPause::new(py);
    let mut self_held = self_held.try_borrow_mut()?;
    forget_unowned(&mut self_held, objects, &implementation.0, owners)?;
    let question = Question {
        named,
        roots,
        scan_for,
        report: None,
        libraries,
        guarded: None,
        boundary: None,
        running_code: (spare_held || !other_threads(py)?.is_empty()).then_some(running_code),
        self_held: Some(&self_held),
        lists: &[objects.as_ptr(), blanks.as_ptr()],
    };
    let tools = Tools {
        py,
        set_class: set_class.as_ptr(),
        type_with_implementation: implementation.0.as_type_ptr(),
        swap: implementation.1.as_ptr(),
    };
    let both = objects.iter().zip(blanks.iter());
    let pairs = try_collect(both.map(|(object, blank)| (object.as_ptr(), blank.as_ptr())))?;

    // Made before anything changes: what was exchanged must be told.
    let answer = list(py, Vec::new(), Ok)?;
    let sight = question.look(py)?;
    let is_protected = |object| sight.sorting || sight.closure.contains(object);
    let protected = pairs.iter().map(|&(object, _)| is_protected(object));
    let protected = protected.enumerate();
    let mut refused =
        try_collect(protected.filter_map(|(index, protected)| protected.then_some((index, None))))?;
    if refused.is_empty() {
        // SAFETY: the lists hold the pairs, and nobody can reach the lists meanwhile.
        refused = unsafe { tools.exchange_all(&pairs) }?;
    }
    // To give exceptions to Python may let other threads run, so it comes last.
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

/// Forgets those of some objects that have no owner but their Python object any more: what had another when it was
/// asked may have been taken up since, and then the reference that was its own is somebody's.
fn forget_unowned(
    self_held: &mut IdSet,
    objects: &Bound<'_, PyList>,
    with_owners: &Bound<'_, PyType>,
    owners: &Bound<'_, PyAny>,
) -> PyResult<()> {
    for object in objects {
        let known = self_held.addresses().contains(object.as_ptr());
        // SAFETY: attached; a live object, and a live type.
        let is_with =
            unsafe { ffi::PyObject_TypeCheck(object.as_ptr(), with_owners.as_type_ptr()) };
        if known && is_with != 0 {
            let end = ptr::null_mut::<ffi::PyObject>();
            // SAFETY: attached; live objects, and a function in C, which gives a new reference to a number, or null
            // with an exception.
            let count: usize = unsafe {
                let count =
                    ffi::PyObject_CallFunctionObjArgs(owners.as_ptr(), object.as_ptr(), end);
                taken(owners.py(), count)
            }?
            .extract()?;
            if count <= 1 {
                self_held.discard(&object);
            }
        }
    }
    Ok(())
}

type Pair = (*mut ffi::PyObject, *mut ffi::PyObject);

/// The index of a pair, with the exception, or `None` if the object is in use.
type Refusal = (usize, Option<PyErr>);

/// Bytes that are kept for going back.
const SPARE: usize = 1 << 16;

/// Does what undoes something else, again if it failed: a small allocation may succeed the next time.
fn insist<E>(action: impl Fn() -> Result<(), E>) -> Result<(), E> {
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

struct Tools<'py> {
    py: Python<'py>,
    set_class: *mut ffi::PyObject,
    type_with_implementation: *mut ffi::PyTypeObject,
    swap: *mut ffi::PyObject,
}

impl Tools<'_> {
    /// Exchanges all, or if one refuses none.
    ///
    /// # Safety
    /// All pointers are to live objects, which stay alive.
    unsafe fn exchange_all(&self, pairs: &[Pair]) -> Result<Vec<Refusal>, Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            let count = |&(object, _): &Pair| ffi::Py_REFCNT(object);
            let counts = try_collect(pairs.iter().map(count))?;
            // All the room there will be need of, now that there is a way back.
            let (mut done, mut refused) = (try_room(pairs.len())?, try_room(pairs.len())?);
            let spare = try_repeat(0_u8, SPARE)?;
            for (index, (&pair, &count)) in pairs.iter().zip(&counts).enumerate() {
                match self.exchange(pair, Some(count)) {
                    Ok(()) => done.push(pair),
                    Err(error) => refused.push((index, error)),
                }
            }
            // What was refused for want of memory must not keep the others from going back.
            drop(spare);
            if !refused.is_empty() {
                for &pair in done.iter().rev() {
                    // The inverse of an exchange that went well: it has no reason to fail.
                    let _ = insist(|| self.exchange(pair, None));
                }
            }
            Ok(refused)
        }
    }

    /// Exchanges one pair, unless the object has another number of references than ``count``: the only
    /// way for that is an audit hook in Python, which `__class__` assignment calls.
    ///
    /// # Safety
    /// As for `exchange_all`.
    unsafe fn exchange(
        &self,
        (object, blank): Pair,
        count: Option<ffi::Py_ssize_t>,
    ) -> Result<(), Option<PyErr>> {
        // SAFETY: by this function's contract. The classes are held here: the objects let go of them.
        unsafe {
            if count.is_some() {
                self.detach_attributes(object)?;
                self.detach_attributes(blank)?;
            }
            let own_class = self.class_of(object);
            let blank_class = self.class_of(blank);
            let has_implementation =
                ffi::PyObject_TypeCheck(object, self.type_with_implementation) != 0;
            self.become_a(object, &blank_class)?;
            let done = if count.is_some_and(|count| ffi::Py_REFCNT(object) != count) {
                Err(None)
            } else {
                self.exchange_contents((object, blank), &own_class, has_implementation)
                    .map_err(Some)
            };
            if done.is_err() {
                insist(|| self.become_a(object, &own_class))?;
            }
            done
        }
    }

    /// Has the dict of an object own its values, before class or dict are assigned.
    ///
    /// From CPython 3.13 on the values may lie in the object. Both assignments then take them out first, and if
    /// there is no memory for that they leave an empty dict (gh-124547). A dict that takes a key that is no str
    /// takes them out as well (`dictresize` in Objects/dictobject.c), and without memory is as it was.
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
            let key = taken(self.py, key)?;
            let (dict, key) = (dict.as_ptr(), key.as_ptr());
            checked(self.py, ffi::PyDict_SetItem(dict, key, ffi::Py_None()))?;
            checked(self.py, ffi::PyDict_DelItem(dict, key))
        }
    }

    /// # Safety
    /// As for `exchange_all`.
    unsafe fn attributes(&self, of: *mut ffi::PyObject) -> PyResult<Bound<'_, PyAny>> {
        // SAFETY: by this function's contract.
        unsafe { taken(self.py, ffi::PyObject_GenericGetDict(of, ptr::null_mut())) }
    }

    /// # Safety
    /// As for `exchange_all`.
    unsafe fn exchange_contents(
        &self,
        (object, blank): Pair,
        own_class: &Bound<'_, PyAny>,
        has_implementation: bool,
    ) -> PyResult<()> {
        // SAFETY: by this function's contract.
        unsafe {
            let swap = || match has_implementation {
                true => self.call(self.swap, object, blank),
                false => Ok(()),
            };
            let blank_class = self.class_of(blank);
            swap()?;
            let done = self
                .become_a(blank, own_class)
                .and_then(|()| self.exchange_attributes(object, blank));
            if done.is_err() {
                insist(|| self.become_a(blank, &blank_class))?;
                insist(swap)?;
            }
            done
        }
    }

    /// # Safety
    /// As for `exchange_all`.
    unsafe fn exchange_attributes(
        &self,
        object: *mut ffi::PyObject,
        blank: *mut ffi::PyObject,
    ) -> PyResult<()> {
        // SAFETY: by this function's contract. Whole dicts change places, so that one that somebody
        // else holds as well stays as it is.
        unsafe {
            let set = |of, dict: &Bound<'_, PyAny>| {
                let set = ffi::PyObject_GenericSetDict(of, dict.as_ptr(), ptr::null_mut());
                checked(self.py, set)
            };
            let (own, other) = (self.attributes(object)?, self.attributes(blank)?);
            set(object, &other)?;
            set(blank, &own).or_else(|error| insist(|| set(object, &own)).and(Err(error)))
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
    unsafe fn become_a(
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
            taken(self.py, result).map(drop)
        }
    }
}
