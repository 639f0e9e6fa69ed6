//! What is in use by running code: what external references lead to.
//!
//! What running code works with is followed the way the code itself would: through plain containers, closures,
//! iterators, suspended generators. An object of a library's class is in use with everything that it leads to. An
//! object of the program's own class is not followed, or the `self` of every method that runs would keep whatever
//! it leads to; unless its class is a context manager, which may hold what the end of a with-block restores.
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
use crate::graph::closure::Reach;
use crate::graph::external_references::{Accounted, Count, Executing, executing_types};
use crate::heap::address_sets::Addresses;
use crate::heap::reference_counts::Counts;
use crate::heap::type_facts::{Facts, Role, TypeTable, Wanted, each_referent};
use crate::libraries::root_objects::RootObjects;

/// How external references are followed.
#[pyclass(module = "fastpurge._core", frozen)]
pub struct RunningCode {
    containers: Option<Py<PyTuple>>,
    container_bases: Option<Py<PyTuple>>,
    whole: Option<Py<PyTuple>>,
    executing: Option<Py<PyTuple>>,
    scheduled: Vec<(Py<PyType>, Option<Py<PyAny>>)>,
    roots: Option<(Py<PyTuple>, Py<PyTuple>)>,
}

#[pymethods]
impl RunningCode {
    /// ``containers`` are followed, by exact type, and ``container_bases`` with the subtypes that are the program's.
    /// Instances of ``whole`` keep everything they reach. ``executing`` are the types (generators and the like)
    /// whose frame is their own, each with the attribute that says that it runs now. ``scheduled`` are types whose
    /// instances are in use whoever holds them: each with a function in C that says of one whether it is done, and
    /// is in use no more, or without. They keep everything they reach, or are followed if they are ``roots`` too.
    ///
    /// ``roots`` are types, and names of packages, whose instances lead to what is not in use: these are a boundary.
    /// Without it, no object is in use with everything it leads to for being of a library's class.
    #[new]
    #[pyo3(signature = (*, containers=None, container_bases=None, whole=None, executing=None, scheduled=None, roots=None))]
    fn new(
        containers: Option<Bound<'_, PyTuple>>,
        container_bases: Option<Bound<'_, PyTuple>>,
        whole: Option<Bound<'_, PyTuple>>,
        executing: Option<Bound<'_, PyTuple>>,
        scheduled: Option<Bound<'_, PyTuple>>,
        roots: Option<Bound<'_, PyTuple>>,
    ) -> PyResult<Self> {
        let mut running = Self {
            containers: containers.map(Bound::unbind),
            container_bases: container_bases.map(Bound::unbind),
            whole: whole.map(Bound::unbind),
            executing: executing.map(Bound::unbind),
            scheduled: Vec::new(),
            roots: None,
        };
        for each in scheduled.iter().flatten() {
            let [of, done] = pair(&each)?;
            let done = (!done.is_none()).then(|| done.unbind());
            let of = of.cast_into::<PyType>()?.unbind();
            try_push(&mut running.scheduled, (of, done))?;
        }
        if let Some(roots) = roots {
            let [types, packages] = pair(&roots)?;
            let types = types.cast_into::<PyTuple>()?.unbind();
            running.roots = Some((types, packages.cast_into::<PyTuple>()?.unbind()));
        }
        Ok(running)
    }
}

impl RunningCode {
    /// Ready to look for what is in use; ``scanned`` is what a scan looks for.
    pub fn search<'a>(&'a self, scanned: &Bound<'a, PyTuple>) -> PyResult<Search<'a>> {
        let py = scanned.py();
        let types = |of: Option<&Py<PyTuple>>| types_in(of.map(|types| types.bind(py)));
        let scheduled = self.scheduled.iter().map(|(of, _)| of.as_ptr().cast());
        Ok(Search {
            running: self,
            types: TypeTable::new(Wanted {
                scanned: types_in(Some(scanned))?,
                containers: types(self.containers.as_ref())?,
                container_bases: types(self.container_bases.as_ref())?,
                whole: types(self.whole.as_ref())?,
                scheduled: try_collect(scheduled)?,
                ..Wanted::default()
            })?,
            executing: executing_types(self.executing.as_ref().map(|pairs| pairs.bind(py)))?,
            context_managers: ContextManagers::new(py)?,
            verdicts: FxHashMap::default(),
            seen: Addresses::default(),
            pending: Vec::new(),
            held: Vec::new(),
            whole: Vec::new(),
        })
    }

    fn root_objects(&self, py: Python<'_>) -> PyResult<Option<RootObjects>> {
        let roots = self.roots.as_ref();
        roots
            .map(|(types, packages)| RootObjects::new(types.bind(py), packages.bind(py)))
            .transpose()
    }

    /// Whether an object waits to go on, or to be called.
    ///
    /// # Safety
    /// `object` is live and the thread is attached.
    unsafe fn is_scheduled(&self, object: *mut ffi::PyObject) -> bool {
        self.scheduled.iter().any(|(of, done)| {
            // SAFETY: by this function's contract; `done` is a function in C, which lets nothing else run.
            unsafe {
                if ffi::PyObject_TypeCheck(object, of.as_ptr().cast()) == 0 {
                    return false;
                }
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

/// How an object is treated that running code holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It is in use with everything it leads to.
    Whole,
    /// What it holds is held as well.
    Followed,
    Ignored,
}

/// One search for what is in use.
pub struct Search<'a> {
    running: &'a RunningCode,
    types: TypeTable,
    executing: Vec<Executing>,
    context_managers: ContextManagers<'a>,
    /// How the instances of a type are treated, as far as nothing but the type decides.
    verdicts: FxHashMap<usize, Use>,
    seen: Addresses,
    pending: Vec<*mut ffi::PyObject>,
    /// Of a scanned type, or of one that is kept whole.
    held: Vec<*mut ffi::PyObject>,
    whole: Vec<*mut ffi::PyObject>,
}

impl Search<'_> {
    /// Adds what is in use to a closure, and gives what of it is of a scanned type, or of one that is kept whole,
    /// and is held directly or by what is followed.
    ///
    /// ``counts`` has begun every object that the collector tracks; the stream itself has so many references to each.
    ///
    /// # Safety
    /// What was begun is live, the garbage collector is paused, and no Python code runs until the closure is finished.
    pub unsafe fn add_to(
        mut self,
        py: Python<'_>,
        reach: &mut Reach<'_, '_>,
        counts: Counts,
        streams: ffi::Py_ssize_t,
        accounted: Accounted<'_>,
    ) -> PyResult<Vec<*mut ffi::PyObject>> {
        reach.stop_at_roots(self.running.root_objects(py)?);
        let (running, lists) = (self.running, accounted.lists);
        let (mut scheduled, mut done, mut outcome) = (Vec::new(), Vec::new(), Ok(()));
        let count = Count::new(&mut self.types, counts, &self.executing, accounted);
        // SAFETY: by this function's contract.
        let external = unsafe {
            count.external(streams, |types, object| {
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
        // SAFETY: live, since no Python code has run since each was met.
        unsafe {
            for object in external.into_iter().chain(scheduled) {
                self.meet(object, reach)?;
            }
            self.follow(reach)?;
            for &object in &self.whole {
                reach.name(object)?;
            }
            enter_results(reach, done)?;
        }
        Ok(self.held)
    }

    /// # Safety
    /// Nothing that was met has been let go, and the thread is attached.
    unsafe fn follow(&mut self, reach: &mut Reach<'_, '_>) -> Result<(), Failure> {
        while let Some(object) = self.pending.pop() {
            // SAFETY: by this function's contract.
            unsafe {
                if let Some(traverse) = self.types.of(object).traverse {
                    each_referent(object, traverse, |referent| self.meet(referent, reach))?;
                }
            }
        }
        Ok(())
    }

    /// # Safety
    /// `object` is live and the thread is attached.
    unsafe fn meet(
        &mut self,
        object: *mut ffi::PyObject,
        reach: &mut Reach<'_, '_>,
    ) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            let facts = self.types.of(object);
            let how = self.use_of(object, facts, reach)?;
            if how == Use::Ignored || !self.seen.insert(object)? {
                return Ok(());
            }
            if facts.scanned || facts.whole {
                try_push(&mut self.held, object)?;
            }
            let list = match how {
                Use::Whole => &mut self.whole,
                _ => &mut self.pending,
            };
            try_push(list, object)
        }
    }

    /// # Safety
    /// As for `meet`.
    unsafe fn use_of(
        &mut self,
        object: *mut ffi::PyObject,
        facts: Facts,
        reach: &mut Reach<'_, '_>,
    ) -> Result<Use, Failure> {
        if facts.traverse.is_none() || reach.has_met(object) {
            return Ok(Use::Ignored);
        }
        if facts.scanned || facts.whole {
            return Ok(Use::Whole);
        }
        match facts.role {
            Role::Module => return Ok(Use::Ignored),
            Role::Dict if reach.is_namespace(object) => return Ok(Use::Ignored),
            // SAFETY: by this function's contract.
            Role::Type => return unsafe { self.use_of_class(object, reach) },
            _ if facts.container => return Ok(Use::Followed),
            _ => {}
        }
        // SAFETY: by this function's contract.
        unsafe {
            let of = ffi::Py_TYPE(object);
            if facts.scheduled {
                // A call that waits is followed like one that runs.
                let is_call = reach.is_root_object(of)?;
                return Ok(if is_call { Use::Followed } else { Use::Whole });
            }
            if let Some(&known) = self.verdicts.get(&(of as usize)) {
                return Ok(known);
            }
            let verdict = self.use_by_type(of, facts.derived, reach)?;
            try_insert(&mut self.verdicts, of as usize, verdict)?;
            Ok(verdict)
        }
    }

    /// A class that a function made is no more than a part of that function's result; one of a module stays with that,
    /// unless a with-block can be entered with the class itself.
    ///
    /// # Safety
    /// `class` is a live type and the thread is attached.
    unsafe fn use_of_class(
        &self,
        class: *mut ffi::PyObject,
        reach: &mut Reach<'_, '_>,
    ) -> Result<Use, Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            let metatype = ffi::Py_TYPE(class);
            if metatype != &raw mut ffi::PyType_Type && self.context_managers.has(metatype) {
                return Ok(Use::Whole);
            }
            if !reach.is_made_by_a_function(class)? {
                return Ok(Use::Ignored);
            }
            let is_library = reach.is_library_type(class.cast())?;
            Ok(if is_library {
                Use::Whole
            } else {
                Use::Followed
            })
        }
    }

    /// # Safety
    /// `of` is a live type and the thread is attached.
    unsafe fn use_by_type(
        &self,
        of: *mut ffi::PyTypeObject,
        derived: bool,
        reach: &mut Reach<'_, '_>,
    ) -> Result<Use, Failure> {
        let followed_if = |yes| if yes { Use::Followed } else { Use::Ignored };
        // SAFETY: by this function's contract.
        unsafe {
            let flags = ffi::PyType_GetFlags(of);
            // Through an exception's traceback all locals of the functions it has left would be in use.
            let is_exception = flags & ffi::Py_TPFLAGS_BASE_EXC_SUBCLASS != 0;
            let restores = self.context_managers.has(of);
            if self.running.roots.is_none() || (derived && is_exception && !restores) {
                return Ok(followed_if(derived));
            }
            if reach.is_root_object(of)? {
                return Ok(Use::Ignored);
            }
            // What C code defines and no class statement is plumbing: contexts, wrappers of coroutines.
            if flags & ffi::Py_TPFLAGS_HEAPTYPE == 0 {
                return Ok(Use::Followed);
            }
            if reach.is_library_type(of)? || restores {
                return Ok(Use::Whole);
            }
            Ok(followed_if(derived))
        }
    }
}

/// Enters the calls that were met, and are done: what they lead to is no more than what they have brought about.
///
/// # Safety
/// As for `Reach::name`.
unsafe fn enter_results(
    reach: &mut Reach<'_, '_>,
    mut done: Vec<*mut ffi::PyObject>,
) -> Result<(), Failure> {
    loop {
        let before = done.len();
        let mut outcome = Ok(());
        done.retain(|&call| {
            if outcome.is_err() || !reach.has_met(call) {
                return true;
            }
            // SAFETY: by this function's contract.
            outcome = unsafe { reach.name(call) };
            false
        });
        outcome?;
        if done.len() == before {
            return Ok(());
        }
    }
}
