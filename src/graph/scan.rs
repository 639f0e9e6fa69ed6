//! The snapshot that a sweep decides by: one walk over all objects, and the closure at the same moment.
#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_collect, try_push};
use crate::cpython::fallible_objects::{list, number, types_in};
use crate::cpython::gc_pause::GcPause;
use crate::graph::closure::Closure;
use crate::graph::external_references::{KnownReferences, running_frames};
use crate::graph::running_code::RunningCode;
use crate::heap::address_sets::{Addresses, IdSet};
use crate::heap::object_stream::Stream;
use crate::heap::reference_counts::ReferenceCounts;
use crate::heap::type_facts::{Role, TypeTable, TypesOfInterest};
use crate::libraries::imported_modules::imported_modules;
use crate::libraries::library_folders::Libraries;
use crate::libraries::library_types::LibraryTypes;

/// Which objects were kept and which were not, at one moment.
#[pyclass(module = "fastpurge._core", frozen, get_all)]
pub struct Snapshot {
    /// The objects in the closure that are of a reported type, in the order they were reached.
    kept: Py<PyList>,
    /// The objects of a scanned type outside the closure, in heap order.
    candidates: Py<PyList>,
    /// The objects of a scanned type that only `guarded` reaches, in heap order.
    spared: Py<PyList>,
    /// The objects with external references that are of a scanned type or of one in `kept_whole`. What they reach is
    /// no candidate.
    externally_referenced: Py<PyList>,
    /// The objects of a reported type that only external references reach. They are not in `kept`.
    kept_by_running_code: Py<PyList>,
    /// Whether a list in the closure was being sorted, so that its items are missing from the closure.
    list_being_sorted: bool,
    /// How many objects the collector tracked.
    objects_scanned: Py<PyAny>,
    /// Everything in the closure that can itself refer to other objects.
    closure: Py<IdSet>,
}

#[pymethods]
impl Snapshot {
    // Without this, the references to the lists would be external references.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.kept)?;
        visit.call(&self.candidates)?;
        visit.call(&self.spared)?;
        visit.call(&self.externally_referenced)?;
        visit.call(&self.kept_by_running_code)
    }
}

/// Takes the closure of the roots and scans the heap for objects outside it, at one moment.
///
/// No Python code runs between the two, in this thread or any other: types are compared by address and MRO, and no
/// method of an object is called.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
#[pyo3(signature = (named, roots, *, scan_for, report, libraries, guarded=None, boundary=None, running_code=None, self_referenced=None))]
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
    self_referenced: Option<&IdSet>,
) -> PyResult<Bound<'py, Snapshot>> {
    let _pause = GcPause::new(py);
    let request = SnapshotRequest {
        named,
        roots,
        scan_for,
        report: Some(report),
        libraries,
        guarded,
        boundary,
        running_code,
        self_referenced,
        lists: &[],
    };
    let found = request.take(py)?;
    // A reference to each object is taken before the first list is made: from then on other threads could free them.
    let (kept, candidates) = (own(py, &found.kept)?, own(py, &found.candidates)?);
    let externally_referenced = own(py, &found.externally_referenced)?;
    let kept_by_running_code = own(py, &found.kept_by_running_code)?;
    let spared = own(py, &found.spared)?;
    let snapshot = Snapshot {
        kept: list(py, kept, Ok)?.unbind(),
        candidates: list(py, candidates, Ok)?.unbind(),
        spared: list(py, spared, Ok)?.unbind(),
        externally_referenced: list(py, externally_referenced, Ok)?.unbind(),
        kept_by_running_code: list(py, kept_by_running_code, Ok)?.unbind(),
        list_being_sorted: found.list_being_sorted,
        objects_scanned: number(py, found.objects_scanned)?.unbind(),
        closure: Py::new(py, IdSet::from(found.closure))?,
    };
    Bound::new(py, snapshot)
}

/// The arguments of a snapshot.
pub struct SnapshotRequest<'a, 'py> {
    /// Roots that are traversed even if they are a boundary.
    pub named: &'a Bound<'py, PyTuple>,
    pub roots: &'a Bound<'py, PyList>,
    pub scan_for: &'a Bound<'py, PyTuple>,
    pub report: Option<&'a Bound<'py, PyTuple>>,
    pub libraries: &'a Libraries,
    /// More roots. What only they reach is reported as spared.
    pub guarded: Option<&'a Bound<'py, PyList>>,
    /// Objects that count as reached, and are not traversed.
    pub boundary: Option<&'a Bound<'py, PyList>>,
    pub running_code: Option<&'a RunningCode>,
    pub self_referenced: Option<&'a IdSet>,
    /// Lists whose items are not protected by being in them.
    pub lists: &'a [*mut ffi::PyObject],
}

/// The content of a snapshot, as borrowed pointers, which are valid until Python code runs.
pub struct SnapshotPointers {
    pub kept: Vec<*mut ffi::PyObject>,
    pub candidates: Vec<*mut ffi::PyObject>,
    pub spared: Vec<*mut ffi::PyObject>,
    pub externally_referenced: Vec<*mut ffi::PyObject>,
    pub kept_by_running_code: Vec<*mut ffi::PyObject>,
    pub closure: Addresses,
    pub list_being_sorted: bool,
    pub objects_scanned: usize,
}

impl<'py> SnapshotRequest<'_, 'py> {
    /// Takes the snapshot. The garbage collector must be paused.
    pub fn take(&self, py: Python<'py>) -> PyResult<SnapshotPointers> {
        // From the first walk on nothing may run that could let another thread run.
        let stream = Stream::open(py)?;
        let library_types = LibraryTypes::new(py, self.libraries)?;
        let frames = running_frames(py)?;
        let search = self.running_code.map(|code| code.search(self.scan_for));
        let search = search.transpose()?;
        let mut types = TypeTable::new(TypesOfInterest {
            scanned: types_in(Some(self.scan_for))?,
            reported: types_in(self.report)?,
            ..TypesOfInterest::default()
        })?;
        let known = KnownReferences {
            frames: &frames,
            self_referenced: self.self_referenced.map(IdSet::addresses),
            lists: self.lists,
        };
        let counts = search.is_some().then(ReferenceCounts::default);
        let heap = HeapWalk::walk(py, &stream, &mut types, counts)?;
        let mut closure = Closure::new(&mut types, library_types, &heap.module_dicts);
        for object in self.boundary.into_iter().flatten() {
            closure.add_boundary(object.as_ptr())?;
        }
        for root in self.named.iter_borrowed() {
            // SAFETY: `named` references the root, and no Python code runs from here on.
            unsafe { closure.add_named(root.as_ptr()) }?;
        }
        for root in self.roots.iter() {
            // SAFETY: as above, for `roots`.
            unsafe { closure.add(root.as_ptr()) }?;
        }
        let mut candidates = heap.found;
        candidates.retain(|&object| !closure.contains(object));
        for root in self.guarded.into_iter().flatten() {
            // SAFETY: as above, for `guarded`.
            unsafe { closure.add(root.as_ptr()) }?;
        }
        let mut spared = Vec::new();
        for &object in candidates.iter().filter(|&&at| closure.contains(at)) {
            try_push(&mut spared, object)?;
        }
        candidates.retain(|&object| !closure.contains(object));
        let reported_by_keep = closure.reported();
        let externally_referenced = match search.zip(heap.counts) {
            Some((search, counts)) if !candidates.is_empty() => {
                let stream_references = stream.references();
                // SAFETY: the objects that the walk has registered are live, since no Python code has run since.
                unsafe { search.add_to(py, &mut closure, counts, stream_references, known) }?
            }
            _ => Vec::new(),
        };
        let list_being_sorted = closure.has_list_being_sorted();
        let (closure, mut kept) = closure.finish();
        let kept_by_running_code = kept.split_off(reported_by_keep);
        candidates.retain(|&object| !closure.contains(object));
        Ok(SnapshotPointers {
            kept,
            candidates,
            spared,
            externally_referenced,
            kept_by_running_code,
            closure,
            list_being_sorted,
            objects_scanned: heap.objects_scanned,
        })
    }
}

/// Everything reachable from the roots that can itself refer to other objects.
#[pyfunction]
#[pyo3(signature = (named, *, libraries))]
pub fn closure<'py>(
    py: Python<'py>,
    named: &Bound<'_, PyTuple>,
    libraries: &Libraries,
) -> PyResult<Bound<'py, IdSet>> {
    let closure = with_closure(py, libraries, |mut closure| {
        for root in named.iter_borrowed() {
            // SAFETY: `named` references the root, and no Python code runs until the closure is finished.
            unsafe { closure.add_named(root.as_ptr()) }?;
        }
        Ok(closure.finish().0)
    })?;
    Bound::new(py, IdSet::from(closure))
}

/// For each root, the indices of the targets reachable from it. One walk over the heap serves all roots.
#[pyfunction]
#[pyo3(signature = (roots, targets, *, libraries))]
pub fn reachable_targets<'py>(
    py: Python<'py>,
    roots: &Bound<'_, PyTuple>,
    targets: &Bound<'_, PyTuple>,
    libraries: &Libraries,
) -> PyResult<Bound<'py, PyList>> {
    let reachable = with_closure(py, libraries, |mut closure| {
        let mut reachable = Vec::new();
        for root in roots.iter_borrowed() {
            closure.start_recording();
            // SAFETY: `roots` references the root, and no Python code runs until the closure is dropped.
            unsafe { closure.add_named(root.as_ptr()) }?;
            let mut indices = Vec::new();
            for (at, target) in targets.iter_borrowed().enumerate() {
                if closure.contains(target.as_ptr()) {
                    try_push(&mut indices, at)?;
                }
            }
            // Objects that reach no target need not be traversed again for another root.
            if !indices.is_empty() {
                closure.remove_recorded();
            }
            try_push(&mut reachable, indices)?;
        }
        Ok(reachable)
    })?;
    list(py, reachable, |indices| {
        Ok(list(py, indices, |at| number(py, at))?.into_any())
    })
}

/// Calls `build` with an empty closure, while the garbage collector is paused.
fn with_closure<'py, T>(
    py: Python<'py>,
    libraries: &Libraries,
    build: impl FnOnce(Closure<'_, 'py>) -> Result<T, Failure>,
) -> PyResult<T> {
    let _pause = GcPause::new(py);
    let stream = Stream::open(py)?;
    let library_types = LibraryTypes::new(py, libraries)?;
    let mut types = TypeTable::new(TypesOfInterest::default())?;
    let heap = HeapWalk::walk(py, &stream, &mut types, None)?;
    let closure = Closure::new(&mut types, library_types, &heap.module_dicts);
    Ok(build(closure)?)
}

/// The objects of the given types (or of subtypes) that the collector tracks.
#[pyfunction]
#[pyo3(signature = (types, /))]
pub fn scan<'py>(py: Python<'py>, types: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyList>> {
    let _pause = GcPause::new(py);
    let stream = Stream::open(py)?;
    let mut types = TypeTable::new(TypesOfInterest {
        scanned: types_in(Some(types))?,
        ..TypesOfInterest::default()
    })?;
    let heap = HeapWalk::walk(py, &stream, &mut types, None)?;
    list(py, own(py, &heap.found)?, Ok)
}

/// What one walk over the heap has found, as borrowed pointers, which are valid until Python code runs.
struct HeapWalk {
    /// The objects of scanned types.
    found: Vec<*mut ffi::PyObject>,
    /// The `__dict__` of every module, whether it is in `sys.modules` or not.
    module_dicts: Addresses,
    /// With every object registered, if references are to be counted.
    counts: Option<ReferenceCounts>,
    objects_scanned: usize,
}

impl HeapWalk {
    fn walk(
        py: Python<'_>,
        stream: &Stream<'_>,
        types: &mut TypeTable,
        mut counts: Option<ReferenceCounts>,
    ) -> PyResult<Self> {
        let mut found = Vec::new();
        let mut module_dicts = Addresses::default();
        // The walk visits these modules too, unless `gc.freeze` has hidden them.
        for (_, module) in imported_modules(py)? {
            // SAFETY: a live module.
            module_dicts.insert(unsafe { ffi::PyModule_GetDict(module) })?;
        }
        let objects_scanned = stream.walk(|object| {
            // SAFETY: the walk passes live objects, and this thread is attached.
            let facts = unsafe { types.of(object) };
            if facts.scanned {
                try_push(&mut found, object)?;
            }
            if let Some(counts) = &mut counts {
                counts.register(object)?;
            }
            if facts.role == Role::Module {
                // SAFETY: a live module; its dict is null only while the module is being made.
                let module_dict = unsafe { ffi::PyModule_GetDict(object) };
                if !module_dict.is_null() {
                    module_dicts.insert(module_dict)?;
                }
            }
            Ok(())
        })?;
        Ok(Self {
            found,
            module_dicts,
            counts,
            objects_scanned,
        })
    }
}

/// Takes a reference to each object.
fn own<'py>(
    py: Python<'py>,
    objects: &[*mut ffi::PyObject],
) -> Result<Vec<Bound<'py, PyAny>>, Failure> {
    // SAFETY: live, since no Python code has run since each was found.
    try_collect(
        objects
            .iter()
            .map(|&object| unsafe { Bound::from_borrowed_ptr(py, object) }),
    )
}
