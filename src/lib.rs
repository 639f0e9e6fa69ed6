//! `fastpurge._core`: walks over the objects of the interpreter.
//!
//! The crate knows objects, types and identities, and no framework.
#![deny(unsafe_code)]

// The modules that benches/core.rs measures are public.
mod cpython;
mod exchange;
pub mod graph;
pub mod heap;
pub mod libraries;
mod trim;

use pyo3::prelude::*;

/// The Rust core of fastpurge: closures and scans over the CPython heap.
// `gil_used`: the borrowed pointers of a walk stay valid because this thread keeps the GIL throughout, so a
// free-threaded interpreter must switch its GIL on (or refuse) before it may load this module.
#[pymodule(gil_used = true)]
mod _core {
    use super::{Bound, PyModule, PyResult};

    #[pymodule_export]
    use crate::cpython::frame_locals::frame_locals;
    #[pymodule_export]
    use crate::cpython::read_unless_inside::read_unless_inside;
    #[pymodule_export]
    use crate::exchange::exchange;
    #[pymodule_export]
    use crate::graph::callbacks::c_callbacks;
    #[pymodule_export]
    use crate::graph::referrer_paths::{nearest_owners, referrer_paths};
    #[pymodule_export]
    use crate::graph::running_code::RunningCode;
    #[pymodule_export]
    use crate::graph::scan::{Snapshot, closure, reachable_targets, scan, snapshot};
    #[pymodule_export]
    use crate::heap::address_sets::IdSet;
    #[pymodule_export]
    use crate::heap::object_stream::object_stream;
    #[pymodule_export]
    use crate::libraries::library_folders::Libraries;
    #[pymodule_export]
    use crate::libraries::library_globals::library_globals;
    #[pymodule_export]
    use crate::trim::trim_heap;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::cpython::gc_pause::require_gil(module.py())?;
        crate::heap::object_stream::Stream::prepare(module.py());
        crate::cpython::fallible_objects::prepare(module.py());
        Ok(())
    }
}
