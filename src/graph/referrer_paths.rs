//! Who owns what: the shortest path from a root to an object.
#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyList, PyTuple};
use rustc_hash::FxHashMap;

use crate::cpython::fallible_collections::{try_collect, try_entry, try_insert, try_push};
use crate::cpython::fallible_objects::{list, number, or_none, text, tuple, types_in};
use crate::cpython::gc_pause::GcPause;
use crate::graph::breadth_first_search::{BreadthFirstSearch, HiddenReferences};
use crate::graph::unreachable::UnreachableObjects;
use crate::heap::address_sets::Addresses;
use crate::heap::object_stream::Stream;
use crate::heap::type_facts::{TypeTable, TypesOfInterest};

/// For each target ``("root", [...])``, with the objects on a shortest path from a root, root and target included.
///
/// If no root reaches it: ``("external", [...])``, from an object with an external reference;
/// ``("cycle", [...])``, from an object of a cycle that nothing else references; or ``("unreferenced", [])``.
/// These take two more walks over the heap, which are made only if ``search_unreachable``; otherwise the answer is
/// ``("unreferenced", [])``.
///
/// References from ``ignored_owners`` to a target do not count. ``hidden`` are pairs of an object and one that it
/// refers to where ``tp_traverse`` does not show it.
#[pyfunction]
#[pyo3(signature = (targets, roots, *, ignored_owners=None, hidden=None, search_unreachable=false))]
pub fn referrer_paths<'py>(
    py: Python<'py>,
    targets: &Bound<'py, PyTuple>,
    roots: &Bound<'py, PyList>,
    ignored_owners: Option<&Bound<'py, PyList>>,
    hidden: Option<&Bound<'py, PyList>>,
    search_unreachable: bool,
) -> PyResult<Bound<'py, PyList>> {
    let mut heap = PausedHeap::open(py, TypesOfInterest::default(), hidden, search_unreachable)?;
    let mut search = BreadthFirstSearch::new(&mut heap.types, &heap.hidden_references);
    for target in targets.iter_borrowed() {
        search.targets.insert(target.as_ptr())?;
        // SAFETY: the tuple references it.
        search.any_leaf |= unsafe { search.types.of(target.as_ptr()) }.is_leaf();
    }
    for owner in ignored_owners.into_iter().flatten() {
        search.ignored_owners.insert(owner.as_ptr())?;
    }
    // SAFETY: the caller references roots and targets, and no Python code runs until a reference to each object of the
    // paths was taken.
    unsafe { search.run(roots)? };
    let mut paths: Vec<(&str, Vec<*mut ffi::PyObject>)> = Vec::new();
    let mut found: FxHashMap<usize, u32> = FxHashMap::default();
    for &at in &search.found {
        try_insert(&mut found, search.objects[at as usize] as usize, at)?;
    }
    for target in targets.iter_borrowed() {
        let path = match found.get(&(target.as_ptr() as usize)) {
            Some(&at) => ("root", search.path_to(at)?),
            None => ("unreferenced", Vec::new()),
        };
        try_push(&mut paths, path)?;
    }
    if search_unreachable && found.len() < search.targets.count() {
        let (reached, targets_of_search) = (search.reached, search.targets);
        let lists = [Some(roots), ignored_owners, hidden];
        let lists = lists.into_iter().flatten().map(|list| list.as_ptr());
        let excluded = lists.chain([targets.as_ptr()]);
        // SAFETY: as above.
        let unreachable =
            unsafe { heap.unreachable(&reached, &targets_of_search, excluded, hidden) }?;
        for (path, target) in paths.iter_mut().zip(targets.iter_borrowed()) {
            if path.0 == "unreferenced" {
                // SAFETY: as above.
                *path = unsafe { unreachable.path_to(target.as_ptr()) }?;
            }
        }
    }
    // SAFETY: no object was freed since the search; no list is made before a reference to each object was taken.
    let own = |at| unsafe { Bound::from_borrowed_ptr(py, at) };
    let mut owned = Vec::new();
    for (how, path) in paths {
        try_push(&mut owned, (how, try_collect(path.into_iter().map(own))?))?;
    }
    list(py, owned, |(how, path)| {
        let path = list(py, path, Ok)?.into_any();
        tuple(py, [text(py, how)?.into_any(), path])
    })
}

/// Every instance of the types (or of subtypes) that is tracked, or referenced by what is, and its owner.
///
/// Each comes with the index of the root that reaches it by the shortest path, the type of its nearest owner on that
/// path, and whether it is garbage.
///
/// An owner of a type in ``through``, by exact type, is passed over for its own owner. An instance that no root reaches
/// is garbage unless it has, or is reachable from, an external reference; such instances are searched for only if
/// ``search_unreachable``.
#[pyfunction]
#[pyo3(signature = (types, roots, *, through, hidden=None, search_unreachable=true))]
pub fn nearest_owners<'py>(
    py: Python<'py>,
    types: &Bound<'py, PyTuple>,
    roots: &Bound<'py, PyList>,
    through: &Bound<'py, PyTuple>,
    hidden: Option<&Bound<'py, PyList>>,
    search_unreachable: bool,
) -> PyResult<Bound<'py, PyList>> {
    let types_of_interest = TypesOfInterest {
        reported: types_in(Some(types))?,
        containers: types_in(Some(through))?,
        ..TypesOfInterest::default()
    };
    let mut heap = PausedHeap::open(py, types_of_interest, hidden, search_unreachable)?;
    let mut search = BreadthFirstSearch::new(&mut heap.types, &heap.hidden_references);
    // SAFETY: the caller references the roots, and no Python code runs until a reference to each object was taken.
    unsafe { search.run(roots)? };
    let owners = search.nearest_owners()?;
    let mut found = Vec::new();
    for &at in &search.found {
        let (root, owner) = owners[at as usize];
        let object = search.objects[at as usize];
        try_push(&mut found, (object, Some(root), owner, false))?;
    }
    if search_unreachable {
        let (reached, no_targets) = (search.reached, Addresses::default());
        let lists = [Some(roots), hidden];
        let excluded = lists.into_iter().flatten().map(|list| list.as_ptr());
        // SAFETY: as above.
        let mut unreachable = unsafe { heap.unreachable(&reached, &no_targets, excluded, hidden) }?;
        for each in unreachable.reported()? {
            try_push(&mut found, (each.object, None, each.owner, each.is_garbage))?;
        }
    }
    // SAFETY: no object was freed since the search; the type of a live object is live.
    let own = |at: *mut ffi::PyObject| unsafe { Bound::from_borrowed_ptr(py, at) };
    let found = found.into_iter().map(|(object, root, owner, is_garbage)| {
        let of = owner.map(|owner| own(unsafe { ffi::Py_TYPE(owner) }.cast()));
        (own(object), root, of, is_garbage)
    });
    list(py, try_collect(found)?, |(object, root, of, is_garbage)| {
        let root = root.map(|at| number(py, at)).transpose()?;
        let is_garbage = PyBool::new(py, is_garbage).to_owned().into_any();
        tuple(py, [object, or_none(py, root), or_none(py, of), is_garbage])
    })
}

/// What a search needs. The garbage collector is paused until this is dropped.
struct PausedHeap<'py> {
    types: TypeTable,
    hidden_references: HiddenReferences,
    stream: Stream<'py>,
    _pause: GcPause<'py>,
}

impl<'py> PausedHeap<'py> {
    fn open(
        py: Python<'py>,
        of_interest: TypesOfInterest,
        hidden: Option<&Bound<'_, PyList>>,
        search_unreachable: bool,
    ) -> PyResult<Self> {
        let pause = GcPause::new(py);
        let stream = Stream::open(py)?;
        if search_unreachable {
            stream.fill()?;
        }
        let mut hidden_references = HiddenReferences::default();
        for pair in hidden.into_iter().flatten() {
            let pair = pair.cast_into::<PyTuple>()?;
            let (referrer, referent) = (pair.get_borrowed_item(0)?, pair.get_borrowed_item(1)?);
            let referents = try_entry(&mut hidden_references, referrer.as_ptr() as usize)?;
            try_push(referents, referent.as_ptr())?;
        }
        Ok(Self {
            types: TypeTable::new(of_interest)?,
            hidden_references,
            stream,
            _pause: pause,
        })
    }

    /// The objects that a search has not reached, without the caller's own lists and the pairs in `hidden`.
    ///
    /// # Safety
    /// As for `UnreachableObjects::exclude`.
    unsafe fn unreachable<'a>(
        &'a mut self,
        reached: &'a Addresses,
        targets: &'a Addresses,
        excluded: impl Iterator<Item = *mut ffi::PyObject>,
        hidden: Option<&Bound<'_, PyList>>,
    ) -> PyResult<UnreachableObjects<'a>> {
        let mut unreachable = UnreachableObjects::new(&mut self.types, reached, targets);
        // SAFETY: by this function's contract.
        unsafe {
            for list in excluded {
                unreachable.exclude(list)?;
            }
            for pair in hidden.into_iter().flatten() {
                unreachable.exclude(pair.as_ptr())?;
            }
            unreachable.walk(&self.stream)?;
        }
        Ok(unreachable)
    }
}
