//! Library globals: objects that libraries reference at module and class level. They are a library's own state, and
//! no garbage of the program.
//!
//! A walk of a few steps finds them. It starts at the modules and classes of libraries, and follows the kinds of objects
//! that libraries usually store state in.
#![allow(unsafe_code)]

use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PySet, PyString, PyTuple};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_boxed_array, try_collect, try_push};
use crate::cpython::fallible_objects::{list, tuple, types_in, utf8};
use crate::cpython::gc_pause::GcPause;
use crate::cpython::unstable_functions::Functions;
use crate::heap::address_sets::Addresses;
use crate::heap::prefetch::prefetch;
use crate::heap::type_facts::{TypeTable, TypesOfInterest, each_item, each_referent};
use crate::libraries::distance::{Distance, MOST_STEPS, VisitedDistances};
use crate::libraries::imported_modules::{Entry, imported_modules};
use crate::libraries::kinds::{Kind, KindOfObject};
use crate::libraries::library_folders::Libraries;
use crate::libraries::library_types::LibraryTypes;
use crate::libraries::root_objects::RootObjects;

/// The instances of the types that libraries reference at module and class level, down to a depth.
///
/// Each comes with the name of a module that leads to it. ``modules`` limits the search to the libraries among the
/// modules of these names.
///
/// ``containers`` are followed, by exact type. Each is one step of ``depth``, and so is an instance of a library's
/// class, of which there may be one on the way. ``wrappers`` are followed without a step: functions and what decorators
/// make of them. So are ``caches``, which have dicts of results by arguments: the results are followed, the arguments
/// are the caller's.
///
/// What a wrapper leads to is needed when it is called, and is followed to any depth, up to ``root_objects``: types,
/// and names of packages, whose instances lead to more than a call needs. A root object that a module or class
/// references is followed, but the library does not call what it leads to. Instances of the program's classes that a
/// wrapper leads to are results themselves, and so are those that can be called. A class counts if its own module is a
/// library's.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
#[pyo3(signature = (types, *, libraries, containers, depth, wrappers=None, caches=None, root_objects=None, modules=None))]
pub fn library_globals<'py>(
    py: Python<'py>,
    types: &Bound<'py, PyTuple>,
    libraries: &Libraries,
    containers: &Bound<'py, PyTuple>,
    depth: u8,
    wrappers: Option<&Bound<'py, PyTuple>>,
    caches: Option<&Bound<'py, PyTuple>>,
    root_objects: Option<(Bound<'py, PyTuple>, Bound<'py, PyTuple>)>,
    modules: Option<&Bound<'py, PySet>>,
) -> PyResult<Bound<'py, PyList>> {
    let _pause = GcPause::new(py);
    let mut walk = GlobalsWalk {
        kinds: KindOfObject {
            library_types: LibraryTypes::new(py, libraries)?,
            types: TypeTable::new(TypesOfInterest {
                scanned: types_in(Some(types))?,
                containers: types_in(Some(containers))?,
                wrappers: types_in(wrappers)?,
                caches: types_in(caches)?,
                ..TypesOfInterest::default()
            })?,
            root_objects: root_objects.map_or_else(
                || Ok(RootObjects::default()),
                |(types, packages)| RootObjects::new(&types, &packages),
            )?,
            depth: depth.min(MOST_STEPS),
            module_dicts: Addresses::default(),
        },
        functions: Functions::new(py),
        visited: VisitedDistances::default(),
        recent: try_boxed_array((ptr::null_mut(), Distance::default()))?,
        pending: Vec::new(),
        module_name: ptr::null_mut(),
        found_addresses: Addresses::default(),
        found: Vec::new(),
    };
    // SAFETY: the modules in `sys.modules` are live until Python code runs.
    unsafe { walk.walk_modules(&imported_modules(py)?, modules)? };
    let found = walk.found.into_iter();
    // SAFETY: live: no Python code has run since each was found, and the collector is paused.
    let own = |at| unsafe { Bound::from_borrowed_ptr(py, at) };
    let found = try_collect(found.map(|(object, name)| [own(object), own(name)]))?;
    list(py, found, |pair| tuple(py, pair))
}

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// How many objects are prefetched and visited together.
const BATCH: usize = 64;

const RECENT: usize = 4096;

struct GlobalsWalk<'py, 'a> {
    kinds: KindOfObject<'py, 'a>,
    functions: Functions,
    /// The distances at which each object was visited.
    visited: VisitedDistances,
    /// The objects that were pushed last, by a part of their address.
    recent: Box<[(*mut ffi::PyObject, Distance); RECENT]>,
    /// Objects that were not visited yet.
    pending: Vec<(*mut ffi::PyObject, Distance)>,
    /// The name of the module that the walk started from.
    module_name: *mut ffi::PyObject,
    /// The objects in `found`. A class may be followed as a library's before it is found behind a wrapper.
    found_addresses: Addresses,
    found: Vec<(*mut ffi::PyObject, *mut ffi::PyObject)>,
}

impl GlobalsWalk<'_, '_> {
    /// # Safety
    /// `modules` are the modules in `sys.modules`; no Python code runs meanwhile.
    unsafe fn walk_modules(
        &mut self,
        modules: &[Entry],
        only: Option<&Bound<'_, PySet>>,
    ) -> PyResult<()> {
        // SAFETY: by this function's contract.
        unsafe {
            for &(_, module) in modules {
                self.kinds
                    .module_dicts
                    .insert(ffi::PyModule_GetDict(module))?;
            }
            for &(name, module) in modules {
                // Names are compared as strings, in C.
                if let Some(only) = only
                    && ffi::PySet_Contains(only.as_ptr(), name) != 1
                {
                    continue;
                }
                let text = Bound::from_borrowed_ptr(self.kinds.library_types.py, name);
                let text = text.cast_into_unchecked::<PyString>();
                let Some(text) = utf8(&text)? else {
                    continue;
                };
                if self.kinds.library_types.is_library_name(text)? {
                    self.module_name = name;
                    self.push_module_values(module)?;
                    self.visit_pending()?;
                }
            }
        }
        Ok(())
    }

    /// Pushes the values of a module's dict, and what a module in C references besides (`module_traverse` in
    /// Objects/moduleobject.c calls its `m_traverse`).
    ///
    /// # Safety
    /// As for `walk_modules`; `module` is live.
    unsafe fn push_module_values(&mut self, module: *mut ffi::PyObject) -> Result<(), Failure> {
        let here = Distance::default();
        // SAFETY: by this function's contract.
        unsafe {
            let namespace = ffi::PyModule_GetDict(module);
            self.push_values(namespace, here)?;
            let Some(traverse) = self.kinds.types.of(module).traverse else {
                return Ok(());
            };
            each_referent(module, traverse, |referent| match referent == namespace {
                true => Ok(()),
                false => self.push(referent, here),
            })
        }
    }

    /// # Safety
    /// As for `walk_modules`; `namespace` is null or a live dict.
    unsafe fn push_values(
        &mut self,
        namespace: *mut ffi::PyObject,
        at: Distance,
    ) -> Result<(), Failure> {
        if namespace.is_null() {
            return Ok(());
        }
        // SAFETY: by this function's contract.
        unsafe { each_item(namespace, |_, value| self.push(value, at)) }
    }

    /// Adds an object to those to visit, unless it was recently pushed at the same distance.
    #[inline]
    fn push(&mut self, value: *mut ffi::PyObject, at: Distance) -> Result<(), Failure> {
        // Small numbers, names and types are referenced over and over.
        let address = value as usize;
        let recent = &mut self.recent[((address >> 4) ^ (address >> 16)) % RECENT];
        if *recent == (value, at) {
            return Ok(());
        }
        *recent = (value, at);
        try_push(&mut self.pending, (value, at))
    }

    /// # Safety
    /// As for `walk_modules`.
    unsafe fn visit_pending(&mut self) -> Result<(), Failure> {
        let mut batch = [(ptr::null_mut(), Distance::default()); BATCH];
        while !self.pending.is_empty() {
            let kept = self.pending.len().saturating_sub(BATCH);
            let count = self.pending.len() - kept;
            batch[..count].copy_from_slice(&self.pending[kept..]);
            self.pending.truncate(kept);
            // Most objects are not in the cache. Loads that do not depend on each other overlap.
            for &(value, _) in &batch[..count] {
                prefetch(value);
                prefetch(value.wrapping_byte_add(CACHE_LINE)); // the fields of a function
            }
            for &(value, at) in &batch[..count] {
                // SAFETY: by this function's contract.
                unsafe { self.visit(value, at)? };
            }
        }
        Ok(())
    }

    /// # Safety
    /// As for `walk_modules`; `value` is live.
    unsafe fn visit(&mut self, value: *mut ffi::PyObject, at: Distance) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            let kind = self.kinds.of(value, at)?;
            if kind == Kind::Opaque {
                return Ok(());
            }
            if kind == Kind::Found {
                return match self.found_addresses.insert(value)? {
                    true => try_push(&mut self.found, (value, self.module_name)),
                    false => Ok(()),
                };
            }
            let values = self.functions.values_of(value, ffi::Py_TYPE(value));
            if values.is_some_and(|values| values.iter().all(|value| value.is_null())) {
                return Ok(()); // most functions
            }
            // The distance of a class does not depend on what leads to it.
            let at = if kind == Kind::Class {
                Distance::default()
            } else {
                at
            };
            if !self.visited.record(value, at)? {
                return Ok(());
            }
            let is_no_step = matches!(kind, Kind::Wrapper | Kind::Cache);
            let mut next = if is_no_step { at } else { at.step() };
            next.past_instance |= matches!(kind, Kind::Instance | Kind::Root);
            next.past_wrapper |= kind == Kind::Wrapper && !at.never_called;
            if matches!(kind, Kind::Cache | Kind::Root) {
                next = Distance {
                    past_wrapper: false,
                    never_called: true,
                    ..next
                };
            }
            if next.past_wrapper {
                next.steps = 0; // at any depth
            }
            if let Some(values) = values {
                for value in values.into_iter().filter(|value| !value.is_null()) {
                    self.push(value, next)?;
                }
                return Ok(());
            }
            match (kind, self.kinds.types.of(value).traverse) {
                (_, None) => Ok(()),
                (Kind::Class, Some(traverse)) => self.follow_class(value, traverse, next),
                (Kind::Cache, Some(traverse)) => self.follow_cache(value, traverse, next),
                (_, Some(traverse)) => {
                    each_referent(value, traverse, |referent| self.push(referent, next))
                }
            }
        }
    }

    /// # Safety
    /// As for `visit`, for a class; `traverse` is that of its type.
    unsafe fn follow_class(
        &mut self,
        class: *mut ffi::PyObject,
        traverse: ffi::traverseproc,
        next: Distance,
    ) -> Result<(), Failure> {
        // The only dict among the referents of a type is its own (`type_traverse` in Objects/typeobject.c).
        // SAFETY: by this function's contract.
        unsafe {
            each_referent(class, traverse, |referent| {
                match ffi::PyDict_CheckExact(referent) {
                    0 => Ok(()),
                    _ => self.push_values(referent, next),
                }
            })
        }
    }

    /// Pushes the results in a cache, and not their keys.
    ///
    /// # Safety
    /// As for `visit`, for a cache; `traverse` is that of its type.
    unsafe fn follow_cache(
        &mut self,
        cache: *mut ffi::PyObject,
        traverse: ffi::traverseproc,
        next: Distance,
    ) -> Result<(), Failure> {
        // SAFETY: by this function's contract. A cache with a limit shows keys and results
        // (`lru_cache_tp_traverse` in Modules/_functoolsmodule.c), one without shows only its dict.
        unsafe {
            let (mut keys, mut shown) = (Addresses::default(), Vec::new());
            each_referent(cache, traverse, |referent| {
                if ffi::PyDict_CheckExact(referent) == 0 {
                    return try_push(&mut shown, referent);
                }
                self.push_values(referent, next.step())?;
                each_item(referent, |key, _| keys.insert(key).map(drop))
            })?;
            for referent in shown.into_iter().filter(|&of| !keys.contains(of)) {
                self.push(referent, next)?;
            }
        }
        Ok(())
    }
}
