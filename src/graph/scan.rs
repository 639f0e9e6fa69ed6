//! One walk over all objects, and the closure beside it: the snapshot a sweep decides by.
#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_collect, try_push};
use crate::cpython::fallible_objects::{list, number, types_in};
use crate::cpython::gc_pause::GcPause;
use crate::graph::closure::Reach;
use crate::graph::external_references::{Accounted, running_frames};
use crate::graph::running_code::RunningCode;
use crate::heap::address_sets::{Addresses, IdSet};
use crate::heap::object_stream::Stream;
use crate::heap::reference_counts::Counts;
use crate::heap::type_facts::{Role, TypeTable, Wanted};
use crate::libraries::imported_modules::imported_modules;
use crate::libraries::library_folders::Libraries;
use crate::libraries::library_types::Judge;

/// What was kept and what was not, at one moment.
#[pyclass(module = "fastpurge._core", frozen, get_all)]
pub struct Snapshot {
    /// The objects in the closure whose type was to be reported, in the order they were met.
    kept: Py<PyList>,
    /// The objects of a scanned type outside the closure, in heap order.
    candidates: Py<PyList>,
    /// Those that only what was guarded leads to, in heap order.
    spared: Py<PyList>,
    /// What is held from outside the collector's sight, of a scanned type or one that is kept whole:
    /// what they reach is no candidate.
    held: Py<PyList>,
    /// What only those reach, of a reported type; it is not in `kept`.
    running: Py<PyList>,
    /// Whether a list in the closure was being sorted: then the closure leaves out what is in it.
    sorting: bool,
    /// How many objects the collector tracked.
    objects_scanned: Py<PyAny>,
    /// Everything in the closure that can itself hold a reference.
    closure: Py<IdSet>,
}

#[pymethods]
impl Snapshot {
    // With this the lists are no longer held from where the collector cannot see.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.kept)?;
        visit.call(&self.candidates)?;
        visit.call(&self.spared)?;
        visit.call(&self.held)?;
        visit.call(&self.running)
    }
}

/// Takes the closure of the roots and scans the heap for what lies outside it, in one go.
///
/// No Python code runs between the two, in this thread or any other, and no object is asked
/// anything: types are compared by address and MRO.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
#[pyo3(signature = (named, roots, *, scan_for, report, libraries, guarded=None, boundary=None, running_code=None, self_held=None))]
pub fn snapshot<'py>(
    py: Python<'py>,
    named: &Bound<'_, PyTuple>,
    roots: &Bound<'_, PyList>,
    scan_for: &Bound<'_, PyTuple>,
    report: &Bound<'_, PyTuple>,
    libraries: &Libraries,
    guarded: Option<&Bound<'_, PyList>>,
    boundary: Option<&Bound<'_, PyList>>,
    running_code: Option<&RunningCode>,
    self_held: Option<&IdSet>,
) -> PyResult<Bound<'py, Snapshot>> {
    let _pause = GcPause::new(py);
    let question = Question {
        named,
        roots,
        scan_for,
        report: Some(report),
        libraries,
        guarded,
        boundary,
        running_code,
        self_held,
        lists: &[],
    };
    let sight = question.look(py)?;
    // All are owned before the first list is made: from then on they could be let go elsewhere.
    let (kept, candidates) = (own(py, &sight.kept)?, own(py, &sight.candidates)?);
    let (held, running) = (own(py, &sight.held)?, own(py, &sight.running)?);
    let spared = own(py, &sight.spared)?;
    let snapshot = Snapshot {
        kept: list(py, kept, Ok)?.unbind(),
        candidates: list(py, candidates, Ok)?.unbind(),
        spared: list(py, spared, Ok)?.unbind(),
        held: list(py, held, Ok)?.unbind(),
        running: list(py, running, Ok)?.unbind(),
        sorting: sight.sorting,
        objects_scanned: number(py, sight.seen)?.unbind(),
        closure: Py::new(py, IdSet::from(sight.closure))?,
    };
    Bound::new(py, snapshot)
}

/// What a snapshot is taken of.
pub struct Question<'a, 'py> {
    pub named: &'a Bound<'py, PyTuple>,
    pub roots: &'a Bound<'py, PyList>,
    pub scan_for: &'a Bound<'py, PyTuple>,
    pub report: Option<&'a Bound<'py, PyTuple>>,
    pub libraries: &'a Libraries,
    /// Roots as well, of which it is told what only they protect.
    pub guarded: Option<&'a Bound<'py, PyList>>,
    /// What is met and not entered.
    pub boundary: Option<&'a Bound<'py, PyList>>,
    pub running_code: Option<&'a RunningCode>,
    pub self_held: Option<&'a IdSet>,
    /// Lists that protect nothing by holding it.
    pub lists: &'a [*mut ffi::PyObject],
}

/// What a snapshot sees: borrowed pointers, good until Python code runs again.
pub struct Sight {
    pub kept: Vec<*mut ffi::PyObject>,
    pub candidates: Vec<*mut ffi::PyObject>,
    pub spared: Vec<*mut ffi::PyObject>,
    pub held: Vec<*mut ffi::PyObject>,
    pub running: Vec<*mut ffi::PyObject>,
    pub closure: Addresses,
    pub sorting: bool,
    pub seen: usize,
}

impl<'py> Question<'_, 'py> {
    /// Looks. The garbage collector must be paused.
    pub fn look(&self, py: Python<'py>) -> PyResult<Sight> {
        // From the first walk on nothing may run that could let another thread in.
        let stream = Stream::open(py)?;
        let judge = Judge::new(py, self.libraries)?;
        let frames = running_frames(py)?;
        let search = self.running_code.map(|code| code.search(self.scan_for));
        let search = search.transpose()?;
        let mut types = TypeTable::new(Wanted {
            scanned: types_in(Some(self.scan_for))?,
            reported: types_in(self.report)?,
            ..Wanted::default()
        })?;
        let accounted = Accounted {
            frames: &frames,
            self_held: self.self_held.map(IdSet::addresses),
            lists: self.lists,
        };
        let counts = search.is_some().then(Counts::default);
        let heap = Heap::walk(py, &stream, &mut types, counts)?;
        let mut reach = Reach::new(&mut types, judge, &heap.namespaces);
        for object in self.boundary.into_iter().flatten() {
            reach.stop_at(object.as_ptr())?;
        }
        for root in self.named.iter_borrowed() {
            // SAFETY: `named` holds the root, and no Python code runs from here on.
            unsafe { reach.name(root.as_ptr()) }?;
        }
        for root in self.roots.iter() {
            // SAFETY: as above, for `roots`.
            unsafe { reach.add(root.as_ptr()) }?;
        }
        let mut candidates = heap.found;
        candidates.retain(|&object| !reach.has_met(object));
        for root in self.guarded.into_iter().flatten() {
            // SAFETY: as above, for `guarded`.
            unsafe { reach.add(root.as_ptr()) }?;
        }
        let mut spared = Vec::new();
        for &object in candidates.iter().filter(|&&object| reach.has_met(object)) {
            try_push(&mut spared, object)?;
        }
        candidates.retain(|&object| !reach.has_met(object));
        let by_keep = reach.reported();
        let held = match search.zip(heap.counts) {
            Some((search, counts)) if !candidates.is_empty() => {
                let streams = stream.references();
                // SAFETY: what the walk has begun is live, since no Python code has run since.
                unsafe { search.add_to(py, &mut reach, counts, streams, accounted) }?
            }
            _ => Vec::new(),
        };
        let sorting = reach.is_sorting();
        let (closure, mut kept) = reach.finish();
        let running = kept.split_off(by_keep);
        candidates.retain(|&object| !closure.contains(object));
        Ok(Sight {
            kept,
            candidates,
            spared,
            held,
            running,
            closure,
            sorting,
            seen: heap.seen,
        })
    }
}

/// Everything reachable from the roots that can itself hold a reference.
#[pyfunction]
#[pyo3(signature = (named, *, libraries))]
pub fn closure<'py>(
    py: Python<'py>,
    named: &Bound<'_, PyTuple>,
    libraries: &Libraries,
) -> PyResult<Bound<'py, IdSet>> {
    let _pause = GcPause::new(py);
    let stream = Stream::open(py)?;
    let judge = Judge::new(py, libraries)?;
    let mut types = TypeTable::new(Wanted::default())?;
    let heap = Heap::walk(py, &stream, &mut types, None)?;
    let mut reach = Reach::new(&mut types, judge, &heap.namespaces);
    for root in named.iter_borrowed() {
        // SAFETY: `named` holds the root, and no Python code runs in this function from here on.
        unsafe { reach.name(root.as_ptr()) }?;
    }
    Bound::new(py, IdSet::from(reach.finish().0))
}

/// For each root, the targets reachable from it, by their indices; one walk over the heap for all.
#[pyfunction]
#[pyo3(signature = (roots, targets, *, libraries))]
pub fn reached<'py>(
    py: Python<'py>,
    roots: &Bound<'_, PyTuple>,
    targets: &Bound<'_, PyTuple>,
    libraries: &Libraries,
) -> PyResult<Bound<'py, PyList>> {
    let _pause = GcPause::new(py);
    let stream = Stream::open(py)?;
    let judge = Judge::new(py, libraries)?;
    let mut types = TypeTable::new(Wanted::default())?;
    let heap = Heap::walk(py, &stream, &mut types, None)?;
    let mut reach = Reach::new(&mut types, judge, &heap.namespaces);
    let mut answers = Vec::new();
    for root in roots.iter_borrowed() {
        reach.begin();
        // SAFETY: `roots` holds the root, and no Python code runs in this function from here on.
        unsafe { reach.name(root.as_ptr()) }?;
        let mut answer = Vec::new();
        for (at, target) in targets.iter_borrowed().enumerate() {
            if reach.has_met(target.as_ptr()) {
                try_push(&mut answer, at)?;
            }
        }
        // What leads to no target from one root leads to none from any: it need not be walked again.
        if !answer.is_empty() {
            reach.forget();
        }
        try_push(&mut answers, answer)?;
    }
    list(py, answers, |reached| {
        Ok(list(py, reached, |at| number(py, at))?.into_any())
    })
}

/// The objects of the given types (or of subtypes) that the collector tracks.
#[pyfunction]
#[pyo3(signature = (types, /))]
pub fn scan<'py>(py: Python<'py>, types: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyList>> {
    let _pause = GcPause::new(py);
    let stream = Stream::open(py)?;
    let mut types = TypeTable::new(Wanted {
        scanned: types_in(Some(types))?,
        ..Wanted::default()
    })?;
    let heap = Heap::walk(py, &stream, &mut types, None)?;
    list(py, own(py, &heap.found)?, Ok)
}

/// What one walk over the heap gives: borrowed pointers, good until Python code runs again.
struct Heap {
    found: Vec<*mut ffi::PyObject>,
    /// The `__dict__` of every module, in `sys.modules` or not.
    namespaces: Addresses,
    /// With every object begun, if they are to be counted.
    counts: Option<Counts>,
    seen: usize,
}

impl Heap {
    fn walk(
        py: Python<'_>,
        stream: &Stream<'_>,
        types: &mut TypeTable,
        mut counts: Option<Counts>,
    ) -> PyResult<Self> {
        let mut found = Vec::new();
        let mut namespaces = Addresses::default();
        // The walk meets these as well, unless `gc.freeze` has put them out of its sight.
        for (_, module) in imported_modules(py)? {
            // SAFETY: a live module.
            namespaces.insert(unsafe { ffi::PyModule_GetDict(module) })?;
        }
        let seen = stream.walk(|object| {
            // SAFETY: the walk hands on live objects, and this thread is attached.
            let facts = unsafe { types.of(object) };
            if facts.scanned {
                try_push(&mut found, object)?;
            }
            if let Some(counts) = &mut counts {
                counts.begin(object)?;
            }
            if facts.role == Role::Module {
                // SAFETY: a live module; its dict is null only while it is being made.
                let namespace = unsafe { ffi::PyModule_GetDict(object) };
                if !namespace.is_null() {
                    namespaces.insert(namespace)?;
                }
            }
            Ok(())
        })?;
        Ok(Self {
            found,
            namespaces,
            counts,
            seen,
        })
    }
}

/// Takes a reference to each.
fn own<'py>(
    py: Python<'py>,
    objects: &[*mut ffi::PyObject],
) -> Result<Vec<Bound<'py, PyAny>>, Failure> {
    // SAFETY: live, since no Python code has run since each was met.
    try_collect(
        objects
            .iter()
            .map(|&object| unsafe { Bound::from_borrowed_ptr(py, object) }),
    )
}
