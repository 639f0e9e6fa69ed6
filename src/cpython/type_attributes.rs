//! Attributes of types, read in C: no code of a metaclass runs.
#![allow(unsafe_code)]

use std::mem::transmute;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_objects::{none_unless_out_of_memory, owned_or_error, text};

/// A descriptor in the dict of `type` itself, which no metaclass can override, with its getter.
pub struct TypeGetter<'py> {
    descriptor: Bound<'py, PyAny>,
    get: ffi::descrgetfunc,
}

impl<'py> TypeGetter<'py> {
    pub fn new(py: Python<'py>, name: &str) -> PyResult<Self> {
        // SAFETY: `type` lives as long as the interpreter.
        let dict = unsafe {
            let of_types = (&raw mut ffi::PyType_Type).cast::<ffi::PyObject>();
            owned_or_error(
                py,
                ffi::PyObject_GetAttrString(of_types, c"__dict__".as_ptr()),
            )?
        };
        // SAFETY: both are live.
        let descriptor = unsafe {
            owned_or_error(
                py,
                ffi::PyObject_GetItem(dict.as_ptr(), text(py, name)?.as_ptr()),
            )?
        };
        // SAFETY: the slot of a live type; `tp_descr_get` is what the slot id names, and a getset
        // descriptor always has it (Objects/descrobject.c).
        let get = unsafe {
            transmute::<*mut std::ffi::c_void, Option<ffi::descrgetfunc>>(ffi::PyType_GetSlot(
                descriptor.get_type().as_type_ptr(),
                ffi::Py_tp_descr_get,
            ))
        };
        Ok(Self {
            descriptor,
            get: get.expect("a getset descriptor has tp_descr_get"),
        })
    }

    /// The value of the attribute for a type, if it is a str.
    ///
    /// # Safety
    /// `of` is a live type object.
    pub unsafe fn get(
        &self,
        of: *mut ffi::PyObject,
    ) -> Result<Option<Bound<'py, PyString>>, Failure> {
        // SAFETY: by this function's contract.
        let value = unsafe { self.any(of) }?;
        Ok(value.and_then(|value| value.cast_into_exact::<PyString>().ok()))
    }

    /// # Safety
    /// As for `get`.
    pub unsafe fn any(&self, of: *mut ffi::PyObject) -> Result<Option<Bound<'py, PyAny>>, Failure> {
        // SAFETY: a descriptor of `type`, called on an instance of it: this reads the type in C
        // (`type_module` and `type_qualname` in Objects/typeobject.c).
        let value = unsafe {
            let metatype = ffi::Py_TYPE(of).cast::<ffi::PyObject>();
            let value = (self.get)(self.descriptor.as_ptr(), of, metatype);
            owned_or_error(self.descriptor.py(), value)
        };
        match value {
            Ok(value) => Ok(Some(value)),
            Err(error) => none_unless_out_of_memory(self.descriptor.py(), &error),
        }
    }
}

pub fn type_repr() -> ffi::reprfunc {
    // SAFETY: `type` lives as long as the interpreter, has this slot, and the slot id names its type.
    unsafe {
        let slot = ffi::PyType_GetSlot(&raw mut ffi::PyType_Type, ffi::Py_tp_repr);
        transmute::<*mut std::ffi::c_void, ffi::reprfunc>(slot)
    }
}
