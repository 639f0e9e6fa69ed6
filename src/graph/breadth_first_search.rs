//! A breadth-first search from roots, by the interpreter's own `tp_traverse`.
#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;
use rustc_hash::FxHashMap;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::try_push;
use crate::heap::address_sets::Addresses;
use crate::heap::prefetch::{AHEAD, PrefetchRing, prefetch, prefetch_contents};
use crate::heap::type_facts::{TypeTable, each_referent};

const NO_PARENT: u32 = u32::MAX;

/// The referents of each object that `tp_traverse` does not show, by the object's address. All pointers are borrowed
/// from the caller's list.
pub type HiddenReferences = FxHashMap<usize, Vec<*mut ffi::PyObject>>;

/// The index of the root that an object was reached from, and the object's nearest owner, if it has one.
pub type RootAndOwner = (usize, Option<*mut ffi::PyObject>);

/// A breadth-first search from the roots. Each object has one parent, the object that it was reached from first, so
/// that the parents lead to a root by a shortest path. An object is named by its index in `objects`.
pub struct BreadthFirstSearch<'a> {
    pub types: &'a mut TypeTable,
    pub targets: Addresses,
    /// Whether a target is a leaf. Other leaves are not remembered.
    pub any_leaf: bool,
    pub ignored_owners: Addresses,
    hidden_references: &'a HiddenReferences,
    pub reached: Addresses,
    /// In the order they were reached, roots first.
    pub objects: Vec<*mut ffi::PyObject>,
    parents: Vec<u32>,
    /// Referents that were not added yet, each with its parent.
    prefetched: PrefetchRing<u32>,
    /// Targets and objects of reported types.
    pub found: Vec<u32>,
    /// For each root in `objects`, its index in the caller's list.
    roots: Vec<usize>,
}

impl<'a> BreadthFirstSearch<'a> {
    pub fn new(types: &'a mut TypeTable, hidden_references: &'a HiddenReferences) -> Self {
        Self {
            types,
            targets: Addresses::default(),
            any_leaf: false,
            ignored_owners: Addresses::default(),
            hidden_references,
            reached: Addresses::default(),
            objects: Vec::new(),
            parents: Vec::new(),
            prefetched: PrefetchRing::default(),
            found: Vec::new(),
            roots: Vec::new(),
        }
    }

    /// Searches until all targets are found, or all that is reachable if there are no targets.
    ///
    /// # Safety
    /// The roots and targets are live, the thread is attached, and no Python code runs while this is used.
    pub unsafe fn run(&mut self, roots: &Bound<'_, PyList>) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            for (at, root) in roots.iter().enumerate() {
                self.add_object(root.as_ptr(), NO_PARENT)?;
                while self.roots.len() < self.objects.len() {
                    try_push(&mut self.roots, at)?;
                }
            }
            let mut at = 0;
            while !self.is_done() {
                if at < self.objects.len() {
                    self.prefetch_around(at + AHEAD);
                    self.traverse_object(at)?;
                    at += 1;
                } else if let Some((object, parent)) = self.prefetched.pop() {
                    self.add_object(object, parent)?;
                } else {
                    break;
                }
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.targets.count() > 0 && self.found.len() == self.targets.count()
    }

    /// Prefetches an object that will be traversed soon, and the contents of one that will be sooner: both have left
    /// the cache since they were reached.
    #[inline]
    fn prefetch_around(&self, at: usize) {
        if let Some(&object) = self.objects.get(at) {
            prefetch(object);
        }
        if let Some(&object) = self.objects.get(at - AHEAD / 2) {
            // SAFETY: live, as all objects that were reached.
            unsafe { prefetch_contents(object) };
        }
    }

    /// Adds everything that an object refers to.
    ///
    /// # Safety
    /// As for `run`.
    unsafe fn traverse_object(&mut self, at: usize) -> Result<(), Failure> {
        let object = self.objects[at];
        let parent = u32::try_from(at).map_err(|_| Failure::OutOfMemory)?;
        // SAFETY: by this function's contract; `traverse` must not be called on a static type, which `is_gc` excludes.
        unsafe {
            let facts = self.types.of(object);
            if let Some(traverse) = facts.traverse
                && facts.is_gc.is_none_or(|is_gc| is_gc(object) != 0)
            {
                each_referent(object, traverse, |referent| {
                    self.add_referent(referent, parent)
                })?;
            }
            if let Some(referents) = self.hidden_references.get(&(object as usize)) {
                for &referent in referents {
                    self.add_referent(referent, parent)?;
                }
            }
        }
        Ok(())
    }

    /// Adds a referent, after it was prefetched.
    ///
    /// # Safety
    /// As for `run`; `referent` is live.
    #[inline]
    unsafe fn add_referent(
        &mut self,
        referent: *mut ffi::PyObject,
        parent: u32,
    ) -> Result<(), Failure> {
        match self.prefetched.push(referent, parent) {
            // SAFETY: by this function's contract.
            Some((object, parent)) => unsafe { self.add_object(object, parent) },
            None => Ok(()),
        }
    }

    /// # Safety
    /// As for `run`; `object` is live.
    #[inline]
    unsafe fn add_object(
        &mut self,
        object: *mut ffi::PyObject,
        parent: u32,
    ) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        let facts = unsafe { self.types.of(object) };
        let hidden = self.hidden_references;
        let is_of_no_interest = facts.is_leaf()
            && !(self.any_leaf && self.targets.contains(object))
            && (hidden.is_empty() || !hidden.contains_key(&(object as usize)));
        if is_of_no_interest || !self.reached.insert(object)? {
            return Ok(());
        }
        let is_target = self.targets.contains(object);
        if is_target
            && parent != NO_PARENT
            && self.ignored_owners.contains(self.objects[parent as usize])
        {
            self.reached.remove(object);
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

    /// The objects from a root down to an object, both included.
    pub fn path_to(&self, mut at: u32) -> Result<Vec<*mut ffi::PyObject>, Failure> {
        let mut path = Vec::new();
        while at != NO_PARENT {
            try_push(&mut path, self.objects[at as usize])?;
            at = self.parents[at as usize];
        }
        path.reverse();
        Ok(path)
    }

    /// The root that each object was reached from, and its nearest owner whose type is not passed through.
    pub fn nearest_owners(&mut self) -> Result<Vec<RootAndOwner>, Failure> {
        let mut owners: Vec<RootAndOwner> = Vec::new();
        for at in 0..self.objects.len() {
            // A parent has a smaller index than its children.
            let root_and_owner = match self.parents[at] {
                NO_PARENT => (self.roots[at], None),
                parent => {
                    let (root, owner_of_parent) = owners[parent as usize];
                    let parent = self.objects[parent as usize];
                    // SAFETY: live, as all objects that were reached.
                    let is_passed_through = unsafe { self.types.of(parent) }.container;
                    let owner = if is_passed_through {
                        owner_of_parent
                    } else {
                        Some(parent)
                    };
                    (root, owner)
                }
            };
            try_push(&mut owners, root_and_owner)?;
        }
        Ok(owners)
    }
}
