//! What libraries keep: state that nobody named, and that is not the program's garbage.
//!
//! Found from the other end than by a closure: from the modules and classes of libraries down, a few
//! steps, through what a library would keep it in.
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

/// What libraries keep at module and at class level: instances of the given types, found directly or
/// through what holds them there, down to a depth; each with the name of a module that leads to it.
///
/// Of all libraries, or only of the ``modules`` named, as far as they are of libraries.
///
/// ``containers`` are looked through, by exact type, each a step deeper, and one instance of a library's own class
/// may stand on the way. ``wrappers`` are too, and are no step: functions, what decorators make of them, and
/// ``caches``, whose dicts hold results by arguments: results are state, arguments are the caller's.
///
/// What a wrapper leads to is needed when it is called, at any depth: as far as ``roots``, types and
/// names of packages whose instances lead to what no call needs. Where a module or class holds such an instance,
/// it is looked through as what the library does not call. An instance of another class that a wrapper leads to
/// is itself among the results, and so is one that can be called. A class counts if its own module is a library's.
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
    let mut state = GlobalsWalk {
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
        seen: VisitedDistances::default(),
        recent: try_boxed_array((ptr::null_mut(), Distance::default()))?,
        level: Vec::new(),
        from: ptr::null_mut(),
        reported: Addresses::default(),
        found: Vec::new(),
    };
    // SAFETY: what is in `sys.modules` is live until Python code runs.
    unsafe { state.take_all(&imported_modules(py)?, modules)? };
    let found = state.found.into_iter();
    // SAFETY: live: no Python code has run since each was met, and the collector is paused.
    let own = |at| unsafe { Bound::from_borrowed_ptr(py, at) };
    let found = try_collect(found.map(|(object, name)| [own(object), own(name)]))?;
    list(py, found, |pair| tuple(py, pair))
}

/// Bytes that come from memory together.
const LINE: usize = 64;

/// How many objects are looked at together.
const BATCH: usize = 64;

const RECENT: usize = 4096;

struct GlobalsWalk<'py, 'a> {
    kinds: KindOfObject<'py, 'a>,
    functions: Functions,
    /// Where each was met last.
    seen: VisitedDistances,
    /// What was met last, by a part of its address.
    recent: Box<[(*mut ffi::PyObject, Distance); RECENT]>,
    /// What is still to be looked at.
    level: Vec<(*mut ffi::PyObject, Distance)>,
    /// The name of the module that is looked into.
    from: *mut ffi::PyObject,
    /// What was found. A class may be looked into as a library's before it is found to be called.
    reported: Addresses,
    found: Vec<(*mut ffi::PyObject, *mut ffi::PyObject)>,
}

impl GlobalsWalk<'_, '_> {
    /// # Safety
    /// `modules` are those of `sys.modules`; no Python code runs meanwhile.
    unsafe fn take_all(
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
                    self.from = name;
                    self.take_module(module)?;
                    self.run()?;
                }
            }
        }
        Ok(())
    }

    /// Has the values of a module's namespace looked at, and what a module of C code has beside it (`module_traverse`
    /// in Objects/moduleobject.c calls its `m_traverse`).
    ///
    /// # Safety
    /// As for `take_all`; `module` is live.
    unsafe fn take_module(&mut self, module: *mut ffi::PyObject) -> Result<(), Failure> {
        let here = Distance::default();
        // SAFETY: by this function's contract.
        unsafe {
            let namespace = ffi::PyModule_GetDict(module);
            self.take_values(namespace, here)?;
            let Some(traverse) = self.kinds.types.of(module).traverse else {
                return Ok(());
            };
            each_referent(module, traverse, |referent| match referent == namespace {
                true => Ok(()),
                false => self.meet(referent, here),
            })
        }
    }

    /// # Safety
    /// As for `take_all`; `namespace` is null or a live dict.
    unsafe fn take_values(
        &mut self,
        namespace: *mut ffi::PyObject,
        at: Distance,
    ) -> Result<(), Failure> {
        if namespace.is_null() {
            return Ok(());
        }
        // SAFETY: by this function's contract.
        unsafe { each_item(namespace, |_, value| self.meet(value, at)) }
    }

    /// Has an object looked at, unless it is plain that it was met from as far already.
    #[inline]
    fn meet(&mut self, value: *mut ffi::PyObject, at: Distance) -> Result<(), Failure> {
        // What is met most, small numbers, names and types, is met over and over.
        let address = value as usize;
        let recent = &mut self.recent[((address >> 4) ^ (address >> 16)) % RECENT];
        if *recent == (value, at) {
            return Ok(());
        }
        *recent = (value, at);
        try_push(&mut self.level, (value, at))
    }

    /// # Safety
    /// As for `take_all`.
    unsafe fn run(&mut self) -> Result<(), Failure> {
        let mut batch = [(ptr::null_mut(), Distance::default()); BATCH];
        while !self.level.is_empty() {
            let kept = self.level.len().saturating_sub(BATCH);
            let count = self.level.len() - kept;
            batch[..count].copy_from_slice(&self.level[kept..]);
            self.level.truncate(kept);
            // Most are cold. Loads that do not depend on each other overlap.
            for &(value, _) in &batch[..count] {
                prefetch(value);
                prefetch(value.wrapping_byte_add(LINE)); // where a function says what it holds
            }
            for &(value, at) in &batch[..count] {
                // SAFETY: by this function's contract.
                unsafe { self.look_at(value, at)? };
            }
        }
        Ok(())
    }

    /// # Safety
    /// As for `take_all`; `value` is live.
    unsafe fn look_at(&mut self, value: *mut ffi::PyObject, at: Distance) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            let kind = self.kinds.of(value, at)?;
            if kind == Kind::Opaque {
                return Ok(());
            }
            if kind == Kind::Found {
                return match self.reported.insert(value)? {
                    true => try_push(&mut self.found, (value, self.from)),
                    false => Ok(()),
                };
            }
            let values = self.functions.values_of(value, ffi::Py_TYPE(value));
            if values.is_some_and(|values| values.iter().all(|held| held.is_null())) {
                return Ok(()); // most of what modules and classes hold
            }
            // A class has what it has, whatever leads to it.
            let at = if kind == Kind::Class {
                Distance::default()
            } else {
                at
            };
            if !self.seen.record(value, at)? {
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
                for held in values.into_iter().filter(|held| !held.is_null()) {
                    self.meet(held, next)?;
                }
                return Ok(());
            }
            match (kind, self.kinds.types.of(value).traverse) {
                (_, None) => Ok(()),
                (Kind::Class, Some(traverse)) => self.look_into_class(value, traverse, next),
                (Kind::Cache, Some(traverse)) => self.look_into_cache(value, traverse, next),
                (_, Some(traverse)) => {
                    each_referent(value, traverse, |referent| self.meet(referent, next))
                }
            }
        }
    }

    /// # Safety
    /// As for `look_at`, for a class; `traverse` is that of its type.
    unsafe fn look_into_class(
        &mut self,
        class: *mut ffi::PyObject,
        traverse: ffi::traverseproc,
        next: Distance,
    ) -> Result<(), Failure> {
        // A type shows its own dict among its referents, and no other (`type_traverse` in
        // Objects/typeobject.c).
        // SAFETY: by this function's contract.
        unsafe {
            each_referent(class, traverse, |referent| {
                match ffi::PyDict_CheckExact(referent) {
                    0 => Ok(()),
                    _ => self.take_values(referent, next),
                }
            })
        }
    }

    /// Looks at what a cache keeps, and not at the keys that it is kept by.
    ///
    /// # Safety
    /// As for `look_at`, for a cache; `traverse` is that of its type.
    unsafe fn look_into_cache(
        &mut self,
        cache: *mut ffi::PyObject,
        traverse: ffi::traverseproc,
        next: Distance,
    ) -> Result<(), Failure> {
        // SAFETY: by this function's contract. One with a limit shows keys and results alike
        // (`lru_cache_tp_traverse` in Modules/_functoolsmodule.c), one without only its dict.
        unsafe {
            let (mut keys, mut shown) = (Addresses::default(), Vec::new());
            each_referent(cache, traverse, |referent| {
                if ffi::PyDict_CheckExact(referent) == 0 {
                    return try_push(&mut shown, referent);
                }
                self.take_values(referent, next.step())?;
                each_item(referent, |key, _| keys.insert(key).map(drop))
            })?;
            for referent in shown.into_iter().filter(|&of| !keys.contains(of)) {
                self.meet(referent, next)?;
            }
        }
        Ok(())
    }
}
