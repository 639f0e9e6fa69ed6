//! What running code uses: the objects that external references lead to.
//!
//! References are followed through what code itself looks into: plain containers, closures, iterators, suspended
//! generators. An object of a library's class is in use with everything it reaches. An object of the program's own
//! classes is not followed, or the `self` of every running method would keep everything it reaches. Context managers
//! are the exception: they may reference what the end of a with-block restores.
#![allow(unsafe_code)]

use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};
use rustc_hash::FxHashMap;

use crate::cpython::context_managers::ContextManagers;
use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_collect, try_insert, try_push};
use crate::cpython::fallible_objects::{pair, types_in};
use crate::graph::closure::Closure;
use crate::graph::external_references::{
    GeneratorType, KnownReferences, ReferenceCounter, generator_types_in,
};
use crate::heap::address_sets::Addresses;
use crate::heap::reference_counts::ReferenceCounts;
use crate::heap::type_facts::{Role, TypeFacts, TypeTable, TypesOfInterest, each_referent};
use crate::libraries::root_objects::RootObjects;

/// How external references are followed.
#[pyclass(module = "fastpurge._core", frozen)]
pub struct RunningCode {
    containers: Option<Py<PyTuple>>,
    container_bases: Option<Py<PyTuple>>,
    kept_whole: Option<Py<PyTuple>>,
    generator_types: Option<Py<PyTuple>>,
    scheduled: Vec<(Py<PyType>, Option<Py<PyAny>>)>,
    root_objects: Option<(Py<PyTuple>, Py<PyTuple>)>,
}

#[pymethods]
impl RunningCode {
    /// ``containers`` are followed, by exact type, and so are instances of subtypes of ``container_bases`` that are the
    /// program's. Instances of ``kept_whole`` keep everything they reach. ``generator_types`` are the types whose
    /// instances have a frame of their own (generators and the like), each with the name of the attribute that is true
    /// while one runs. ``scheduled`` are types whose instances are in use whatever references them, each with a C
    /// function that returns whether an instance is done, and so no longer in use, or with ``None``. They keep
    /// everything they reach, or are followed if they are ``root_objects`` too.
    ///
    /// ``root_objects`` are types, and names of packages, whose instances are a boundary. All other instances of a
    /// library's class keep everything they reach; without ``root_objects`` they do not.
    #[new]
    #[pyo3(signature = (*, containers=None, container_bases=None, kept_whole=None, generator_types=None, scheduled=None, root_objects=None))]
    fn new(
        containers: Option<Bound<'_, PyTuple>>,
        container_bases: Option<Bound<'_, PyTuple>>,
        kept_whole: Option<Bound<'_, PyTuple>>,
        generator_types: Option<Bound<'_, PyTuple>>,
        scheduled: Option<Bound<'_, PyTuple>>,
        root_objects: Option<Bound<'_, PyTuple>>,
    ) -> PyResult<Self> {
        let mut running = Self {
            containers: containers.map(Bound::unbind),
            container_bases: container_bases.map(Bound::unbind),
            kept_whole: kept_whole.map(Bound::unbind),
            generator_types: generator_types.map(Bound::unbind),
            scheduled: Vec::new(),
            root_objects: None,
        };
        for each in scheduled.iter().flatten() {
            let [of, done] = pair(&each)?;
            let done = (!done.is_none()).then(|| done.unbind());
            let of = of.cast_into::<PyType>()?.unbind();
            try_push(&mut running.scheduled, (of, done))?;
        }
        if let Some(root_objects) = root_objects {
            let [types, packages] = pair(&root_objects)?;
            let types = types.cast_into::<PyTuple>()?.unbind();
            running.root_objects = Some((types, packages.cast_into::<PyTuple>()?.unbind()));
        }
        Ok(running)
    }
}

impl RunningCode {
    /// A search for the objects in use. ``scanned`` are the types that the scan searches for.
    pub fn search<'a>(&'a self, scanned: &Bound<'a, PyTuple>) -> PyResult<Search<'a>> {
        let py = scanned.py();
        let types = |of: Option<&Py<PyTuple>>| types_in(of.map(|types| types.bind(py)));
        let scheduled = self.scheduled.iter().map(|(of, _)| of.as_ptr().cast());
        Ok(Search {
            running: self,
            types: TypeTable::new(TypesOfInterest {
                scanned: types_in(Some(scanned))?,
                containers: types(self.containers.as_ref())?,
                container_bases: types(self.container_bases.as_ref())?,
                kept_whole: types(self.kept_whole.as_ref())?,
                scheduled: try_collect(scheduled)?,
                ..TypesOfInterest::default()
            })?,
            generator_types: generator_types_in(
                self.generator_types.as_ref().map(|pairs| pairs.bind(py)),
            )?,
            context_managers: ContextManagers::new(py)?,
            known_treatments: FxHashMap::default(),
            seen: Addresses::default(),
            pending: Vec::new(),
            referenced: Vec::new(),
            kept_whole: Vec::new(),
        })
    }

    fn root_objects(&self, py: Python<'_>) -> PyResult<Option<RootObjects>> {
        let roots = self.root_objects.as_ref();
        roots
            .map(|(types, packages)| RootObjects::new(types.bind(py), packages.bind(py)))
            .transpose()
    }

    /// Whether an object of a scheduled type is not done yet.
    ///
    /// # Safety
    /// `object` is live and the thread is attached.
    unsafe fn is_scheduled(&self, object: *mut ffi::PyObject) -> bool {
        // SAFETY: by this function's contract.
        let is_of =
            |of: &Py<PyType>| unsafe { ffi::PyObject_TypeCheck(object, of.as_ptr().cast()) != 0 };
        let first = self.scheduled.iter().find(|(of, _)| is_of(of));
        first.is_some_and(|(_, done)| {
            // SAFETY: by this function's contract; `done` is a C function, which lets no other thread run.
            unsafe {
                let Some(done) = done else {
                    return true;
                };
                let end = ptr::null_mut::<ffi::PyObject>();
                let answer = ffi::PyObject_CallFunctionObjArgs(done.as_ptr(), object, end);
                if answer.is_null() {
                    ffi::PyErr_Clear();
                    return true;
                }
                ffi::Py_DECREF(answer);
                answer != ffi::Py_True()
            }
        })
    }
}

/// How an object that running code references is treated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Treatment {
    /// It is in use with everything it reaches.
    KeptWhole,
    /// What it refers to is referenced by running code as well.
    Traversed,
    Ignored,
}

/// One search for the objects in use.
pub struct Search<'a> {
    running: &'a RunningCode,
    types: TypeTable,
    generator_types: Vec<GeneratorType>,
    context_managers: ContextManagers<'a>,
    /// How the instances of a type are treated, if the type alone decides it.
    known_treatments: FxHashMap<usize, Treatment>,
    seen: Addresses,
    pending: Vec<*mut ffi::PyObject>,
    /// Of a scanned type or of one in `kept_whole`.
    referenced: Vec<*mut ffi::PyObject>,
    kept_whole: Vec<*mut ffi::PyObject>,
}

impl Search<'_> {
    /// Adds the objects in use to a closure. Returns those of a scanned type or of one in `kept_whole` that running
    /// code references, directly or through objects that are followed.
    ///
    /// Every object that the collector tracks is registered in ``counts``; the stream itself has ``stream_references``
    /// references to each.
    ///
    /// # Safety
    /// The registered objects are live, the garbage collector is paused, and no Python code runs until the closure is
    /// finished.
    pub unsafe fn add_to(
        mut self,
        py: Python<'_>,
        closure: &mut Closure<'_, '_>,
        counts: ReferenceCounts,
        stream_references: ffi::Py_ssize_t,
        known: KnownReferences<'_>,
    ) -> PyResult<Vec<*mut ffi::PyObject>> {
        closure.set_root_objects(self.running.root_objects(py)?);
        let (running, lists) = (self.running, known.lists);
        let (mut scheduled, mut done, mut outcome) = (Vec::new(), Vec::new(), Ok(()));
        let count = ReferenceCounter::new(&mut self.types, counts, &self.generator_types, known);
        // SAFETY: by this function's contract.
        let externally_referenced = unsafe {
            count.externally_referenced(stream_references, |types, object| {
                let facts = types.of(object);
                if facts.scheduled && outcome.is_ok() {
                    let waits = running.is_scheduled(object);
                    outcome = try_push(if waits { &mut scheduled } else { &mut done }, object);
                }
                facts.traverse.is_some()
            })
        }?;
        outcome?;
        for &list in lists {
            self.seen.insert(list)?;
        }
        // SAFETY: live, since no Python code has run since each was found.
        unsafe {
            for object in externally_referenced.into_iter().chain(scheduled) {
                self.visit(object, closure)?;
            }
            self.traverse_pending(closure)?;
            for &object in &self.kept_whole {
                closure.add_named(object)?;
            }
            add_results_of_finished(closure, done)?;
        }
        Ok(self.referenced)
    }

    /// # Safety
    /// No object was freed since it was found, and the thread is attached.
    unsafe fn traverse_pending(&mut self, closure: &mut Closure<'_, '_>) -> Result<(), Failure> {
        while let Some(object) = self.pending.pop() {
            // SAFETY: by this function's contract.
            unsafe {
                if let Some(traverse) = self.types.of(object).traverse {
                    each_referent(object, traverse, |referent| self.visit(referent, closure))?;
                }
            }
        }
        Ok(())
    }

    /// # Safety
    /// `object` is live and the thread is attached.
    unsafe fn visit(
        &mut self,
        object: *mut ffi::PyObject,
        closure: &mut Closure<'_, '_>,
    ) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            let facts = self.types.of(object);
            let how = self.treatment_of(object, facts, closure)?;
            if how == Treatment::Ignored || !self.seen.insert(object)? {
                return Ok(());
            }
            if facts.scanned || facts.kept_whole {
                try_push(&mut self.referenced, object)?;
            }
            let list = match how {
                Treatment::KeptWhole => &mut self.kept_whole,
                _ => &mut self.pending,
            };
            try_push(list, object)
        }
    }

    /// # Safety
    /// As for `visit`.
    unsafe fn treatment_of(
        &mut self,
        object: *mut ffi::PyObject,
        facts: TypeFacts,
        closure: &mut Closure<'_, '_>,
    ) -> Result<Treatment, Failure> {
        if facts.traverse.is_none() || closure.contains(object) {
            return Ok(Treatment::Ignored);
        }
        if facts.scanned || facts.kept_whole {
            return Ok(Treatment::KeptWhole);
        }
        match facts.role {
            Role::Module => return Ok(Treatment::Ignored),
            Role::Dict if closure.is_module_dict(object) => return Ok(Treatment::Ignored),
            // SAFETY: by this function's contract.
            Role::Type => return unsafe { self.treatment_of_class(object, closure) },
            _ if facts.container => return Ok(Treatment::Traversed),
            _ => {}
        }
        // SAFETY: by this function's contract.
        unsafe {
            let of = ffi::Py_TYPE(object);
            if facts.scheduled {
                // A call that is waiting is followed like one that is running.
                let is_call = closure.is_root_object_type(of)?;
                return Ok(if is_call {
                    Treatment::Traversed
                } else {
                    Treatment::KeptWhole
                });
            }
            if let Some(&known) = self.known_treatments.get(&(of as usize)) {
                return Ok(known);
            }
            let treatment = self.treatment_by_type(of, facts.derived, closure)?;
            try_insert(&mut self.known_treatments, of as usize, treatment)?;
            Ok(treatment)
        }
    }

    /// A class that a function made is part of that function's result. A class of a module is referenced by the module
    /// and ignored, unless the class itself is a context manager.
    ///
    /// # Safety
    /// `class` is a live type and the thread is attached.
    unsafe fn treatment_of_class(
        &self,
        class: *mut ffi::PyObject,
        closure: &mut Closure<'_, '_>,
    ) -> Result<Treatment, Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            let metatype = ffi::Py_TYPE(class);
            if metatype != &raw mut ffi::PyType_Type
                && self.context_managers.is_context_manager_type(metatype)
            {
                return Ok(Treatment::KeptWhole);
            }
            if !closure.is_made_by_function(class)? {
                return Ok(Treatment::Ignored);
            }
            let is_library = closure.is_library_type(class.cast())?;
            Ok(if is_library {
                Treatment::KeptWhole
            } else {
                Treatment::Traversed
            })
        }
    }

    /// # Safety
    /// `of` is a live type and the thread is attached.
    unsafe fn treatment_by_type(
        &self,
        of: *mut ffi::PyTypeObject,
        derived: bool,
        closure: &mut Closure<'_, '_>,
    ) -> Result<Treatment, Failure> {
        let followed_if = |yes| {
            if yes {
                Treatment::Traversed
            } else {
                Treatment::Ignored
            }
        };
        // SAFETY: by this function's contract.
        unsafe {
            let flags = ffi::PyType_GetFlags(of);
            // An exception's traceback references all locals of the functions that it has left.
            let is_exception = flags & ffi::Py_TPFLAGS_BASE_EXC_SUBCLASS != 0;
            let restores = self.context_managers.is_context_manager_type(of);
            if self.running.root_objects.is_none() || (derived && is_exception && !restores) {
                return Ok(followed_if(derived));
            }
            if !restores && closure.is_root_object_type(of)? {
                return Ok(Treatment::Ignored);
            }
            // Static types, which C code defines: contexts, wrappers of coroutines and the like.
            if flags & ffi::Py_TPFLAGS_HEAPTYPE == 0 {
                return Ok(Treatment::Traversed);
            }
            if closure.is_library_type(of)? || restores {
                return Ok(Treatment::KeptWhole);
            }
            Ok(followed_if(derived))
        }
    }
}

/// Traverses the finished calls in the closure: they reference nothing but their results.
///
/// # Safety
/// As for `Closure::name`.
unsafe fn add_results_of_finished(
    closure: &mut Closure<'_, '_>,
    mut done: Vec<*mut ffi::PyObject>,
) -> Result<(), Failure> {
    loop {
        let before = done.len();
        let mut outcome = Ok(());
        done.retain(|&call| {
            if outcome.is_err() || !closure.contains(call) {
                return true;
            }
            // SAFETY: by this function's contract.
            outcome = unsafe { closure.add_named(call) };
            false
        });
        outcome?;
        if done.len() == before {
            return Ok(());
        }
    }
}
