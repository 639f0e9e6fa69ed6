//! Which types belong to a library, and which to the program.
//!
//! A closure stops at a library's types: through `torch.nn.Linear` it would reach the library, not
//! what the caller keeps. It enters the program's own classes, whose attributes may hold tensors.
#![allow(unsafe_code)]

use std::mem::transmute;
use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};
use pyo3::{ffi, intern};
use rustc_hash::{FxHashMap, FxHashSet};

/// What counts as a library: folders, and the names of modules that have no file.
///
/// `folders` maps a folder to whether what lies in it is a library; the deepest folder decides, and
/// outside all of them is the program. `builtin_names` are the top-level modules without a file that
/// are libraries all the same.
#[pyclass(module = "fastpurge._core", frozen)]
pub struct Libraries {
    folders: Vec<(PathBuf, bool)>,
    builtin_names: FxHashSet<String>,
}

#[pymethods]
impl Libraries {
    #[new]
    fn new(folders: Vec<(PathBuf, bool)>, builtin_names: Vec<String>) -> Self {
        Self {
            folders,
            builtin_names: builtin_names.into_iter().collect(),
        }
    }

    /// Whether the module of this name (as in ``sys.modules``) is a library.
    #[pyo3(signature = (name, /))]
    fn is_library(&self, py: Python<'_>, name: &str) -> PyResult<bool> {
        Ok(Judge::new(py, self)?.is_library_name(name))
    }
}

impl Libraries {
    fn holds(&self, file: &Path) -> bool {
        self.folders
            .iter()
            .filter(|(folder, _)| file.starts_with(folder))
            .max_by_key(|(folder, _)| folder.components().count())
            .is_some_and(|&(_, is_library)| is_library)
    }
}

/// Judges types for the length of one walk. Runs no Python code.
pub struct Judge<'py, 'a> {
    py: Python<'py>,
    libraries: &'a Libraries,
    by_name: FxHashMap<String, bool>,
    /// `type.__dict__['__module__']`, the getter no metaclass can override, and its slot.
    module_of: Bound<'py, PyAny>,
    get: ffi::descrgetfunc,
}

impl<'py, 'a> Judge<'py, 'a> {
    pub fn new(py: Python<'py>, libraries: &'a Libraries) -> PyResult<Self> {
        let module_of = py
            .get_type::<PyType>()
            .getattr(intern!(py, "__dict__"))?
            .get_item(intern!(py, "__module__"))?;
        // SAFETY: the slot of a live type; `tp_descr_get` is what the slot id names, and a getset
        // descriptor always has it (Objects/descrobject.c).
        let get = unsafe {
            transmute::<*mut std::ffi::c_void, Option<ffi::descrgetfunc>>(ffi::PyType_GetSlot(
                module_of.get_type().as_type_ptr(),
                ffi::Py_tp_descr_get,
            ))
        }
        .expect("a getset descriptor has tp_descr_get");
        Ok(Self {
            py,
            libraries,
            by_name: FxHashMap::default(),
            module_of,
            get,
        })
    }

    /// Whether a type object is a library's. A type that does not say where it is from is not.
    ///
    /// # Safety
    /// `of` is a live type object.
    pub unsafe fn is_library_type(&mut self, of: *mut ffi::PyObject) -> bool {
        // SAFETY: a getset descriptor of `type`, called on an instance of it: this reads the type's
        // own dict in C (`type_module` in Objects/typeobject.c).
        let module = unsafe {
            let module = (self.get)(
                self.module_of.as_ptr(),
                of,
                ffi::Py_TYPE(of).cast::<ffi::PyObject>(),
            );
            Bound::from_owned_ptr_or_err(self.py, module)
        };
        let Ok(module) = module else { return false };
        let Ok(name) = module.cast_exact::<PyString>() else {
            return false;
        };
        name.to_str().is_ok_and(|name| self.is_library_name(name))
    }

    fn is_library_name(&mut self, name: &str) -> bool {
        if let Some(&known) = self.by_name.get(name) {
            return known;
        }
        let answer = self.look_up(name);
        self.by_name.insert(name.to_owned(), answer);
        answer
    }

    /// The file of the module, or of the nearest package around it that has one, decides.
    fn look_up(&self, name: &str) -> bool {
        let mut at = name;
        loop {
            if at == "__main__" {
                return false;
            }
            if let Some(file) = self.file_of(at) {
                return self.libraries.holds(&file);
            }
            match at.rsplit_once('.') {
                Some((package, _)) => at = package,
                None => return self.libraries.builtin_names.contains(at),
            }
        }
    }

    fn file_of(&self, name: &str) -> Option<PathBuf> {
        // SAFETY: attached; the reference is borrowed from the interpreter, which keeps the dict.
        let modules = unsafe { ffi::PyImport_GetModuleDict() };
        let module = self.item(modules, &PyString::new(self.py, name))?;
        // SAFETY: `item` gave an owned, live object; a module's dict is null only while it is made.
        let namespace = unsafe {
            if ffi::PyObject_TypeCheck(module.as_ptr(), &raw mut ffi::PyModule_Type) == 0 {
                return None;
            }
            ffi::PyModule_GetDict(module.as_ptr())
        };
        let file = self.item(namespace, intern!(self.py, "__file__"))?;
        let file = file.cast_exact::<PyString>().ok()?;
        file.to_str().ok().map(PathBuf::from)
    }

    /// A str key looked up in a namespace: strings are compared as strings, in C.
    fn item(
        &self,
        namespace: *mut ffi::PyObject,
        key: &Bound<'py, PyString>,
    ) -> Option<Bound<'py, PyAny>> {
        if namespace.is_null() {
            return None;
        }
        // SAFETY: `namespace` is a live dict; the borrowed result is made ours at once.
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

    fn libraries() -> Libraries {
        Libraries::new(
            vec![
                (PathBuf::from("/env/lib"), true),
                (PathBuf::from("/env/lib/site-packages/app"), false),
                (PathBuf::from("/home/me"), false),
                (PathBuf::from("/home/me/.venv/lib"), true),
            ],
            vec!["sys".into()],
        )
    }

    #[test]
    fn the_deepest_folder_decides() {
        let libraries = libraries();
        assert!(libraries.holds(Path::new("/env/lib/json/__init__.py")));
        assert!(!libraries.holds(Path::new("/env/lib/site-packages/app/nodes.py")));
        assert!(!libraries.holds(Path::new("/home/me/script.py")));
        assert!(libraries.holds(Path::new("/home/me/.venv/lib/torch/nn.py")));
    }

    #[test]
    fn a_folder_is_not_a_prefix_of_letters() {
        assert!(!libraries().holds(Path::new("/env/library/thing.py")));
        assert!(!libraries().holds(Path::new("relative/env/lib/thing.py")));
    }

    #[test]
    fn modules_without_a_file_go_by_name() {
        Python::attach(|py| {
            let libraries = libraries();
            assert!(libraries.is_library(py, "sys").unwrap());
            assert!(!libraries.is_library(py, "_io").unwrap());
            assert!(!libraries.is_library(py, "__main__").unwrap());
            assert!(!libraries.is_library(py, "no.such.module").unwrap());
        });
    }
}
