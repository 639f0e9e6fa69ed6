//! C functions of the running interpreter outside the stable ABI, looked up by name.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;

type DictGetter = unsafe extern "C" fn(*mut ffi::PyObject) -> *mut *mut ffi::PyObject;
type Getter = unsafe extern "C" fn(*mut ffi::PyObject) -> *mut ffi::PyObject;

/// Reads the attributes of functions in C. This calls no audit hook, as reading `__code__` would.
pub struct Functions {
    closure: Option<Getter>,
    defaults: Option<Getter>,
    keyword_defaults: Option<Getter>,
    code: Option<Getter>,
    of_method: Option<Getter>,
    dict_of: Option<DictGetter>,
    function_type: Option<*mut ffi::PyTypeObject>,
}

impl Functions {
    pub fn new(py: Python<'_>) -> Self {
        // SAFETY: Include/cpython/funcobject.h and classobject.h; all have one type in all versions.
        unsafe {
            Self {
                closure: c_function(py, c"PyFunction_GetClosure"),
                defaults: c_function(py, c"PyFunction_GetDefaults"),
                keyword_defaults: c_function(py, c"PyFunction_GetKwDefaults"),
                code: c_function(py, c"PyFunction_GetCode"),
                of_method: c_function(py, c"PyMethod_Function"),
                // Include/cpython/object.h: returns where an object's dict is stored, and makes no dict.
                dict_of: c_function(py, c"_PyObject_GetDictPtr"),
                function_type: c_function(py, c"PyFunction_Type"),
            }
        }
    }

    /// Whether a function has neither a closure nor defaults; `false` if that is not known.
    ///
    /// # Safety
    /// `function` is a live function, and the thread is attached.
    pub unsafe fn has_no_values(&self, function: *mut ffi::PyObject) -> bool {
        [self.closure, self.defaults, self.keyword_defaults]
            .iter()
            // SAFETY: by this function's contract; the results are borrowed, and only compared.
            .all(|getter| getter.is_some_and(|get| unsafe { get(function) }.is_null()))
    }

    /// The closure, defaults and attributes of a function; `None` if `object` is no function, or if they are not known.
    /// Its globals, code and annotations are left out.
    ///
    /// # Safety
    /// `object` is live and of type `of`, and the thread is attached.
    #[inline]
    pub unsafe fn values_of(
        &self,
        object: *mut ffi::PyObject,
        of: *mut ffi::PyTypeObject,
    ) -> Option<[*mut ffi::PyObject; 4]> {
        if self.function_type != Some(of) {
            return None;
        }
        // SAFETY: by this function's contract; the results are borrowed, and null if the function has none.
        unsafe {
            let dict = self.dict_of?(object);
            Some([
                self.closure?(object),
                self.defaults?(object),
                self.keyword_defaults?(object),
                if dict.is_null() { dict.cast() } else { *dict },
            ])
        }
    }

    /// The code object of a function or a bound method; null if it is not known.
    ///
    /// # Safety
    /// `callable` is live, and the thread is attached.
    pub unsafe fn code_of(
        &self,
        callable: *mut ffi::PyObject,
        function_type: *mut ffi::PyTypeObject,
        method_type: *mut ffi::PyTypeObject,
    ) -> *mut ffi::PyObject {
        // SAFETY: by this function's contract; each getter is called on what it is for.
        unsafe {
            let mut function = callable;
            if ffi::Py_TYPE(callable) == method_type {
                function = self.of_method.map_or(ptr::null_mut(), |get| get(callable));
            }
            match self.code {
                Some(get) if !function.is_null() && ffi::Py_TYPE(function) == function_type => {
                    get(function)
                }
                _ => ptr::null_mut(),
            }
        }
    }
}

/// A function that the running interpreter exports, or `None`.
///
/// # Safety
/// `F` is the type of a pointer to that function, in every version that has it.
#[cfg(unix)]
pub unsafe fn c_function<F: Copy>(_py: Python<'_>, name: &CStr) -> Option<F> {
    let process = libloading::os::unix::Library::this();
    // SAFETY: by this function's contract; and the interpreter is never unloaded while an extension
    // module of it runs.
    let symbol = unsafe { process.get::<F>(name.to_bytes_with_nul()) };
    symbol.ok().map(|symbol| *symbol)
}

/// A function that the running interpreter exports, or `None`.
///
/// # Safety
/// `F` is the type of a pointer to that function, in every version that has it.
#[cfg(windows)]
pub unsafe fn c_function<F: Copy>(py: Python<'_>, name: &CStr) -> Option<F> {
    let version = py.version_info();
    let library = format!("python{}{}.dll", version.major, version.minor);
    let interpreter = libloading::os::windows::Library::open_already_loaded(library).ok()?;
    // SAFETY: as on Unix.
    let symbol = unsafe { interpreter.get::<F>(name.to_bytes_with_nul()) };
    symbol.ok().map(|symbol| *symbol)
}
