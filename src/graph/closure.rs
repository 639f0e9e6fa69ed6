//! The closure: everything reachable from a set of roots, by the interpreter's own `tp_traverse`.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use pyo3::ffi;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::try_push;
use crate::heap::address_sets::Addresses;
use crate::heap::prefetch::{prefetch, prefetch_contents};
use crate::heap::type_facts::{Role, TypeTable, each_unshown};
use crate::libraries::library_types::Judge;
use crate::libraries::root_objects::RootObjects;

/// How many referents are on their way at a time: enough to hide a load from memory.
const AHEAD: usize = 16;

/// A closure being built: iterative, so that no depth of nesting can overflow a stack.
///
/// The boundary: modules, the namespaces of modules, types of libraries that no function made. A boundary object that is
/// met is in the closure; what lies behind it is not. Roots that the caller named are always entered.
pub struct Reach<'a, 'py> {
    types: &'a mut TypeTable,
    judge: Judge<'py, 'a>,
    /// The `__dict__` of every module.
    namespaces: &'a Addresses,
    met: Addresses,
    /// Referents on their way from memory, in a ring: each is looked at when so many have come after it.
    coming: [*mut ffi::PyObject; AHEAD],
    next: usize,
    pending: Vec<*mut ffi::PyObject>,
    reported: Vec<*mut ffi::PyObject>,
    noted: Option<Vec<*mut ffi::PyObject>>,
    /// What is not entered either, from `stop_at` on.
    roots: Option<RootObjects>,
    /// Whether the object being traversed has shown a referent.
    shown: bool,
    /// Whether a list was met that is being sorted, and shows nothing.
    sorting: bool,
    outcome: Result<(), Failure>,
}

impl<'a, 'py> Reach<'a, 'py> {
    pub fn new(types: &'a mut TypeTable, judge: Judge<'py, 'a>, namespaces: &'a Addresses) -> Self {
        Self {
            types,
            judge,
            namespaces,
            met: Addresses::default(),
            coming: [ptr::null_mut(); AHEAD],
            next: 0,
            pending: Vec::new(),
            reported: Vec::new(),
            noted: None,
            roots: None,
            shown: false,
            sorting: false,
            outcome: Ok(()),
        }
    }

    /// Counts an object as met, so that it is entered only if the caller names it.
    pub fn stop_at(&mut self, object: *mut ffi::PyObject) -> Result<(), Failure> {
        self.met.insert(object).map(drop)
    }

    /// Adds what is reachable from an object that the caller named, whatever it is.
    ///
    /// # Safety
    /// `root` is live, the thread is attached, and no Python code runs before `finish`.
    pub unsafe fn name(&mut self, root: *mut ffi::PyObject) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            self.take(root)?;
            let facts = self.types.of(root);
            if facts.role == Role::Module {
                let namespace = ffi::PyModule_GetDict(root);
                if !namespace.is_null() {
                    self.take(namespace)?;
                    self.enter(namespace)?;
                }
            }
            // Entered here, as named, and once more at most when its turn comes as an object met.
            self.enter(root)?;
            self.run()
        }
    }

    /// Adds what is reachable from an object.
    ///
    /// # Safety
    /// As for `name`.
    pub unsafe fn add(&mut self, root: *mut ffi::PyObject) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            self.take(root)?;
            self.run()
        }
    }

    /// Notes from here on what is met, to be able to forget it.
    pub fn begin(&mut self) {
        self.noted = Some(Vec::new());
    }

    /// Forgets what was met since `begin`.
    pub fn forget(&mut self) {
        for object in self.noted.iter_mut().flat_map(mem::take) {
            self.met.remove(object);
        }
    }

    /// Whether an object is in the closure so far.
    pub fn has_met(&self, object: *mut ffi::PyObject) -> bool {
        self.met.contains(object)
    }

    /// Has root objects be a boundary from here on.
    pub fn stop_at_roots(&mut self, roots: Option<RootObjects>) {
        self.roots = roots;
    }

    /// Whether the instances of a type are root objects.
    ///
    /// # Safety
    /// `of` is a live type, and the thread is attached.
    #[inline]
    pub unsafe fn is_root_object(&mut self, of: *mut ffi::PyTypeObject) -> Result<bool, Failure> {
        match &mut self.roots {
            // SAFETY: by this function's contract.
            Some(roots) => unsafe { roots.have(of, &mut self.judge) },
            None => Ok(false),
        }
    }

    /// Whether a type is a library's.
    ///
    /// # Safety
    /// `of` is a live type, and the thread is attached.
    pub unsafe fn is_library_type(&mut self, of: *mut ffi::PyTypeObject) -> Result<bool, Failure> {
        // SAFETY: by this function's contract.
        unsafe { self.judge.is_library_type(of.cast()) }
    }

    /// Whether a type was made by a function.
    ///
    /// # Safety
    /// `of` is a live type, and the thread is attached.
    pub unsafe fn is_made_by_a_function(
        &mut self,
        of: *mut ffi::PyObject,
    ) -> Result<bool, Failure> {
        // SAFETY: by this function's contract.
        unsafe { self.judge.is_made_by_a_function(of) }
    }

    /// Whether an object is the `__dict__` of a module.
    pub fn is_namespace(&self, object: *mut ffi::PyObject) -> bool {
        self.namespaces.contains(object)
    }

    /// How many objects have been reported so far.
    pub fn reported(&self) -> usize {
        self.reported.len()
    }

    /// Whether the closure leaves out what is in a list that is being sorted.
    pub fn is_sorting(&self) -> bool {
        self.sorting
    }

    /// The closure, and in the order they were met those of its objects that were to be reported.
    pub fn finish(self) -> (Addresses, Vec<*mut ffi::PyObject>) {
        (self.met, self.reported)
    }

    /// # Safety
    /// As for `name`.
    unsafe fn run(&mut self) -> Result<(), Failure> {
        loop {
            while let Some(object) = self.pending.pop() {
                // SAFETY: by this function's contract.
                unsafe {
                    if !self.is_boundary(object)? {
                        self.enter(object)?;
                    }
                }
            }
            for at in 0..AHEAD {
                let object = mem::replace(&mut self.coming[at], ptr::null_mut());
                if !object.is_null() {
                    // SAFETY: by this function's contract.
                    unsafe { self.take(object)? };
                }
            }
            if self.pending.is_empty() {
                return Ok(());
            }
        }
    }

    /// # Safety
    /// As for `name`.
    unsafe fn is_boundary(&mut self, object: *mut ffi::PyObject) -> Result<bool, Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            match self.types.of(object).role {
                Role::Plain => self.is_root_object(ffi::Py_TYPE(object)),
                Role::Dict => Ok(self.namespaces.contains(object)),
                Role::Module => Ok(true),
                Role::Type => self.judge.is_boundary_type(object),
            }
        }
    }

    /// Meets everything an object refers to.
    ///
    /// # Safety
    /// As for `name`.
    unsafe fn enter(&mut self, object: *mut ffi::PyObject) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        let facts = unsafe { self.types.of(object) };
        let Some(traverse) = facts.traverse else {
            return Ok(());
        };
        // A static type has the traverse function of all types, which must not be called on it
        // (`type_traverse` in Objects/typeobject.c).
        // SAFETY: the type's own tp_is_gc, on an instance.
        if facts
            .is_gc
            .is_some_and(|is_gc| unsafe { is_gc(object) } == 0)
        {
            return Ok(());
        }
        self.shown = false;
        // SAFETY: the type's own tp_traverse, on an instance; `self` outlives the call.
        unsafe { traverse(object, visit, (&raw mut *self).cast()) };
        mem::replace(&mut self.outcome, Ok(()))?;
        // SAFETY: by this function's contract.
        unsafe {
            if !self.shown {
                each_unshown(object, |value| self.meet(value))?;
            }
            if facts.list && ffi::PyList_Size(object) == 0 {
                self.sorting |= self.judge.is_being_sorted(object)?;
            }
        }
        Ok(())
    }

    /// Has an object brought from memory, and takes the one that has been on its way longest.
    ///
    /// # Safety
    /// `object` is live and the thread is attached.
    #[inline]
    unsafe fn meet(&mut self, object: *mut ffi::PyObject) -> Result<(), Failure> {
        prefetch(object);
        let object = mem::replace(&mut self.coming[self.next], object);
        self.next = (self.next + 1) % AHEAD;
        if object.is_null() {
            return Ok(());
        }
        // SAFETY: it was live when it was met, and no Python code has run since.
        unsafe { self.take(object) }
    }

    /// # Safety
    /// `object` is live and the thread is attached.
    #[inline]
    unsafe fn take(&mut self, object: *mut ffi::PyObject) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        let facts = unsafe { self.types.of(object) };
        if facts.is_leaf() || !self.met.insert(object)? {
            return Ok(());
        }
        if let Some(noted) = &mut self.noted {
            try_push(noted, object)?;
        }
        if facts.reported {
            try_push(&mut self.reported, object)?;
        }
        if facts.traverse.is_some() {
            // SAFETY: by this function's contract.
            unsafe { prefetch_contents(object) };
            try_push(&mut self.pending, object)?;
        }
        Ok(())
    }
}

/// # Safety
/// `reach` points to the live `Reach` whose `enter` called tp_traverse; `object` is live.
unsafe extern "C" fn visit(object: *mut ffi::PyObject, reach: *mut c_void) -> c_int {
    // SAFETY: by this function's contract; `enter` touches nothing of it until tp_traverse returns.
    let reach = unsafe { &mut *reach.cast::<Reach<'_, '_>>() };
    reach.shown = true;
    // SAFETY: the thread is attached, as `enter` required.
    let met = catch_unwind(AssertUnwindSafe(|| unsafe { reach.meet(object) }));
    reach.outcome = met.unwrap_or_else(|panic| Err(Failure::Panic(panic)));
    // Anything but zero ends the traversal of this object.
    c_int::from(reach.outcome.is_err())
}
