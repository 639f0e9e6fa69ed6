//! External references: references that no tracked object accounts for. They are those of running code and C code.
//!
//! The locals of a running function and the values on its stack are references that no `tp_traverse`
//! shows. So this does the arithmetic of the cyclic collector (`subtract_refs` in Modules/gcmodule.c):
//! it subtracts the references from tracked objects from the reference count. The rest are external.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::{mem, ptr};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::try_push;
use crate::cpython::fallible_objects::pair;
use crate::cpython::frames::each_frame;
use crate::heap::address_sets::Addresses;
use crate::heap::prefetch::prefetch_contents;
use crate::heap::reference_counts::{BATCH, ReferenceCounts};
use crate::heap::type_facts::TypeTable;

/// References that need no walk to be known, or that are not followed.
#[derive(Clone, Copy)]
pub struct KnownReferences<'a> {
    /// The frames of running functions whose `tp_traverse` shows locals. Their references count as external.
    pub frames: &'a Addresses,
    /// Objects that have one reference to themselves.
    pub self_referenced: Option<&'a Addresses>,
    /// The caller's own lists, which are not followed.
    pub lists: &'a [*mut ffi::PyObject],
}

/// Counts the references from tracked objects to each other.
pub struct ReferenceCounter<'a> {
    types: &'a mut TypeTable,
    counts: ReferenceCounts,
    generator_types: &'a [GeneratorType],
    known: KnownReferences<'a>,
    /// Dicts of instances that the collector does not track although it tracks some of their values: in CPython 3.13
    /// dicts whose first value was a number, after they were resized.
    untracked: Vec<*mut ffi::PyObject>,
    /// The same, as a set.
    added_late: Addresses,
    /// How many of them were traversed.
    traversed_late: usize,
    /// Whether the object being traversed is an instance of a class, which may have such a dict.
    is_instance: bool,
    /// Whether its tp_traverse has shown a referent.
    any_traversed: bool,
    outcome: Result<(), Failure>,
}

impl<'a> ReferenceCounter<'a> {
    /// Every object that the collector tracks is registered in `counts`.
    pub fn new(
        types: &'a mut TypeTable,
        counts: ReferenceCounts,
        generator_types: &'a [GeneratorType],
        known: KnownReferences<'a>,
    ) -> Self {
        Self {
            types,
            counts,
            generator_types,
            known,
            untracked: Vec::new(),
            added_late: Addresses::default(),
            traversed_late: 0,
            is_instance: false,
            any_traversed: false,
            outcome: Ok(()),
        }
    }

    /// The objects that have external references and are of interest, in the order of their addresses.
    /// `is_of_interest` is called once for each object. The stream itself has `stream_references` references to each.
    ///
    /// # Safety
    /// Every registered object is live, the thread is attached, and the garbage collector is paused. No Python code runs.
    pub unsafe fn externally_referenced(
        mut self,
        stream_references: ffi::Py_ssize_t,
        mut is_of_interest: impl FnMut(&mut TypeTable, *mut ffi::PyObject) -> bool,
    ) -> Result<Vec<*mut ffi::PyObject>, Failure> {
        let (mut now, mut next) = ([0; BATCH], [0; BATCH]);
        let mut registered = self.counts.registered()?;
        let mut left = registered.next_batch(&self.counts, &mut now);
        while left > 0 {
            let after = registered.next_batch(&self.counts, &mut next);
            // SAFETY: by this function's contract.
            unsafe { self.traverse_batch(&now[..left]) }?;
            (now, left) = (next, after);
        }
        let mut found = Vec::new();
        let mut registered = self.counts.registered()?;
        let mut left = registered.next_batch(&self.counts, &mut now);
        while left > 0 {
            let after = registered.next_batch(&self.counts, &mut next);
            for &address in &now[..left] {
                let object = ptr::with_exposed_provenance_mut(address);
                let stream_references = if self.is_added_late(object) {
                    0
                } else {
                    stream_references
                };
                // SAFETY: by this function's contract.
                if is_of_interest(self.types, object)
                    && unsafe { self.has_external_reference(object, stream_references) }
                {
                    try_push(&mut found, object)?;
                }
            }
            (now, left) = (next, after);
        }
        Ok(found)
    }

    /// Whether an object was registered only when its instance was traversed. It is traversed together with that.
    fn is_added_late(&self, object: *mut ffi::PyObject) -> bool {
        !self.untracked.is_empty() && self.added_late.contains(object)
    }

    /// # Safety
    /// The objects at the addresses are live, the thread is attached, and no Python code runs.
    unsafe fn traverse_batch(&mut self, batch: &[usize]) -> Result<(), Failure> {
        let objects = batch
            .iter()
            .map(|&address| ptr::with_exposed_provenance_mut(address));
        // SAFETY: by this function's contract.
        unsafe {
            for object in objects.clone() {
                prefetch_contents(object);
            }
            for object in objects {
                if !self.is_added_late(object) {
                    self.traverse_object(object)?;
                }
            }
            while let Some(&object) = self.untracked.get(self.traversed_late) {
                self.traversed_late += 1;
                self.traverse_object(object)?;
            }
        }
        Ok(())
    }

    /// Counts the references from one object.
    ///
    /// # Safety
    /// As for `traverse_batch`.
    unsafe fn traverse_object(&mut self, object: *mut ffi::PyObject) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        let facts = unsafe { self.types.of(object) };
        let Some(traverse) = facts.traverse else {
            return Ok(());
        };
        // SAFETY: by this function's contract.
        if self.known.frames.contains(object)
            || unsafe { is_running_generator(self.generator_types, object) }
        {
            return Ok(());
        }
        self.is_instance = facts.heap_type;
        self.any_traversed = false;
        // SAFETY: the type's own tp_traverse, on a tracked instance; `self` outlives the call.
        unsafe { traverse(object, visit, (&raw mut *self).cast()) };
        mem::replace(&mut self.outcome, Ok(()))?;
        // An instance that embeds the values of its dict shows these, and does not show its reference to the dict
        // (`each_embedded_value`).
        // SAFETY: by this function's contract; such a dict is an exact one.
        if !self.any_traversed
            && unsafe { ffi::PyDict_CheckExact(object) != 0 && ffi::PyDict_Size(object) > 0 }
        {
            self.counts.increment(object)?;
        }
        Ok(())
    }

    /// Counts one reference.
    ///
    /// # Safety
    /// `referent` is live and the thread is attached.
    #[inline]
    unsafe fn count(&mut self, referent: *mut ffi::PyObject) -> Result<(), Failure> {
        self.any_traversed = true;
        if self.counts.increment(referent)? || !self.is_instance {
            return Ok(());
        }
        // SAFETY: by this function's contract.
        if unsafe { ffi::PyDict_CheckExact(referent) } != 0 {
            self.counts.register(referent)?;
            self.counts.increment(referent)?;
            self.added_late.insert(referent)?;
            try_push(&mut self.untracked, referent)?;
        }
        Ok(())
    }

    /// Whether the reference count of an object is larger than the references that are known.
    ///
    /// # Safety
    /// `object` is live.
    unsafe fn has_external_reference(
        &self,
        object: *mut ffi::PyObject,
        stream_references: ffi::Py_ssize_t,
    ) -> bool {
        let own = self.known.self_referenced;
        let own = own.is_some_and(|known| known.contains(object));
        let counted = ffi::Py_ssize_t::try_from(self.counts.count_of(object)).unwrap_or(0);
        // SAFETY: by this function's contract.
        unsafe { ffi::Py_REFCNT(object) > counted + ffi::Py_ssize_t::from(own) + stream_references }
    }
}

/// # Safety
/// `counter` points to the live `ReferenceCounter` whose `traverse_object` called tp_traverse.
unsafe extern "C" fn visit(referent: *mut ffi::PyObject, counter: *mut c_void) -> c_int {
    // SAFETY: by this function's contract; `traverse_object` uses nothing of it until tp_traverse returns.
    let counter = unsafe { &mut *counter.cast::<ReferenceCounter<'_>>() };
    // SAFETY: what an object refers to is live.
    let counted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unsafe {
        counter.count(referent)
    }));
    counter.outcome = counted.unwrap_or_else(|panic| Err(Failure::Panic(panic)));
    c_int::from(counter.outcome.is_err())
}

/// A type whose instances have a frame of their own (generators and the like), and the name of the attribute that is
/// true while one runs.
pub type GeneratorType = (*mut ffi::PyTypeObject, *mut ffi::PyObject);

/// The generator types in a tuple of pairs. The pointers are valid as long as the tuple.
pub fn generator_types_in(pairs: Option<&Bound<'_, PyTuple>>) -> PyResult<Vec<GeneratorType>> {
    let mut generator_types = Vec::new();
    for each in pairs.into_iter().flatten() {
        let [of, attribute] = pair(&each)?;
        let of = of.cast::<PyType>()?.as_type_ptr();
        try_push(&mut generator_types, (of, attribute.as_ptr()))?;
    }
    Ok(generator_types)
}

/// Whether an object is a generator that runs now. Its locals are those of running code, but unlike a function's
/// `tp_traverse` shows them (`gen_traverse` in Objects/genobject.c ignores the state of the frame).
///
/// # Safety
/// `object` is live and the thread is attached.
#[inline]
pub unsafe fn is_running_generator(
    generator_types: &[GeneratorType],
    object: *mut ffi::PyObject,
) -> bool {
    // SAFETY: by this function's contract.
    let of = unsafe { ffi::Py_TYPE(object) };
    let Some(&(_, attribute)) = generator_types.iter().find(|&&(known, _)| known == of) else {
        return false;
    };
    // SAFETY: a getter in C of a built-in type that cannot be subclassed; it returns True or False.
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
/// That is CPython 3.10 alone: from 3.11 on the `tp_traverse` of a running frame shows nothing (`frame_traverse` in
/// Objects/frameobject.c), and its references count as external without this.
pub fn running_frames(py: Python<'_>) -> PyResult<Addresses> {
    let mut frames = Addresses::default();
    if py.version_info() >= (3, 11) {
        return Ok(frames);
    }
    each_frame(py, |frame| Ok(frames.insert(frame.as_ptr()).map(drop)?))?;
    Ok(frames)
}
