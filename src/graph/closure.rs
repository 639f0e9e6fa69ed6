//! The closure: everything reachable from a set of roots, by the interpreter's own `tp_traverse`.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::ffi;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::try_push;
use crate::heap::address_sets::Addresses;
use crate::heap::prefetch::{PrefetchRing, prefetch_contents};
use crate::heap::type_facts::{Role, TypeTable, each_embedded_value};
use crate::libraries::library_types::LibraryTypes;
use crate::libraries::root_objects::RootObjects;

/// A closure being built: iteratively, so that deep nesting cannot overflow the stack.
///
/// The boundary: modules, the dicts of modules, and types of libraries that were not made by a function. A boundary
/// object can be in the closure, but is not traversed. Roots that the caller named are always traversed.
pub struct Closure<'a, 'py> {
    types: &'a mut TypeTable,
    library_types: LibraryTypes<'py, 'a>,
    /// The `__dict__` of every module.
    module_dicts: &'a Addresses,
    members: Addresses,
    /// Referents that were not added yet.
    prefetched: PrefetchRing<()>,
    /// Members that were not traversed yet.
    pending: Vec<*mut ffi::PyObject>,
    reported: Vec<*mut ffi::PyObject>,
    /// What was added since `start_recording`.
    recorded: Option<Vec<*mut ffi::PyObject>>,
    /// Also a boundary, once `set_root_objects` was called.
    root_objects: Option<RootObjects>,
    /// Whether tp_traverse has shown a referent of the object being traversed.
    any_traversed: bool,
    /// Whether the closure contains a list that is being sorted. Its tp_traverse shows no items.
    list_being_sorted: bool,
    outcome: Result<(), Failure>,
}

impl<'a, 'py> Closure<'a, 'py> {
    pub fn new(
        types: &'a mut TypeTable,
        library_types: LibraryTypes<'py, 'a>,
        module_dicts: &'a Addresses,
    ) -> Self {
        Self {
            types,
            library_types,
            module_dicts,
            members: Addresses::default(),
            prefetched: PrefetchRing::default(),
            pending: Vec::new(),
            reported: Vec::new(),
            recorded: None,
            root_objects: None,
            any_traversed: false,
            list_being_sorted: false,
            outcome: Ok(()),
        }
    }

    /// Adds an object without traversing it. It is traversed only if `add_named` adds it.
    pub fn add_boundary(&mut self, object: *mut ffi::PyObject) -> Result<(), Failure> {
        self.members.insert(object).map(drop)
    }

    /// Adds what is reachable from an object that the caller named, even if that is a boundary.
    ///
    /// # Safety
    /// `root` is live, the thread is attached, and no Python code runs before `finish`.
    pub unsafe fn add_named(&mut self, root: *mut ffi::PyObject) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            self.add_object(root)?;
            let facts = self.types.of(root);
            if facts.role == Role::Module {
                let module_dict = ffi::PyModule_GetDict(root);
                if !module_dict.is_null() {
                    self.add_object(module_dict)?;
                    self.traverse_object(module_dict)?;
                }
            }
            // Traversed here because it was named, and at most once more because it may be pending as well.
            self.traverse_object(root)?;
            self.traverse_pending()
        }
    }

    /// Adds what is reachable from an object.
    ///
    /// # Safety
    /// As for `add_named`.
    pub unsafe fn add(&mut self, root: *mut ffi::PyObject) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            self.add_object(root)?;
            self.traverse_pending()
        }
    }

    /// Records from here on what is added, for `remove_recorded`.
    pub fn start_recording(&mut self) {
        self.recorded = Some(Vec::new());
    }

    /// Removes what was added since `start_recording`.
    pub fn remove_recorded(&mut self) {
        for object in self.recorded.iter_mut().flat_map(mem::take) {
            self.members.remove(object);
        }
    }

    /// Whether an object is in the closure so far.
    pub fn contains(&self, object: *mut ffi::PyObject) -> bool {
        self.members.contains(object)
    }

    /// Makes root objects a boundary from here on.
    pub fn set_root_objects(&mut self, root_objects: Option<RootObjects>) {
        self.root_objects = root_objects;
    }

    /// Whether the instances of a type are root objects.
    ///
    /// # Safety
    /// `of` is a live type, and the thread is attached.
    #[inline]
    pub unsafe fn is_root_object_type(
        &mut self,
        of: *mut ffi::PyTypeObject,
    ) -> Result<bool, Failure> {
        match &mut self.root_objects {
            // SAFETY: by this function's contract.
            Some(root_objects) => unsafe { root_objects.include_type(of, &mut self.library_types) },
            None => Ok(false),
        }
    }

    /// Whether a type is a library's.
    ///
    /// # Safety
    /// `of` is a live type, and the thread is attached.
    pub unsafe fn is_library_type(&mut self, of: *mut ffi::PyTypeObject) -> Result<bool, Failure> {
        // SAFETY: by this function's contract.
        unsafe { self.library_types.is_library_type(of.cast()) }
    }

    /// Whether a type was made by a function.
    ///
    /// # Safety
    /// `of` is a live type, and the thread is attached.
    pub unsafe fn is_made_by_function(&mut self, of: *mut ffi::PyObject) -> Result<bool, Failure> {
        // SAFETY: by this function's contract.
        unsafe { self.library_types.is_made_by_function(of) }
    }

    /// Whether an object is the `__dict__` of a module.
    pub fn is_module_dict(&self, object: *mut ffi::PyObject) -> bool {
        self.module_dicts.contains(object)
    }

    /// How many objects have been reported so far.
    pub fn reported(&self) -> usize {
        self.reported.len()
    }

    /// Whether a list in the closure is being sorted, so that its items are missing from the closure.
    pub fn has_list_being_sorted(&self) -> bool {
        self.list_being_sorted
    }

    /// The closure, and its objects of a reported type, in the order they were added.
    pub fn finish(self) -> (Addresses, Vec<*mut ffi::PyObject>) {
        (self.members, self.reported)
    }

    /// # Safety
    /// As for `add_named`.
    unsafe fn traverse_pending(&mut self) -> Result<(), Failure> {
        loop {
            while let Some(object) = self.pending.pop() {
                // SAFETY: by this function's contract.
                unsafe {
                    if !self.is_boundary(object)? {
                        self.traverse_object(object)?;
                    }
                }
            }
            while let Some((object, ())) = self.prefetched.pop() {
                // SAFETY: by this function's contract.
                unsafe { self.add_object(object)? };
            }
            if self.pending.is_empty() {
                return Ok(());
            }
        }
    }

    /// # Safety
    /// As for `add_named`.
    unsafe fn is_boundary(&mut self, object: *mut ffi::PyObject) -> Result<bool, Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            match self.types.of(object).role {
                Role::Plain => self.is_root_object_type(ffi::Py_TYPE(object)),
                Role::Dict => Ok(self.module_dicts.contains(object)),
                Role::Module => Ok(true),
                Role::Type => self.library_types.is_boundary_type(object),
            }
        }
    }

    /// Adds everything an object refers to.
    ///
    /// # Safety
    /// As for `add_named`.
    unsafe fn traverse_object(&mut self, object: *mut ffi::PyObject) -> Result<(), Failure> {
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
        self.any_traversed = false;
        // SAFETY: the type's own tp_traverse, on an instance; `self` outlives the call.
        unsafe { traverse(object, visit, (&raw mut *self).cast()) };
        mem::replace(&mut self.outcome, Ok(()))?;
        // SAFETY: by this function's contract.
        unsafe {
            if !self.any_traversed {
                each_embedded_value(object, |value| self.add_referent(value))?;
            }
            if facts.list && ffi::PyList_Size(object) == 0 {
                self.list_being_sorted |= self.library_types.is_being_sorted(object)?;
            }
        }
        Ok(())
    }

    /// Adds a referent, after it was prefetched.
    ///
    /// # Safety
    /// `referent` is live and the thread is attached.
    #[inline]
    unsafe fn add_referent(&mut self, referent: *mut ffi::PyObject) -> Result<(), Failure> {
        match self.prefetched.push(referent, ()) {
            // SAFETY: it was live when it was pushed, and no Python code has run since.
            Some((object, ())) => unsafe { self.add_object(object) },
            None => Ok(()),
        }
    }

    /// # Safety
    /// `object` is live and the thread is attached.
    #[inline]
    unsafe fn add_object(&mut self, object: *mut ffi::PyObject) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        let facts = unsafe { self.types.of(object) };
        if facts.is_leaf() || !self.members.insert(object)? {
            return Ok(());
        }
        if let Some(recorded) = &mut self.recorded {
            try_push(recorded, object)?;
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
/// `closure` points to the live `Closure` whose `traverse_object` called tp_traverse; `referent` is live.
unsafe extern "C" fn visit(referent: *mut ffi::PyObject, closure: *mut c_void) -> c_int {
    // SAFETY: by this function's contract; `traverse_object` uses nothing of it until tp_traverse returns.
    let closure = unsafe { &mut *closure.cast::<Closure<'_, '_>>() };
    closure.any_traversed = true;
    // SAFETY: the thread is attached, as `traverse_object` required.
    let added = catch_unwind(AssertUnwindSafe(|| unsafe {
        closure.add_referent(referent)
    }));
    closure.outcome = added.unwrap_or_else(|panic| Err(Failure::Panic(panic)));
    // Anything but zero ends the traversal of this object.
    c_int::from(closure.outcome.is_err())
}
