//! Who holds what: the shortest way from a root to an object, by the interpreter's own `tp_traverse`.
#![allow(unsafe_code)]

use std::{mem, ptr};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyList, PyTuple};
use rustc_hash::FxHashMap;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_collect, try_entry, try_insert, try_push};
use crate::cpython::fallible_objects::{list, number, or_none, text, tuple, types_in};
use crate::cpython::gc_pause::GcPause;
use crate::graph::unreachable::Strays;
use crate::heap::address_sets::Addresses;
use crate::heap::object_stream::Stream;
use crate::heap::prefetch::{prefetch, prefetch_contents};
use crate::heap::type_facts::{TypeTable, Wanted, each_referent};

/// How many referents are on their way at a time, as in a closure.
const AHEAD: usize = 16;

const NO_PARENT: u32 = u32::MAX;

/// For each target, how it is held: ``("root", [...])``, with the objects on a shortest way from a root.
///
/// If no root leads to it: ``("outside", [...])``, from something that more is held of than the heap
/// accounts for; ``("cycle", [...])``, from something that it leads back to; or ``("nothing", [])``.
/// For these two walks over the heap are made, and only if ``strays``; otherwise it is ``("nothing", [])``.
///
/// ``besides`` are holders whose own references to a target do not count. ``hidden`` are pairs of a holder
/// and what it holds where ``tp_traverse`` does not show it.
#[pyfunction]
#[pyo3(signature = (targets, roots, *, besides=None, hidden=None, strays=false))]
pub fn paths<'py>(
    py: Python<'py>,
    targets: &Bound<'py, PyTuple>,
    roots: &Bound<'py, PyList>,
    besides: Option<&Bound<'py, PyList>>,
    hidden: Option<&Bound<'py, PyList>>,
    strays: bool,
) -> PyResult<Bound<'py, PyList>> {
    let _pause = GcPause::new(py);
    let stream = Stream::open(py)?;
    if strays {
        stream.fill()?;
    }
    let hidden_from = pairs(hidden)?;
    let mut types = TypeTable::new(Wanted::default())?;
    let mut forest = Forest::new(&mut types, &hidden_from);
    for target in targets.iter_borrowed() {
        forest.targets.insert(target.as_ptr())?;
        // SAFETY: the tuple holds it.
        forest.any_leaf |= unsafe { forest.types.of(target.as_ptr()) }.is_leaf();
    }
    for holder in besides.into_iter().flatten() {
        forest.besides.insert(holder.as_ptr())?;
    }
    // SAFETY: the caller holds the roots and the targets, and no Python code runs until all ways are owned.
    unsafe { forest.grow(roots)? };
    let mut ways: Vec<(&str, Vec<*mut ffi::PyObject>)> = Vec::new();
    let mut found: FxHashMap<usize, u32> = FxHashMap::default();
    for &at in &forest.found {
        try_insert(&mut found, forest.objects[at as usize] as usize, at)?;
    }
    for target in targets.iter_borrowed() {
        let way = match found.get(&(target.as_ptr() as usize)) {
            Some(&at) => ("root", forest.way_to(at)?),
            None => ("nothing", Vec::new()),
        };
        try_push(&mut ways, way)?;
    }
    if strays && found.len() < forest.targets.count() {
        let (met, targets_met) = (forest.met, forest.targets);
        let mut strays = Strays::new(&mut types, &met, &targets_met);
        // SAFETY: as above.
        unsafe {
            strays.account_for(targets.as_ptr())?;
            for list in [Some(roots), besides, hidden].into_iter().flatten() {
                strays.account_for(list.as_ptr())?;
            }
            for pair in hidden.into_iter().flatten() {
                strays.account_for(pair.as_ptr())?;
            }
            strays.walk(&stream)?;
        }
        for (way, target) in ways.iter_mut().zip(targets.iter_borrowed()) {
            if way.0 == "nothing" {
                // SAFETY: as above.
                *way = unsafe { strays.way_to(target.as_ptr()) }?;
            }
        }
    }
    // SAFETY: nothing has been let go since each was met; no list is made before all are owned.
    let own = |at| unsafe { Bound::from_borrowed_ptr(py, at) };
    let mut owned = Vec::new();
    for (how, way) in ways {
        try_push(&mut owned, (how, try_collect(way.into_iter().map(own))?))?;
    }
    list(py, owned, |(how, way)| {
        let way = list(py, way, Ok)?.into_any();
        tuple(py, [text(py, how)?.into_any(), way])
    })
}

/// Every instance of the types (or of subtypes), tracked or held by what is, and who holds it: each with which
/// root leads to it by the shortest way, the type of its nearest holder on that way, and whether it is garbage.
///
/// A holder of a type in ``through``, by exact type, is passed over for the one that holds it. What no root
/// leads to is garbage, unless it is held from outside the heap; it is looked for only if ``strays``.
#[pyfunction]
#[pyo3(signature = (types, roots, *, through, hidden=None, strays=true))]
pub fn holdings<'py>(
    py: Python<'py>,
    types: &Bound<'py, PyTuple>,
    roots: &Bound<'py, PyList>,
    through: &Bound<'py, PyTuple>,
    hidden: Option<&Bound<'py, PyList>>,
    strays: bool,
) -> PyResult<Bound<'py, PyList>> {
    let _pause = GcPause::new(py);
    let stream = Stream::open(py)?;
    if strays {
        stream.fill()?;
    }
    let hidden_from = pairs(hidden)?;
    let mut types = TypeTable::new(Wanted {
        reported: types_in(Some(types))?,
        containers: types_in(Some(through))?,
        ..Wanted::default()
    })?;
    let mut forest = Forest::new(&mut types, &hidden_from);
    // SAFETY: the caller holds the roots, and no Python code runs until all that is found is owned.
    unsafe { forest.grow(roots)? };
    let above = forest.holders()?;
    let mut found = Vec::new();
    for at in std::mem::take(&mut forest.found) {
        let (root, holder) = above[at as usize];
        try_push(
            &mut found,
            (forest.objects[at as usize], Some(root), holder, false),
        )?;
    }
    if strays {
        let (met, nothing) = (forest.met, Addresses::default());
        let mut strays = Strays::new(&mut types, &met, &nothing);
        // SAFETY: as above.
        unsafe {
            for list in [Some(roots), hidden].into_iter().flatten() {
                strays.account_for(list.as_ptr())?;
            }
            for pair in hidden.into_iter().flatten() {
                strays.account_for(pair.as_ptr())?;
            }
            strays.walk(&stream)?;
        }
        for stray in strays.reported()? {
            try_push(
                &mut found,
                (stray.object, None, stray.holder, stray.is_garbage),
            )?;
        }
    }
    // SAFETY: nothing has been let go since each was met; the type of a live object is live.
    let own = |at: *mut ffi::PyObject| unsafe { Bound::from_borrowed_ptr(py, at) };
    let found = found.into_iter().map(|(object, root, holder, is_garbage)| {
        let of = holder.map(|holder| own(unsafe { ffi::Py_TYPE(holder) }.cast()));
        (own(object), root, of, is_garbage)
    });
    list(py, try_collect(found)?, |(object, root, of, is_garbage)| {
        let root = root.map(|at| number(py, at)).transpose()?;
        let is_garbage = PyBool::new(py, is_garbage).to_owned().into_any();
        tuple(py, [object, or_none(py, root), or_none(py, of), is_garbage])
    })
}

/// What pairs of a holder and what it holds say, by holder: borrowed pointers, which the list keeps alive.
type Hidden = FxHashMap<usize, Vec<*mut ffi::PyObject>>;

fn pairs(hidden: Option<&Bound<'_, PyList>>) -> PyResult<Hidden> {
    let mut by_holder = Hidden::default();
    for pair in hidden.into_iter().flatten() {
        let pair = pair.cast_into::<PyTuple>()?;
        let (holder, held) = (pair.get_borrowed_item(0)?, pair.get_borrowed_item(1)?);
        let held_by = try_entry(&mut by_holder, holder.as_ptr() as usize)?;
        try_push(held_by, held.as_ptr())?;
    }
    Ok(by_holder)
}

/// Which of the caller's roots is above an object, and its nearest holder that counts.
type Above = (usize, Option<*mut ffi::PyObject>);

/// Everything that roots lead to, each object beneath the one that it was met from first: breadth first,
/// so that the way up is a shortest one.
struct Forest<'a> {
    types: &'a mut TypeTable,
    targets: Addresses,
    /// Whether a target is something that nothing can be reached through: others of these are not remembered.
    any_leaf: bool,
    besides: Addresses,
    hidden: &'a Hidden,
    met: Addresses,
    /// In the order they were met. Roots come first.
    objects: Vec<*mut ffi::PyObject>,
    parents: Vec<u32>,
    /// Referents on their way from memory, in a ring, each with the place of what refers to it.
    coming: [(*mut ffi::PyObject, u32); AHEAD],
    next: usize,
    /// Where targets and objects of reported types are.
    found: Vec<u32>,
    /// For each root that stands in `objects`, its place in the caller's list.
    roots: Vec<usize>,
}

impl<'a> Forest<'a> {
    fn new(types: &'a mut TypeTable, hidden: &'a Hidden) -> Self {
        Self {
            types,
            targets: Addresses::default(),
            any_leaf: false,
            besides: Addresses::default(),
            hidden,
            met: Addresses::default(),
            objects: Vec::new(),
            parents: Vec::new(),
            coming: [(ptr::null_mut(), NO_PARENT); AHEAD],
            next: 0,
            found: Vec::new(),
            roots: Vec::new(),
        }
    }

    /// Takes everything that can be reached, or until all targets are found.
    ///
    /// # Safety
    /// The roots and targets are live, the thread is attached, and no Python code runs while this is used.
    unsafe fn grow(&mut self, roots: &Bound<'_, PyList>) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            for (at, root) in roots.iter().enumerate() {
                self.take(root.as_ptr(), NO_PARENT)?;
                while self.roots.len() < self.objects.len() {
                    try_push(&mut self.roots, at)?;
                }
            }
            let mut at = 0;
            while !self.is_done() {
                if at < self.objects.len() {
                    self.bring(at + AHEAD);
                    self.enter(at)?;
                    at += 1;
                } else if !self.take_one_coming()? {
                    break;
                }
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.targets.count() > 0 && self.found.len() == self.targets.count()
    }

    /// Asks for what will be entered soon: it was met a while ago.
    #[inline]
    fn bring(&self, at: usize) {
        if let Some(&object) = self.objects.get(at) {
            prefetch(object);
        }
        if let Some(&object) = self.objects.get(at - AHEAD / 2) {
            // SAFETY: live, as all that was met.
            unsafe { prefetch_contents(object) };
        }
    }

    /// Meets everything that an object refers to.
    ///
    /// # Safety
    /// As for `grow`.
    unsafe fn enter(&mut self, at: usize) -> Result<(), Failure> {
        let object = self.objects[at];
        let parent = u32::try_from(at).map_err(|_| Failure::OutOfMemory)?;
        // SAFETY: by this function's contract; a static type is no instance that `traverse` is for.
        unsafe {
            let facts = self.types.of(object);
            if let Some(traverse) = facts.traverse
                && facts.is_gc.is_none_or(|is_gc| is_gc(object) != 0)
            {
                each_referent(object, traverse, |referent| self.meet(referent, parent))?;
            }
            if let Some(held) = self.hidden.get(&(object as usize)) {
                for &referent in held {
                    self.meet(referent, parent)?;
                }
            }
        }
        Ok(())
    }

    /// Has an object brought from memory, and takes the one that has been on its way longest.
    ///
    /// # Safety
    /// As for `grow`; `object` is live.
    #[inline]
    unsafe fn meet(&mut self, object: *mut ffi::PyObject, parent: u32) -> Result<(), Failure> {
        prefetch(object);
        let (object, parent) = mem::replace(&mut self.coming[self.next], (object, parent));
        self.next = (self.next + 1) % AHEAD;
        if object.is_null() {
            return Ok(());
        }
        // SAFETY: by this function's contract.
        unsafe { self.take(object, parent) }
    }

    /// Takes the one that has been on its way longest, if any is.
    ///
    /// # Safety
    /// As for `grow`.
    unsafe fn take_one_coming(&mut self) -> Result<bool, Failure> {
        for _ in 0..AHEAD {
            let place = &mut self.coming[self.next];
            let (object, parent) = mem::replace(place, (ptr::null_mut(), NO_PARENT));
            self.next = (self.next + 1) % AHEAD;
            if !object.is_null() {
                // SAFETY: by this function's contract.
                unsafe { self.take(object, parent) }?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// # Safety
    /// As for `grow`; `object` is live.
    #[inline]
    unsafe fn take(&mut self, object: *mut ffi::PyObject, parent: u32) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        let facts = unsafe { self.types.of(object) };
        let is_of_no_interest = facts.is_leaf()
            && !(self.any_leaf && self.targets.contains(object))
            && (self.hidden.is_empty() || !self.hidden.contains_key(&(object as usize)));
        if is_of_no_interest || !self.met.insert(object)? {
            return Ok(());
        }
        let is_target = self.targets.contains(object);
        if is_target && parent != NO_PARENT && self.besides.contains(self.objects[parent as usize])
        {
            self.met.remove(object);
            return Ok(());
        }
        let at = u32::try_from(self.objects.len()).map_err(|_| Failure::OutOfMemory)?;
        try_push(&mut self.objects, object)?;
        try_push(&mut self.parents, parent)?;
        if is_target || facts.reported {
            try_push(&mut self.found, at)?;
        }
        Ok(())
    }

    /// The objects from a root down to the one at a place.
    fn way_to(&self, mut at: u32) -> Result<Vec<*mut ffi::PyObject>, Failure> {
        let mut way = Vec::new();
        while at != NO_PARENT {
            try_push(&mut way, self.objects[at as usize])?;
            at = self.parents[at as usize];
        }
        way.reverse();
        Ok(way)
    }

    /// Which of the caller's roots is above the object at each place, and its nearest holder that counts.
    fn holders(&mut self) -> Result<Vec<Above>, Failure> {
        let mut above: Vec<Above> = Vec::new();
        for at in 0..self.objects.len() {
            // What holds an object was met before it.
            let holding = match self.parents[at] {
                NO_PARENT => (self.roots[at], None),
                parent => {
                    let (root, further) = above[parent as usize];
                    let holder = self.objects[parent as usize];
                    // SAFETY: live, as all that was met.
                    let passed_over = unsafe { self.types.of(holder) }.container;
                    (root, if passed_over { further } else { Some(holder) })
                }
            };
            try_push(&mut above, holding)?;
        }
        Ok(above)
    }
}
