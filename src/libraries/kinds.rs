//! How a walk over library globals treats an object, by its type and the distance at which it was reached.
#![allow(unsafe_code)]

use pyo3::ffi;

use crate::cpython::failure::Failure;
use crate::heap::address_sets::Addresses;
use crate::heap::type_facts::{Role, TypeFacts, TypeTable};
use crate::libraries::distance::Distance;
use crate::libraries::library_types::LibraryTypes;
use crate::libraries::root_objects::RootObjects;

/// How an object that libraries reference is treated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Not followed.
    Opaque,
    /// A result, not followed.
    Found,
    Container,
    Wrapper,
    Cache,
    Class,
    Instance,
    Root,
}

pub struct KindOfObject<'py, 'a> {
    pub library_types: LibraryTypes<'py, 'a>,
    pub types: TypeTable,
    /// Instances that lead to more than a call needs.
    pub root_objects: RootObjects,
    pub depth: u8,
    /// The dicts of modules, which are not followed as values.
    pub module_dicts: Addresses,
}

impl KindOfObject<'_, '_> {
    /// # Safety
    /// `value` is live, the thread is attached, and no Python code runs meanwhile.
    #[inline]
    pub unsafe fn of(&mut self, value: *mut ffi::PyObject, at: Distance) -> Result<Kind, Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            let facts = self.types.of(value);
            let of = ffi::Py_TYPE(value);
            if facts.scanned {
                return Ok(Kind::Found);
            }
            // An untracked object references no tracked one (`MAINTAIN_TRACKING` in Objects/dictobject.c).
            let is_end = at.steps >= self.depth || facts.traverse.is_none();
            if is_end || ffi::PyObject_GC_IsTracked(value) == 0 {
                return Ok(Kind::Opaque);
            }
            if facts.role == Role::Type {
                return self.of_class(value, facts, at);
            }
            if facts.role == Role::Module || self.module_dicts.contains(value) {
                return Ok(Kind::Opaque);
            }
            if facts.container {
                return Ok(Kind::Container);
            }
            if facts.wrapper {
                return Ok(Kind::Wrapper);
            }
            if facts.cache {
                return Ok(Kind::Cache);
            }
            if is_exception(of) {
                return Ok(Kind::Opaque);
            }
            if self
                .root_objects
                .include_type(of, &mut self.library_types)?
            {
                let is_looked_into = !at.past_wrapper
                    && !at.past_instance
                    && self.library_types.is_library_type(of.cast())?;
                return Ok(if is_looked_into {
                    Kind::Root
                } else {
                    Kind::Opaque
                });
            }
            if ffi::PyType_GetFlags(of) & ffi::Py_TPFLAGS_HEAPTYPE == 0 {
                // A static type: iterators, namespaces, generators.
                let followed = at.past_wrapper;
                return Ok(if followed {
                    Kind::Container
                } else {
                    Kind::Opaque
                });
            }
            // An object of the program that a library will call, or that such a call needs, is needed with everything
            // it reaches: it is a result.
            Ok(
                match (
                    self.library_types.is_library_type(of.cast())?,
                    at.past_wrapper,
                ) {
                    (true, true) => Kind::Instance,
                    (true, false) if !at.past_instance => Kind::Instance,
                    (false, true) => Kind::Found,
                    (false, false) if !at.never_called && is_callable(of) => Kind::Found,
                    _ => Kind::Opaque,
                },
            )
        }
    }

    /// # Safety
    /// As for `of`, for a type.
    unsafe fn of_class(
        &mut self,
        class: *mut ffi::PyObject,
        facts: TypeFacts,
        at: Distance,
    ) -> Result<Kind, Failure> {
        // SAFETY: by this function's contract.
        unsafe {
            if facts.is_gc.is_some_and(|is_gc| is_gc(class) == 0) {
                return Ok(Kind::Opaque);
            }
            // A wrapper needs the program's classes, and classes made by a function.
            if at.past_wrapper && !self.library_types.is_boundary_type(class)? {
                return Ok(Kind::Found);
            }
            let is_library = self.library_types.is_library_type(class)?;
            Ok(if is_library {
                Kind::Class
            } else {
                Kind::Opaque
            })
        }
    }
}

/// # Safety
/// `of` is a live type.
unsafe fn is_callable(of: *mut ffi::PyTypeObject) -> bool {
    // SAFETY: by this function's contract; the slot of a heap type is its class's `__call__`.
    !unsafe { ffi::PyType_GetSlot(of, ffi::Py_tp_call) }.is_null()
}

/// Whether a type is an exception type. Exceptions, such as `sys.last_value`, are no state of a library.
///
/// # Safety
/// `of` is a live type.
unsafe fn is_exception(of: *mut ffi::PyTypeObject) -> bool {
    // SAFETY: by this function's contract.
    unsafe { ffi::PyType_GetFlags(of) & ffi::Py_TPFLAGS_BASE_EXC_SUBCLASS != 0 }
}
