//! During a walk neither the collector nor another thread may run.
#![allow(unsafe_code)]

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Disables the cyclic collector, which runs finalizers, until dropped.
pub struct GcPause<'py> {
    was_enabled: bool,
    _py: Python<'py>,
}

impl<'py> GcPause<'py> {
    pub fn new(py: Python<'py>) -> Self {
        // SAFETY: `py` proves that this thread is attached, which is all that PyGC_Disable needs.
        let was_enabled = unsafe { ffi::PyGC_Disable() } != 0;
        Self {
            was_enabled,
            _py: py,
        }
    }
}

impl Drop for GcPause<'_> {
    fn drop(&mut self) {
        if self.was_enabled {
            // SAFETY: `_py` proves that this thread is still attached.
            unsafe { ffi::PyGC_Enable() };
        }
    }
}

/// Refuses an interpreter whose GIL is off.
///
/// A module that declares that it uses the GIL enables it in a free-threaded build, unless the user has forced it off
/// (PYTHON_GIL=0). Without the GIL objects may be freed during a walk, which would be unsound.
pub fn require_gil(py: Python<'_>) -> PyResult<()> {
    let sys = py.import("sys")?;
    let Some(is_enabled) = sys.getattr_opt("_is_gil_enabled")? else {
        return Ok(()); // before 3.13 the GIL is always on
    };
    if is_enabled.call0()?.is_truthy()? {
        return Ok(());
    }
    Err(PyImportError::new_err(
        "fastpurge needs the GIL, and it is switched off (PYTHON_GIL=0 or -X gil=0)",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_restores_the_state_before_it() {
        Python::attach(|py| {
            let gc = py.import("gc").unwrap();
            let enabled = || {
                gc.call_method0("isenabled")
                    .unwrap()
                    .extract::<bool>()
                    .unwrap()
            };
            assert!(enabled());
            {
                let _outer = GcPause::new(py);
                assert!(!enabled());
                drop(GcPause::new(py));
                assert!(!enabled());
            }
            assert!(enabled());
        });
    }
}
