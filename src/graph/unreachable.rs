//! What no root leads to: garbage that the collector has not met yet, or what is held from outside the heap.
//!
//! The arithmetic is that of the cyclic collector (`subtract_refs` in Modules/gcmodule.c): what is referred
//! to more often than the heap accounts for is held by running code or by C code.
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
use crate::heap::type_facts::{Facts, TypeTable, each_shown, each_unshown};

/// An object of a reported type, and what holds it.
pub struct Holder {
    pub object: *mut ffi::PyObject,
    pub holder: Option<*mut ffi::PyObject>,
    pub is_garbage: bool,
}

pub struct Strays<'a> {
    types: &'a mut TypeTable,
    /// What roots lead to, which holds none of these.
    met: &'a Addresses,
    targets: &'a Addresses,
    /// The caller's own containers, which do not count as holders.
    own: FxHashSet<usize>,
    index: FxHashMap<usize, u32>,
    objects: Vec<*mut ffi::PyObject>,
    /// How many references to each are accounted for.
    known: Vec<ffi::Py_ssize_t>,
    /// Pairs of a holder and what it holds, in the order of the holders.
    edges: Vec<(u32, u32)>,
    /// References by the caller's own containers.
    owned: FxHashMap<usize, ffi::Py_ssize_t>,
}

impl<'a> Strays<'a> {
    pub fn new(types: &'a mut TypeTable, met: &'a Addresses, targets: &'a Addresses) -> Self {
        Self {
            types,
            met,
            targets,
            own: FxHashSet::default(),
            index: FxHashMap::default(),
            objects: Vec::new(),
            known: Vec::new(),
            edges: Vec::new(),
            owned: FxHashMap::default(),
        }
    }

    /// Counts the references of a container of the caller's own, and leaves it out.
    ///
    /// # Safety
    /// `container` is live, the thread is attached, and no Python code runs while the strays are used.
    pub unsafe fn account_for(&mut self, container: *mut ffi::PyObject) -> Result<(), Failure> {
        try_add(&mut self.own, container as usize)?;
        // SAFETY: by this function's contract.
        unsafe {
            if let Some(traverse) = self.types.of(container).traverse {
                each_shown(container, traverse, |held| {
                    *try_entry(&mut self.owned, held as usize)? += 1;
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Takes every object that was not met, and what it refers to.
    ///
    /// # Safety
    /// As for `account_for`.
    pub unsafe fn walk(&mut self, stream: &Stream<'_>) -> PyResult<()> {
        stream.walk(|object| {
            if !self.met.contains(object) && !self.own.contains(&(object as usize)) {
                self.add(object)?;
            }
            Ok(())
        })?;
        // What only these lead to is not in the stream: untracked, or put out of sight by `gc.freeze`.
        let streamed = self.objects.len();
        let mut at = 0;
        while at < self.objects.len() {
            // SAFETY: by this function's contract.
            unsafe { self.enter(at)? };
            at += 1;
        }
        for known in &mut self.known[..streamed] {
            *known += stream.references();
        }
        Ok(())
    }

    /// The place of an object, which is made if it is not there.
    fn add(&mut self, object: *mut ffi::PyObject) -> Result<u32, Failure> {
        if let Some(&at) = self.index.get(&(object as usize)) {
            return Ok(at);
        }
        let at = u32::try_from(self.objects.len()).map_err(|_| Failure::OutOfMemory)?;
        try_insert(&mut self.index, object as usize, at)?;
        try_push(&mut self.objects, object)?;
        let known = self.owned.get(&(object as usize)).copied();
        try_push(&mut self.known, known.unwrap_or(0))?;
        Ok(at)
    }

    /// # Safety
    /// As for `account_for`.
    unsafe fn enter(&mut self, at: usize) -> Result<(), Failure> {
        let object = self.objects[at];
        let holder = u32::try_from(at).map_err(|_| Failure::OutOfMemory)?;
        // SAFETY: by this function's contract; a static type is no instance that `traverse` is for.
        unsafe {
            let facts = self.types.of(object);
            let Some(traverse) = facts.traverse else {
                return Ok(());
            };
            if facts.is_gc.is_some_and(|is_gc| is_gc(object) == 0) {
                return Ok(());
            }
            if each_shown(object, traverse, |held| self.link(holder, held, 1))? {
                return Ok(());
            }
            // The object around such a dict shows its values, and does not show that it refers to the dict.
            let before = self.edges.len();
            each_unshown(object, |held| self.link(holder, held, 0))?;
            self.known[at] += ffi::Py_ssize_t::from(self.edges.len() > before);
        }
        Ok(())
    }

    /// # Safety
    /// As for `account_for`; `held` is live.
    unsafe fn link(
        &mut self,
        holder: u32,
        held: *mut ffi::PyObject,
        references: ffi::Py_ssize_t,
    ) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        let facts = unsafe { self.types.of(held) };
        if self.met.contains(held)
            || self.own.contains(&(held as usize))
            || !self.counts(facts, held)
        {
            return Ok(());
        }
        let at = self.add(held)?;
        self.known[at as usize] += references;
        try_push(&mut self.edges, (holder, at))
    }

    fn counts(&self, facts: Facts, held: *mut ffi::PyObject) -> bool {
        !facts.is_leaf() || self.targets.contains(held)
    }

    /// Whether more refers to an object than the heap accounts for.
    fn is_held(&self, at: u32) -> bool {
        let at = at as usize;
        // SAFETY: nothing has been let go since it was met.
        unsafe { ffi::Py_REFCNT(self.objects[at]) > self.known[at] }
    }

    /// The holders of each, by place.
    fn holders(&self) -> Result<Vec<Vec<u32>>, Failure> {
        let mut holders = try_repeat(Vec::new(), self.objects.len())?;
        for &(holder, held) in &self.edges {
            try_push(&mut holders[held as usize], holder)?;
        }
        Ok(holders)
    }

    /// The shortest way to a target from something that is held from outside, or else around a cycle.
    ///
    /// # Safety
    /// As for `account_for`; `target` is live.
    pub unsafe fn way_to(
        &self,
        target: *mut ffi::PyObject,
    ) -> Result<(&'static str, Vec<*mut ffi::PyObject>), Failure> {
        let Some(&target) = self.index.get(&(target as usize)) else {
            return Ok(("nothing", Vec::new()));
        };
        let holders = self.holders()?;
        let mut towards: FxHashMap<u32, u32> = FxHashMap::default();
        let mut met = try_collect([target])?;
        try_insert(&mut towards, target, target)?;
        let mut next = 0;
        while let Some(&at) = met.get(next) {
            next += 1;
            if self.is_held(at) {
                return Ok(("outside", self.way_down(at, target, &towards)?));
            }
            for &holder in &holders[at as usize] {
                if !towards.contains_key(&holder) {
                    try_push(&mut met, holder)?;
                    try_insert(&mut towards, holder, at)?;
                }
            }
        }
        if holders[target as usize].is_empty() {
            return Ok(("nothing", Vec::new()));
        }
        let start = self.in_cycle(target, &holders)?;
        Ok(("cycle", self.way_down(start, target, &towards)?))
    }

    fn way_down(
        &self,
        mut at: u32,
        target: u32,
        towards: &FxHashMap<u32, u32>,
    ) -> Result<Vec<*mut ffi::PyObject>, Failure> {
        let mut way = try_collect([self.objects[at as usize]])?;
        while at != target {
            at = towards[&at];
            try_push(&mut way, self.objects[at as usize])?;
        }
        Ok(way)
    }

    /// Somewhere in a cycle from which there is a way to a target: nothing above it is held by anything else.
    fn in_cycle(&self, target: u32, holders: &[Vec<u32>]) -> Result<u32, Failure> {
        let (mut at, mut seen) = (target, FxHashSet::default());
        while try_add(&mut seen, at)? {
            match holders[at as usize].first() {
                Some(&holder) => at = holder,
                None => break,
            }
        }
        Ok(at)
    }

    /// The objects of reported types, with the nearest holder of each that counts.
    pub fn reported(&mut self) -> Result<Vec<Holder>, Failure> {
        let holders = self.holders()?;
        let counting = self.counting_holders(&holders)?;
        let held = self.beneath_held()?;
        let mut found = Vec::new();
        for (at, is_held) in held.into_iter().enumerate() {
            let object = self.objects[at];
            // SAFETY: nothing has been let go since it was met.
            if unsafe { self.types.of(object) }.reported {
                let holder = Holder {
                    object,
                    holder: counting[at],
                    is_garbage: !is_held,
                };
                try_push(&mut found, holder)?;
            }
        }
        Ok(found)
    }

    /// Whether each is held from outside, or beneath what is.
    fn beneath_held(&self) -> Result<Vec<bool>, Failure> {
        let mut beneath = try_repeat(Vec::new(), self.objects.len())?;
        for &(holder, held) in &self.edges {
            try_push(&mut beneath[holder as usize], held)?;
        }
        let mut held = try_repeat(false, self.objects.len())?;
        let places = 0..u32::try_from(self.objects.len()).unwrap_or(u32::MAX);
        let mut pending = try_collect(places.filter(|&at| self.is_held(at)))?;
        while let Some(at) = pending.pop() {
            if !std::mem::replace(&mut held[at as usize], true) {
                try_extend(&mut pending, beneath[at as usize].iter().copied())?;
            }
        }
        Ok(held)
    }

    /// The nearest holder of each that counts, if there is one.
    fn counting_holders(
        &mut self,
        holders: &[Vec<u32>],
    ) -> Result<Vec<Option<*mut ffi::PyObject>>, Failure> {
        let mut known: Vec<Option<Option<*mut ffi::PyObject>>> =
            try_repeat(None, self.objects.len())?;
        let mut passed = Vec::new();
        for start in 0..self.objects.len() {
            let mut at = start;
            let answer = loop {
                if let Some(answer) = known[at] {
                    break answer;
                }
                known[at] = Some(None); // until more is known: in a cycle of containers there is none
                try_push(&mut passed, at)?;
                let Some(&holder) = holders[at].first() else {
                    break None;
                };
                at = holder as usize;
                // SAFETY: nothing has been let go since it was met.
                if !unsafe { self.types.of(self.objects[at]) }.container {
                    break Some(self.objects[at]);
                }
            };
            for at in passed.drain(..) {
                known[at] = Some(answer);
            }
        }
        try_collect(known.into_iter().map(Option::flatten))
    }
}
