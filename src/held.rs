//! What is held from where the collector cannot look: running code, C code, objects outside the gc.
//!
//! The locals of a running function and the values on its stack are references that no `tp_traverse`
//! shows. So this does the arithmetic of the cyclic collector (`subtract_refs` in Modules/gcmodule.c):
//! the references that tracked objects hold are taken off the reference count, and what is left comes
//! from outside. It is done for a few objects only, the candidates and the plain containers around them.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyType};
use pyo3::{ffi, intern};
use rustc_hash::FxHashMap;

use crate::gc::{Failure, try_push, walk};
use crate::idset::Addresses;
use crate::types::{TypeTable, Wanted};

/// How to look for what is held from outside.
#[pyclass(module = "fastpurge._core", frozen)]
pub struct Outside {
    containers: Vec<Py<PyType>>,
    container_bases: Vec<Py<PyType>>,
    whole: Vec<Py<PyType>>,
    executing: Vec<(Py<PyType>, Py<PyString>)>,
}

#[pymethods]
impl Outside {
    /// ``containers`` are looked through, by exact type, and ``container_bases`` with their subtypes.
    /// Instances of ``whole`` that are held keep everything they reach. ``executing`` are the types
    /// (generators and the like) whose frame is their own, each with the attribute that says that it
    /// runs now.
    #[new]
    fn new(
        containers: Vec<Bound<'_, PyType>>,
        container_bases: Vec<Bound<'_, PyType>>,
        whole: Vec<Bound<'_, PyType>>,
        executing: Vec<(Bound<'_, PyType>, Bound<'_, PyString>)>,
    ) -> Self {
        Self {
            containers: containers.into_iter().map(Bound::unbind).collect(),
            container_bases: container_bases.into_iter().map(Bound::unbind).collect(),
            whole: whole.into_iter().map(Bound::unbind).collect(),
            executing: executing
                .into_iter()
                .map(|(of, attribute)| (of.unbind(), attribute.unbind()))
                .collect(),
        }
    }
}

impl Outside {
    /// The types whose held instances keep everything they reach.
    pub fn whole(&self) -> Vec<*mut ffi::PyTypeObject> {
        self.whole.iter().map(|of| of.as_ptr().cast()).collect()
    }

    /// Those of the candidates that are held from outside: themselves, or a plain container that holds
    /// them, through any number of plain containers.
    ///
    /// Those of `self_held` hold one reference to themselves. The pointers given must be live, and the garbage collector paused.
    pub fn holds(
        &self,
        py: Python<'_>,
        candidates: &[*mut ffi::PyObject],
        namespaces: &Addresses,
        self_held: Option<&Addresses>,
    ) -> PyResult<Vec<*mut ffi::PyObject>> {
        let mut census = Census {
            nodes: FxHashMap::default(),
            executing: self
                .executing
                .iter()
                .map(|(of, attribute)| (of.as_ptr().cast(), attribute.as_ptr()))
                .collect(),
            holder: std::ptr::null_mut(),
            found: Vec::new(),
            outcome: Ok(()),
        };
        let frames = running_frames(py)?;
        let pointers = |types: &[Py<PyType>]| types.iter().map(|of| of.as_ptr().cast()).collect();
        let mut types = TypeTable::new(Wanted {
            containers: pointers(&self.containers),
            container_bases: pointers(&self.container_bases),
            ..Wanted::default()
        });
        let mut targets = candidates.to_vec();
        let mut outside = Vec::new();
        while !targets.is_empty() {
            census
                .nodes
                .extend(targets.iter().map(|&at| (at as usize, Node::default())));
            // SAFETY: the walk hands on live objects, and this thread is attached.
            walk(py, |object| unsafe {
                census.take(object, &mut types, namespaces, &frames)
            })?;
            for &target in &targets {
                let seen = census.nodes[&(target as usize)].references;
                let own = self_held.is_some_and(|known| known.contains(target));
                // SAFETY: nothing has been let go since the target was met.
                if unsafe { ffi::Py_REFCNT(target) } > seen + ffi::Py_ssize_t::from(own) {
                    outside.push(target);
                }
            }
            targets = std::mem::take(&mut census.found);
        }
        Ok(census.beneath(outside, candidates))
    }
}

#[derive(Default)]
struct Node {
    /// References to this object that tracked objects hold.
    references: ffi::Py_ssize_t,
    /// For a container: the targets in it.
    holds: Vec<usize>,
}

struct Census {
    nodes: FxHashMap<usize, Node>,
    executing: Vec<(*mut ffi::PyTypeObject, *mut ffi::PyObject)>,
    /// The container being traversed, or null if it is something else.
    holder: *mut ffi::PyObject,
    /// Containers of targets, met for the first time.
    found: Vec<*mut ffi::PyObject>,
    outcome: Result<(), Failure>,
}

impl Census {
    /// Counts the references that one object holds.
    ///
    /// # Safety
    /// `object` is live and the thread is attached.
    unsafe fn take(
        &mut self,
        object: *mut ffi::PyObject,
        types: &mut TypeTable,
        namespaces: &Addresses,
        frames: &Addresses,
    ) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        let facts = unsafe { types.of(object) };
        let Some(traverse) = facts.traverse else {
            return Ok(());
        };
        if frames.contains(object) {
            return Ok(());
        }
        // SAFETY: by this function's contract.
        let of = unsafe { ffi::Py_TYPE(object) };
        // SAFETY: as above.
        if unsafe { self.executes(object, of) } {
            return Ok(());
        }
        let is_container = facts.container && !namespaces.contains(object);
        self.holder = if is_container {
            object
        } else {
            std::ptr::null_mut()
        };
        // SAFETY: a tracked object is one that its type's tp_traverse is for; `self` outlives the call.
        unsafe { traverse(object, visit, (&raw mut *self).cast()) };
        std::mem::replace(&mut self.outcome, Ok(()))
    }

    /// Whether an object is a generator that runs now. Its locals are those of running code, and unlike
    /// a function's they are shown (`gen_traverse` in Objects/genobject.c does not ask for its state).
    ///
    /// # Safety
    /// `object` is live, of type `of`, and the thread is attached.
    #[inline]
    unsafe fn executes(&self, object: *mut ffi::PyObject, of: *mut ffi::PyTypeObject) -> bool {
        let Some(&(_, attribute)) = self.executing.iter().find(|&&(known, _)| known == of) else {
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

    /// Counts one reference, and notes the container that holds it.
    #[inline]
    fn count(&mut self, referent: *mut ffi::PyObject) -> Result<(), Failure> {
        let Some(node) = self.nodes.get_mut(&(referent as usize)) else {
            return Ok(());
        };
        node.references += 1;
        if self.holder.is_null() || self.holder == referent {
            return Ok(());
        }
        let known = self.nodes.contains_key(&(self.holder as usize));
        let holder = self.nodes.entry(self.holder as usize).or_default();
        if !holder.holds.contains(&(referent as usize)) {
            try_push(&mut holder.holds, referent as usize)?;
        }
        if !known {
            try_push(&mut self.found, self.holder)?;
        }
        Ok(())
    }

    /// The candidates among some objects and everything that these hold through containers.
    fn beneath(
        &self,
        outside: Vec<*mut ffi::PyObject>,
        candidates: &[*mut ffi::PyObject],
    ) -> Vec<*mut ffi::PyObject> {
        let mut reached = rustc_hash::FxHashSet::default();
        let mut pending: Vec<usize> = outside.into_iter().map(|at| at as usize).collect();
        while let Some(at) = pending.pop() {
            if reached.insert(at) {
                pending.extend(&self.nodes[&at].holds);
            }
        }
        let held = |at: &&*mut ffi::PyObject| reached.contains(&(**at as usize));
        candidates.iter().filter(held).copied().collect()
    }
}

/// # Safety
/// `census` points to the live `Census` whose `take` called tp_traverse.
unsafe extern "C" fn visit(referent: *mut ffi::PyObject, census: *mut c_void) -> c_int {
    // SAFETY: by this function's contract; `take` touches nothing of it until tp_traverse returns.
    let census = unsafe { &mut *census.cast::<Census>() };
    let counted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| census.count(referent)));
    census.outcome = counted.unwrap_or_else(|panic| Err(Failure::Panic(panic)));
    c_int::from(census.outcome.is_err())
}

/// The frames of running functions, where `tp_traverse` shows their locals.
///
/// That is CPython 3.10: from 3.11 on a frame that runs shows nothing (`frame_traverse` in
/// Objects/frameobject.c), which is what is wanted.
fn running_frames(py: Python<'_>) -> PyResult<Addresses> {
    let mut frames = Addresses::default();
    if py.version_info() >= (3, 11) {
        return Ok(frames);
    }
    let threads = py
        .import(intern!(py, "sys"))?
        .call_method0(intern!(py, "_current_frames"))?;
    for frame in threads.cast_into::<PyDict>()?.values() {
        let mut at = frame;
        while !at.is_none() {
            frames.insert(at.as_ptr())?;
            at = at.getattr(intern!(py, "f_back"))?;
        }
    }
    Ok(frames)
}
