//! External references: those that no tracked object accounts for. Running code has them, and C code.
//!
//! The locals of a running function and the values on its stack are references that no `tp_traverse`
//! shows. So this does the arithmetic of the cyclic collector (`subtract_refs` in Modules/gcmodule.c):
//! the references that tracked objects hold are taken off the reference count, and what is left comes
//! from outside.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::{mem, ptr};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::try_push;
use crate::cpython::fallible_objects::{ask, caller_of, pair};
use crate::heap::address_sets::Addresses;
use crate::heap::prefetch::prefetch_contents;
use crate::heap::reference_counts::{BATCH, Counts};
use crate::heap::type_facts::TypeTable;

/// References whose holders are known without a walk, or that are not to be followed.
#[derive(Clone, Copy)]
pub struct Accounted<'a> {
    /// The frames of running functions, as far as they are shown: what they hold is held by running code.
    pub frames: &'a Addresses,
    /// What holds one reference to itself.
    pub self_held: Option<&'a Addresses>,
    /// Lists of the caller's, which are not followed either.
    pub lists: &'a [*mut ffi::PyObject],
}

/// A count of the references that objects hold.
pub struct Count<'a> {
    types: &'a mut TypeTable,
    counts: Counts,
    executing: &'a [Executing],
    accounted: Accounted<'a>,
    /// Dicts of instances that the collector does not track although they hold what it does: in CPython 3.13 one
    /// whose first value was a number, once it has had no more room for keys.
    untracked: Vec<*mut ffi::PyObject>,
    /// The same, by address.
    late: Addresses,
    /// How many of these were counted.
    done: usize,
    /// Whether the object being traversed is an instance of a class, which may have such a dict.
    is_instance: bool,
    /// Whether it has shown a referent.
    shown: bool,
    outcome: Result<(), Failure>,
}

impl<'a> Count<'a> {
    /// `counts` has begun every object that the collector tracks.
    pub fn new(
        types: &'a mut TypeTable,
        counts: Counts,
        executing: &'a [Executing],
        accounted: Accounted<'a>,
    ) -> Self {
        Self {
            types,
            counts,
            executing,
            accounted,
            untracked: Vec::new(),
            late: Addresses::default(),
            done: 0,
            is_instance: false,
            shown: false,
            outcome: Ok(()),
        }
    }

    /// Every object that has external references and is of interest, in the order of addresses. It is asked of each
    /// object, once. The stream itself has `streams` references to each.
    ///
    /// # Safety
    /// Whatever was begun is live, the thread is attached, and the garbage collector is paused. No Python code runs.
    pub unsafe fn external(
        mut self,
        streams: ffi::Py_ssize_t,
        mut is_of_interest: impl FnMut(&mut TypeTable, *mut ffi::PyObject) -> bool,
    ) -> Result<Vec<*mut ffi::PyObject>, Failure> {
        let (mut now, mut next) = ([0; BATCH], [0; BATCH]);
        let mut begun = self.counts.begun()?;
        let mut left = begun.next(&self.counts, &mut now);
        while left > 0 {
            let after = begun.next(&self.counts, &mut next);
            // SAFETY: by this function's contract.
            unsafe { self.take_all(&now[..left]) }?;
            (now, left) = (next, after);
        }
        let mut found = Vec::new();
        let mut begun = self.counts.begun()?;
        let mut left = begun.next(&self.counts, &mut now);
        while left > 0 {
            let after = begun.next(&self.counts, &mut next);
            for &address in &now[..left] {
                let object = ptr::with_exposed_provenance_mut(address);
                let streams = if self.is_late(object) { 0 } else { streams };
                // SAFETY: by this function's contract.
                if is_of_interest(self.types, object)
                    && unsafe { self.is_external(object, streams) }
                {
                    try_push(&mut found, object)?;
                }
            }
            (now, left) = (next, after);
        }
        Ok(found)
    }

    /// Whether an object was begun only when another was traversed, and is taken with that.
    fn is_late(&self, object: *mut ffi::PyObject) -> bool {
        !self.untracked.is_empty() && self.late.contains(object)
    }

    /// # Safety
    /// What is at the addresses is live, the thread is attached, and no Python code runs.
    unsafe fn take_all(&mut self, batch: &[usize]) -> Result<(), Failure> {
        let objects = batch
            .iter()
            .map(|&address| ptr::with_exposed_provenance_mut(address));
        // SAFETY: by this function's contract.
        unsafe {
            for object in objects.clone() {
                prefetch_contents(object);
            }
            for object in objects {
                if !self.is_late(object) {
                    self.take(object)?;
                }
            }
            while let Some(&object) = self.untracked.get(self.done) {
                self.done += 1;
                self.take(object)?;
            }
        }
        Ok(())
    }

    /// Counts the references that one object holds.
    ///
    /// # Safety
    /// As for `take_all`.
    unsafe fn take(&mut self, object: *mut ffi::PyObject) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        let facts = unsafe { self.types.of(object) };
        let Some(traverse) = facts.traverse else {
            return Ok(());
        };
        // SAFETY: by this function's contract.
        if self.accounted.frames.contains(object) || unsafe { executes(self.executing, object) } {
            return Ok(());
        }
        self.is_instance = facts.instance;
        self.shown = false;
        // SAFETY: an object that takes part in garbage collection is one that its type's tp_traverse is for;
        // `self` outlives the call.
        unsafe { traverse(object, visit, (&raw mut *self).cast()) };
        mem::replace(&mut self.outcome, Ok(()))?;
        // The object around the values of such a dict shows these, and then not the dict, which it refers to as
        // well (`each_unshown`).
        // SAFETY: by this function's contract; such a dict is an exact one.
        if !self.shown
            && unsafe { ffi::PyDict_CheckExact(object) != 0 && ffi::PyDict_Size(object) > 0 }
        {
            self.counts.add(object)?;
        }
        Ok(())
    }

    /// Counts one reference.
    ///
    /// # Safety
    /// `referent` is live and the thread is attached.
    #[inline]
    unsafe fn count(&mut self, referent: *mut ffi::PyObject) -> Result<(), Failure> {
        self.shown = true;
        if self.counts.add(referent)? || !self.is_instance {
            return Ok(());
        }
        // SAFETY: by this function's contract.
        if unsafe { ffi::PyDict_CheckExact(referent) } != 0 {
            self.counts.begin(referent)?;
            self.counts.add(referent)?;
            self.late.insert(referent)?;
            try_push(&mut self.untracked, referent)?;
        }
        Ok(())
    }

    /// Whether more references to an object exist than were counted, and than the stream has.
    ///
    /// # Safety
    /// `object` is live.
    unsafe fn is_external(&self, object: *mut ffi::PyObject, streams: ffi::Py_ssize_t) -> bool {
        let own = self.accounted.self_held;
        let own = own.is_some_and(|known| known.contains(object));
        let counted = ffi::Py_ssize_t::try_from(self.counts.of(object)).unwrap_or(0);
        // SAFETY: by this function's contract.
        unsafe { ffi::Py_REFCNT(object) > counted + ffi::Py_ssize_t::from(own) + streams }
    }
}

/// # Safety
/// `count` points to the live `Count` whose `take` called tp_traverse.
unsafe extern "C" fn visit(referent: *mut ffi::PyObject, count: *mut c_void) -> c_int {
    // SAFETY: by this function's contract; `take` touches nothing of it until tp_traverse returns.
    let count = unsafe { &mut *count.cast::<Count<'_>>() };
    // SAFETY: what an object refers to is live.
    let counted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unsafe {
        count.count(referent)
    }));
    count.outcome = counted.unwrap_or_else(|panic| Err(Failure::Panic(panic)));
    c_int::from(count.outcome.is_err())
}

/// A type whose frame is its own, and the attribute that says that it runs now.
pub type Executing = (*mut ffi::PyTypeObject, *mut ffi::PyObject);

/// The types whose frame is their own, of pairs in a tuple, which holds them.
pub fn executing_types(pairs: Option<&Bound<'_, PyTuple>>) -> PyResult<Vec<Executing>> {
    let mut executing = Vec::new();
    for each in pairs.into_iter().flatten() {
        let [of, attribute] = pair(&each)?;
        let of = of.cast::<PyType>()?.as_type_ptr();
        try_push(&mut executing, (of, attribute.as_ptr()))?;
    }
    Ok(executing)
}

/// Whether an object is a generator that runs now. Its locals are those of running code, and unlike
/// a function's they are shown (`gen_traverse` in Objects/genobject.c does not ask for its state).
///
/// # Safety
/// `object` is live and the thread is attached.
#[inline]
pub unsafe fn executes(executing: &[Executing], object: *mut ffi::PyObject) -> bool {
    // SAFETY: by this function's contract.
    let of = unsafe { ffi::Py_TYPE(object) };
    let Some(&(_, attribute)) = executing.iter().find(|&&(known, _)| known == of) else {
        return false;
    };
    // SAFETY: a getter in C of a built-in type that cannot be subclassed; it gives True or False.
    unsafe {
        let runs = ffi::PyObject_GetAttr(object, attribute);
        if runs.is_null() {
            ffi::PyErr_Clear();
            return false;
        }
        ffi::Py_DECREF(runs);
        runs == ffi::Py_True()
    }
}

/// The frames of running functions, where `tp_traverse` shows their locals.
///
/// That is CPython 3.10: from 3.11 on a frame that runs shows nothing (`frame_traverse` in
/// Objects/frameobject.c), which is what is wanted.
pub fn running_frames(py: Python<'_>) -> PyResult<Addresses> {
    let mut frames = Addresses::default();
    if py.version_info() >= (3, 11) {
        return Ok(frames);
    }
    let threads = ask(py, c"sys", c"_current_frames")?;
    for (_, frame) in threads.cast_into::<PyDict>()? {
        let mut at = frame;
        while !at.is_none() {
            frames.insert(at.as_ptr())?;
            at = caller_of(&at)?;
        }
    }
    Ok(frames)
}
