//! Which types are a library's, and which are the program's.
//!
//! A library's types are a boundary of closures: through the type of an object a closure would reach the whole library.
//! The program's own classes are traversed, because their attributes may refer to candidates.
#![allow(unsafe_code)]

use std::path::MAIN_SEPARATOR;
use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString, PyTuple};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_copy, try_insert, try_push};
use crate::cpython::fallible_objects::{
    attribute, list, none_unless_out_of_memory, owned_or_error, pair, string_of, text, utf8,
};
use crate::cpython::type_attributes::{TypeGetter, type_repr};
use crate::libraries::library_folders::Libraries;

#[pymethods]
impl Libraries {
    #[new]
    fn new(folders: &Bound<'_, PyTuple>, builtin_names: &Bound<'_, PyTuple>) -> PyResult<Self> {
        let mut libraries = Self::default();
        for each in folders {
            let [folder, is_library] = pair(&each)?;
            libraries.add_folder(&string_of(&folder)?, is_library.extract()?)?;
        }
        for name in builtin_names {
            libraries.add_builtin(&string_of(&name)?)?;
        }
        Ok(libraries)
    }

    /// Whether the module of this name (as in ``sys.modules``) is a library's.
    #[pyo3(signature = (name, /))]
    fn is_library(&self, py: Python<'_>, name: &Bound<'_, PyString>) -> PyResult<bool> {
        match utf8(name)? {
            Some(name) => Ok(LibraryTypes::new(py, self)?.is_library_name(name)?),
            None => Ok(false),
        }
    }

    /// Those of the given module names that are no library's.
    #[pyo3(signature = (names, /))]
    fn program_modules<'py>(
        &self,
        py: Python<'py>,
        names: &Bound<'py, PyList>,
    ) -> PyResult<Bound<'py, PyList>> {
        let mut library_types = LibraryTypes::new(py, self)?;
        let mut found = Vec::new();
        for name in names {
            let text = utf8(name.cast::<PyString>()?)?;
            if !text.map_or(Ok(false), |text| library_types.is_library_name(text))? {
                try_push(&mut found, name)?;
            }
        }
        list(py, found, Ok)
    }
}

/// Tells for the length of one walk which types and modules are a library's. Runs no Python code.
pub struct LibraryTypes<'py, 'a> {
    pub py: Python<'py>,
    libraries: &'a Libraries,
    by_name: FxHashMap<String, bool>,
    /// Whether a type is a library's, and whether it is a boundary, by its address. No type is freed meanwhile.
    types: FxHashMap<usize, bool>,
    boundaries: FxHashMap<usize, bool>,
    module_of: TypeGetter<'py>,
    qualname_of: TypeGetter<'py>,
    /// `type.__repr__`, whatever the metaclass.
    repr: ffi::reprfunc,
    size_of: TypeGetter<'py>,
    /// `list.__sizeof__`.
    size_of_list: Bound<'py, PyAny>,
    /// Made once, without `intern!`, which releases the GIL: see `Stream`.
    file_key: Bound<'py, PyString>,
    path_key: Bound<'py, PyString>,
}

impl<'py, 'a> LibraryTypes<'py, 'a> {
    pub fn new(py: Python<'py>, libraries: &'a Libraries) -> PyResult<Self> {
        Ok(Self {
            py,
            libraries,
            by_name: FxHashMap::default(),
            types: FxHashMap::default(),
            boundaries: FxHashMap::default(),
            module_of: TypeGetter::new(py, "__module__")?,
            qualname_of: TypeGetter::new(py, "__qualname__")?,
            repr: type_repr(),
            size_of: TypeGetter::new(py, "__basicsize__")?,
            size_of_list: attribute(&py.get_type::<PyList>(), c"__sizeof__")?,
            file_key: text(py, "__file__")?,
            path_key: text(py, "__path__")?,
        })
    }

    /// Whether a type object is a boundary of closures: a library's type, unless it was made by a function or is derived
    /// from a class of the program. Such a type refers to what the function was called with.
    ///
    /// # Safety
    /// `of` is a live type object.
    pub unsafe fn is_boundary_type(&mut self, of: *mut ffi::PyObject) -> Result<bool, Failure> {
        if let Some(&known) = self.boundaries.get(&(of as usize)) {
            return Ok(known);
        }
        // SAFETY: by this function's contract.
        let answer = unsafe {
            self.is_library_type(of)?
                && !self.is_made_by_function(of)?
                && !self.has_program_base(of)?
        };
        try_insert(&mut self.boundaries, of as usize, answer)?;
        Ok(answer)
    }

    /// Whether a type has a base that is a class of the program. Static types are none.
    ///
    /// # Safety
    /// `of` is a live type object.
    unsafe fn has_program_base(&mut self, of: *mut ffi::PyObject) -> Result<bool, Failure> {
        // SAFETY: by this function's contract. The slot is a tuple of types, or null while a type is made.
        unsafe {
            let bases: *mut ffi::PyObject = ffi::PyType_GetSlot(of.cast(), ffi::Py_tp_bases).cast();
            if bases.is_null() || ffi::PyTuple_Check(bases) == 0 {
                return Ok(false);
            }
            for at in 0..ffi::PyTuple_Size(bases) {
                let base = ffi::PyTuple_GetItem(bases, at);
                let is_class = ffi::PyType_GetFlags(base.cast()) & ffi::Py_TPFLAGS_HEAPTYPE != 0;
                if is_class && !self.is_boundary_type(base)? && !self.is_made_by_function(base)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Whether a list is being sorted. Sorting takes the items out of the list and sets `allocated` to -1, which makes
    /// its size smaller (`list_sort_impl` and `list___sizeof___impl` in Objects/listobject.c).
    ///
    /// # Safety
    /// `list` is a live instance of list or a subtype.
    pub unsafe fn is_being_sorted(&self, list: *mut ffi::PyObject) -> Result<bool, Failure> {
        // SAFETY: by this function's contract; a method in C, which returns a number.
        unsafe {
            let end = ptr::null_mut::<ffi::PyObject>();
            let size = ffi::PyObject_CallFunctionObjArgs(self.size_of_list.as_ptr(), list, end);
            let size = match owned_or_error(self.py, size) {
                Ok(size) => Some(size),
                Err(error) => none_unless_out_of_memory(self.py, &error)?,
            };
            let basic = self.size_of.any(ffi::Py_TYPE(list).cast())?;
            let number = |of: Bound<'_, PyAny>| ffi::PyLong_AsSsize_t(of.as_ptr());
            Ok(size.map(number) < basic.map(number))
        }
    }

    /// Whether a type object was made by a function.
    ///
    /// # Safety
    /// `of` is a live type object.
    pub unsafe fn is_made_by_function(&mut self, of: *mut ffi::PyObject) -> Result<bool, Failure> {
        // SAFETY: by this function's contract.
        let name = unsafe {
            if ffi::PyType_GetFlags(of.cast()) & ffi::Py_TPFLAGS_HEAPTYPE == 0 {
                return Ok(false);
            }
            self.qualname_of.get(of)
        }?;
        let Some(name) = name else {
            return Ok(false);
        };
        Ok(utf8(&name)?.is_some_and(|name| name.contains("<locals>")))
    }

    /// Whether a type object is a library's. A type without a module name is not.
    ///
    /// # Safety
    /// `of` is a live type object.
    pub unsafe fn is_library_type(&mut self, of: *mut ffi::PyObject) -> Result<bool, Failure> {
        if let Some(&known) = self.types.get(&(of as usize)) {
            return Ok(known);
        }
        // SAFETY: by this function's contract.
        let name = unsafe { self.module_name(of) }?;
        let answer = match name.as_ref().map(utf8).transpose()?.flatten() {
            Some(name) => self.is_library_name(name)?,
            None => false,
        };
        try_insert(&mut self.types, of as usize, answer)?;
        Ok(answer)
    }

    /// The module name of a type. If `__module__` is no str, such as the descriptor for instances of Cython's functions
    /// and coroutines, the module name is taken from the type's name in C.
    ///
    /// # Safety
    /// `of` is a live type object.
    unsafe fn module_name(
        &self,
        of: *mut ffi::PyObject,
    ) -> Result<Option<Bound<'py, PyString>>, Failure> {
        // SAFETY: by this function's contract. `type_repr` (Objects/typeobject.c) is C, and returns
        // "<class 'module.name'>", with the name in C if there is no other.
        unsafe {
            let name = self.module_of.get(of)?;
            if name.is_some() {
                return Ok(name);
            }
            let repr = match owned_or_error(self.py, (self.repr)(of)) {
                Ok(repr) => repr.cast_into_exact::<PyString>().ok(),
                Err(error) => none_unless_out_of_memory(self.py, &error)?,
            };
            let Some(repr) = repr else {
                return Ok(None);
            };
            let name = utf8(&repr)?.and_then(|repr| repr.strip_prefix("<class '"));
            match name.and_then(|name| name.rsplit_once('.')) {
                Some((module, _)) => Ok(Some(
                    text(self.py, module).map_err(|_| Failure::OutOfMemory)?,
                )),
                None => Ok(None),
            }
        }
    }

    /// Whether the module of a type object is in one of the packages.
    ///
    /// # Safety
    /// `of` is a live type object.
    pub unsafe fn is_of_package(
        &self,
        of: *mut ffi::PyObject,
        packages: &FxHashSet<String>,
    ) -> Result<bool, Failure> {
        // SAFETY: by this function's contract.
        let Some(name) = (unsafe { self.module_name(of) })? else {
            return Ok(false);
        };
        let Some(name) = utf8(&name)? else {
            return Ok(false);
        };
        let ends = name.match_indices('.').map(|(end, _)| end);
        let mut around = ends.chain([name.len()]).map(|end| &name[..end]);
        Ok(around.any(|package| packages.contains(package)))
    }

    pub fn is_library_name(&mut self, name: &str) -> Result<bool, Failure> {
        if let Some(&known) = self.by_name.get(name) {
            return Ok(known);
        }
        let answer = self.look_up(name)?;
        try_insert(&mut self.by_name, try_copy(name)?, answer)?;
        Ok(answer)
    }

    /// The file of the module decides, or that of the nearest package that has one. A file outside all folders is the
    /// program's, unless the package is a library's: that has generated it (inductor's code, in a cache).
    fn look_up(&self, name: &str) -> Result<bool, Failure> {
        let mut at = name;
        loop {
            // `multiprocessing` gives the main module the second name.
            if at == "__main__" || at == "__mp_main__" {
                return Ok(false);
            }
            let file = self.file_of(at)?;
            if let Some(file) = &file
                && let Some(is_library) =
                    utf8(file)?.and_then(|file| self.libraries.is_library_file(file))
            {
                return Ok(is_library);
            }
            match at.rsplit_once('.') {
                Some((package, _)) => {
                    // A module from a folder in the package's `__path__` is the program's, like the folder.
                    if let Some(file) = &file
                        && self.is_in_path_of(package, file)?
                    {
                        return Ok(false);
                    }
                    at = package;
                }
                None => return Ok(file.is_none() && self.libraries.has_builtin(at)),
            }
        }
    }

    /// Whether a file is in one of the folders of a package's `__path__`.
    fn is_in_path_of(&self, package: &str, file: &Bound<'py, PyString>) -> Result<bool, Failure> {
        let path = self.attribute_of(package, &self.path_key)?;
        let Some(path) = path.and_then(|path| path.cast_into_exact::<PyList>().ok()) else {
            return Ok(false);
        };
        let file = utf8(file)?.unwrap_or_default();
        for folder in path.iter() {
            let Ok(folder) = folder.cast_into_exact::<PyString>() else {
                continue;
            };
            let rest = utf8(&folder)?.and_then(|folder| file.strip_prefix(folder));
            if rest.is_some_and(|rest| rest.starts_with(MAIN_SEPARATOR)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn file_of(&self, name: &str) -> Result<Option<Bound<'py, PyString>>, Failure> {
        let file = self.attribute_of(name, &self.file_key)?;
        Ok(file.and_then(|file| file.cast_into_exact::<PyString>().ok()))
    }

    /// A value in the dict of the module of this name.
    fn attribute_of(
        &self,
        name: &str,
        key: &Bound<'py, PyString>,
    ) -> Result<Option<Bound<'py, PyAny>>, Failure> {
        // SAFETY: attached; the reference is borrowed from the interpreter, which owns the dict.
        let modules = unsafe { ffi::PyImport_GetModuleDict() };
        let name = text(self.py, name).map_err(|_| Failure::OutOfMemory)?;
        let Some(module) = self.item(modules, &name) else {
            return Ok(None);
        };
        // SAFETY: `item` returned an owned, live object; a module's dict is null only while the module is made.
        let namespace = unsafe {
            if ffi::PyObject_TypeCheck(module.as_ptr(), &raw mut ffi::PyModule_Type) == 0 {
                return Ok(None);
            }
            ffi::PyModule_GetDict(module.as_ptr())
        };
        Ok(self.item(namespace, key))
    }

    /// The value of a str key in a dict. Keys are compared as strings, in C.
    fn item(
        &self,
        namespace: *mut ffi::PyObject,
        key: &Bound<'py, PyString>,
    ) -> Option<Bound<'py, PyAny>> {
        if namespace.is_null() {
            return None;
        }
        // SAFETY: `namespace` is a live dict; a reference to the borrowed result is taken at once.
        unsafe {
            let value = ffi::PyDict_GetItemWithError(namespace, key.as_ptr());
            if value.is_null() {
                ffi::PyErr_Clear();
            }
            Bound::from_borrowed_ptr_or_opt(self.py, value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_without_a_file_are_judged_by_name() {
        Python::attach(|py| {
            let mut libraries = Libraries::default();
            libraries.add_builtin("sys").unwrap();
            assert!(libraries.is_library(py, &PyString::new(py, "sys")).unwrap());
            assert!(!libraries.is_library(py, &PyString::new(py, "_io")).unwrap());
            assert!(
                !libraries
                    .is_library(py, &PyString::new(py, "__main__"))
                    .unwrap()
            );
            assert!(
                !libraries
                    .is_library(py, &PyString::new(py, "no.such.module"))
                    .unwrap()
            );
        });
    }
}
