//! Objects that no root reaches: garbage that was not collected yet, or objects with external references.
//!
//! The arithmetic is that of the cyclic collector (`subtract_refs` in Modules/gcmodule.c): an object whose reference
//! count is larger than the number of references from tracked objects is referenced by running code or by C code.
#![allow(unsafe_code)]

use pyo3::PyResult;
use pyo3::ffi;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{
    try_add, try_collect, try_entry, try_extend, try_insert, try_push, try_repeat,
};
use crate::heap::address_sets::Addresses;
use crate::heap::object_stream::Stream;
use crate::heap::type_facts::{TypeFacts, TypeTable, each_embedded_value, each_traversed};

/// An object of a reported type that no root reaches, and its nearest owner.
pub struct UnreachableObject {
    pub object: *mut ffi::PyObject,
    pub owner: Option<*mut ffi::PyObject>,
    pub is_garbage: bool,
}

/// The graph of all objects that no root reaches. An object is named by its index in `objects`.
pub struct UnreachableObjects<'a> {
    types: &'a mut TypeTable,
    /// What roots reach. None of it refers to an object of this graph.
    reachable: &'a Addresses,
    targets: &'a Addresses,
    /// The caller's own containers, which are left out of the graph.
    excluded: FxHashSet<usize>,
    /// References from these containers, by the address of the referent.
    excluded_references: FxHashMap<usize, ffi::Py_ssize_t>,
    indices: FxHashMap<usize, u32>,
    objects: Vec<*mut ffi::PyObject>,
    /// How many references to each object are known.
    known_references: Vec<ffi::Py_ssize_t>,
    /// Pairs of a referrer and a referent, sorted by referrer.
    edges: Vec<(u32, u32)>,
}

impl<'a> UnreachableObjects<'a> {
    pub fn new(types: &'a mut TypeTable, reachable: &'a Addresses, targets: &'a Addresses) -> Self {
        Self {
            types,
            reachable,
            targets,
            excluded: FxHashSet::default(),
            excluded_references: FxHashMap::default(),
            indices: FxHashMap::default(),
            objects: Vec::new(),
            known_references: Vec::new(),
            edges: Vec::new(),
        }
    }

    /// Leaves a container of the caller's out of the graph, and counts its references as known.
    ///
    /// # Safety
    /// `container` is live, the thread is attached, and no Python code runs while the graph is used.
    pub unsafe fn exclude(&mut self, container: *mut ffi::PyObject) -> Result<(), Failure> {
        try_add(&mut self.excluded, container as usize)?;
        // SAFETY: by this function's contract.
        unsafe {
            if let Some(traverse) = self.types.of(container).traverse {
                each_traversed(container, traverse, |referent| {
                    *try_entry(&mut self.excluded_references, referent as usize)? += 1;
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Builds the graph.
    ///
    /// # Safety
    /// As for `exclude`.
    pub unsafe fn walk(&mut self, stream: &Stream<'_>) -> PyResult<()> {
        stream.walk(|object| {
            if !self.reachable.contains(object) && !self.excluded.contains(&(object as usize)) {
                self.index_of(object)?;
            }
            Ok(())
        })?;
        // Objects that are untracked, or hidden by `gc.freeze`, are not in the stream: other objects lead to them.
        let streamed = self.objects.len();
        let mut at = 0;
        while at < self.objects.len() {
            // SAFETY: by this function's contract.
            unsafe { self.add_edges_from(at)? };
            at += 1;
        }
        for known in &mut self.known_references[..streamed] {
            *known += stream.references();
        }
        Ok(())
    }

    /// The index of an object, which is added if it is not in the graph.
    fn index_of(&mut self, object: *mut ffi::PyObject) -> Result<u32, Failure> {
        if let Some(&at) = self.indices.get(&(object as usize)) {
            return Ok(at);
        }
        let at = u32::try_from(self.objects.len()).map_err(|_| Failure::OutOfMemory)?;
        try_insert(&mut self.indices, object as usize, at)?;
        try_push(&mut self.objects, object)?;
        let known = self.excluded_references.get(&(object as usize)).copied();
        try_push(&mut self.known_references, known.unwrap_or(0))?;
        Ok(at)
    }

    /// # Safety
    /// As for `exclude`.
    unsafe fn add_edges_from(&mut self, at: usize) -> Result<(), Failure> {
        let object = self.objects[at];
        let referrer = u32::try_from(at).map_err(|_| Failure::OutOfMemory)?;
        // SAFETY: by this function's contract; `traverse` must not be called on a static type, which `is_gc` excludes.
        unsafe {
            let facts = self.types.of(object);
            let Some(traverse) = facts.traverse else {
                return Ok(());
            };
            if facts.is_gc.is_some_and(|is_gc| is_gc(object) == 0) {
                return Ok(());
            }
            if each_traversed(object, traverse, |referent| {
                self.add_edge(referrer, referent, 1)
            })? {
                return Ok(());
            }
            // The instance that embeds such a dict shows the values, and not its reference to the dict.
            let before = self.edges.len();
            each_embedded_value(object, |value| self.add_edge(referrer, value, 0))?;
            self.known_references[at] += ffi::Py_ssize_t::from(self.edges.len() > before);
        }
        Ok(())
    }

    /// # Safety
    /// As for `exclude`; `referent` is live.
    unsafe fn add_edge(
        &mut self,
        referrer: u32,
        referent: *mut ffi::PyObject,
        references: ffi::Py_ssize_t,
    ) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        let facts = unsafe { self.types.of(referent) };
        if self.reachable.contains(referent)
            || self.excluded.contains(&(referent as usize))
            || !self.is_of_interest(facts, referent)
        {
            return Ok(());
        }
        let at = self.index_of(referent)?;
        self.known_references[at as usize] += references;
        try_push(&mut self.edges, (referrer, at))
    }

    fn is_of_interest(&self, facts: TypeFacts, object: *mut ffi::PyObject) -> bool {
        !facts.is_leaf() || self.targets.contains(object)
    }

    /// Whether the reference count of an object is larger than its known references.
    fn has_external_reference(&self, at: u32) -> bool {
        let at = at as usize;
        // SAFETY: no object was freed since the walk.
        unsafe { ffi::Py_REFCNT(self.objects[at]) > self.known_references[at] }
    }

    /// The referrers of each object.
    fn referrers(&self) -> Result<Vec<Vec<u32>>, Failure> {
        let mut referrers = try_repeat(Vec::new(), self.objects.len())?;
        for &(referrer, referent) in &self.edges {
            try_push(&mut referrers[referent as usize], referrer)?;
        }
        Ok(referrers)
    }

    /// The shortest path to a target from an object with an external reference, or else from an object of a cycle.
    ///
    /// # Safety
    /// As for `exclude`; `target` is live.
    pub unsafe fn path_to(
        &self,
        target: *mut ffi::PyObject,
    ) -> Result<(&'static str, Vec<*mut ffi::PyObject>), Failure> {
        let Some(&target) = self.indices.get(&(target as usize)) else {
            return Ok(("unreferenced", Vec::new()));
        };
        let referrers = self.referrers()?;
        // The next object on the path to the target, for each object that was searched.
        let mut next: FxHashMap<u32, u32> = FxHashMap::default();
        let mut searched = try_collect([target])?;
        try_insert(&mut next, target, target)?;
        let mut position = 0;
        while let Some(&at) = searched.get(position) {
            position += 1;
            if self.has_external_reference(at) {
                return Ok(("external", self.path_along(&next, at, target)?));
            }
            for &referrer in &referrers[at as usize] {
                if !next.contains_key(&referrer) {
                    try_push(&mut searched, referrer)?;
                    try_insert(&mut next, referrer, at)?;
                }
            }
        }
        if referrers[target as usize].is_empty() {
            return Ok(("unreferenced", Vec::new()));
        }
        let start = Self::in_cycle_above(target, &referrers)?;
        Ok(("cycle", self.path_along(&next, start, target)?))
    }

    fn path_along(
        &self,
        next: &FxHashMap<u32, u32>,
        mut at: u32,
        target: u32,
    ) -> Result<Vec<*mut ffi::PyObject>, Failure> {
        let mut path = try_collect([self.objects[at as usize]])?;
        while at != target {
            at = next[&at];
            try_push(&mut path, self.objects[at as usize])?;
        }
        Ok(path)
    }

    /// An object of a cycle that leads to a target. There is one: nothing above the target has an external reference.
    fn in_cycle_above(target: u32, referrers: &[Vec<u32>]) -> Result<u32, Failure> {
        let (mut at, mut seen) = (target, FxHashSet::default());
        while try_add(&mut seen, at)? {
            match referrers[at as usize].first() {
                Some(&referrer) => at = referrer,
                None => break,
            }
        }
        Ok(at)
    }

    /// The objects of reported types, each with its nearest owner whose type is not passed through.
    pub fn reported(&mut self) -> Result<Vec<UnreachableObject>, Failure> {
        let referrers = self.referrers()?;
        let owners = self.nearest_owners(&referrers)?;
        let alive = self.reachable_from_external_references()?;
        let mut found = Vec::new();
        for (at, is_alive) in alive.into_iter().enumerate() {
            let object = self.objects[at];
            // SAFETY: no object was freed since the walk.
            if unsafe { self.types.of(object) }.reported {
                let unreachable = UnreachableObject {
                    object,
                    owner: owners[at],
                    is_garbage: !is_alive,
                };
                try_push(&mut found, unreachable)?;
            }
        }
        Ok(found)
    }

    /// Whether each object has an external reference, or is reachable from one that has.
    fn reachable_from_external_references(&self) -> Result<Vec<bool>, Failure> {
        let mut referents = try_repeat(Vec::new(), self.objects.len())?;
        for &(referrer, referent) in &self.edges {
            try_push(&mut referents[referrer as usize], referent)?;
        }
        let mut reachable = try_repeat(false, self.objects.len())?;
        let all = 0..u32::try_from(self.objects.len()).unwrap_or(u32::MAX);
        let mut pending = try_collect(all.filter(|&at| self.has_external_reference(at)))?;
        while let Some(at) = pending.pop() {
            if !std::mem::replace(&mut reachable[at as usize], true) {
                try_extend(&mut pending, referents[at as usize].iter().copied())?;
            }
        }
        Ok(reachable)
    }

    /// The nearest owner of each object whose type is not passed through, if there is one.
    fn nearest_owners(
        &mut self,
        referrers: &[Vec<u32>],
    ) -> Result<Vec<Option<*mut ffi::PyObject>>, Failure> {
        let mut known: Vec<Option<Option<*mut ffi::PyObject>>> =
            try_repeat(None, self.objects.len())?;
        let mut passed = Vec::new();
        for start in 0..self.objects.len() {
            let mut at = start;
            let owner = loop {
                if let Some(owner) = known[at] {
                    break owner;
                }
                known[at] = Some(None); // for now: in a cycle of containers it stays so
                try_push(&mut passed, at)?;
                let Some(&referrer) = referrers[at].first() else {
                    break None;
                };
                at = referrer as usize;
                // SAFETY: no object was freed since the walk.
                if !unsafe { self.types.of(self.objects[at]) }.container {
                    break Some(self.objects[at]);
                }
            };
            for at in passed.drain(..) {
                known[at] = Some(owner);
            }
        }
        try_collect(known.into_iter().map(Option::flatten))
    }
}
