//! `fastpurge._core`: what the package asks of the interpreter.
//!
//! The crate knows objects, types and identities. It has never heard of torch.
#![deny(unsafe_code)]

// What benches/core.rs measures is public.
mod callbacks;
mod counts;
mod distance;
mod exchange;
mod external;
mod frames;
mod gc;
mod heap;
pub mod idset;
mod interpreter;
pub mod library;
mod objects;
mod pages;
mod paths;
mod prefetch;
mod reach;
mod reading;
mod room;
mod running;
pub mod scan;
mod state;
mod strays;
pub mod types;

use pyo3::prelude::*;

/// The Rust core of fastpurge: closures and scans over the CPython heap.
// `gil_used`: the borrowed pointers of a walk stay valid because the GIL is held throughout, so a
// free-threaded interpreter must switch its GIL on (or refuse) before it may load this module.
#[pymodule(gil_used = true)]
mod _core {
    use super::{Bound, PyModule, PyResult};

    #[pymodule_export]
    use crate::callbacks::callbacks;
    #[pymodule_export]
    use crate::exchange::exchange;
    #[pymodule_export]
    use crate::frames::frame_locals;
    #[pymodule_export]
    use crate::gc::object_stream;
    #[pymodule_export]
    use crate::heap::trim_heap;
    #[pymodule_export]
    use crate::idset::IdSet;
    #[pymodule_export]
    use crate::library::Libraries;
    #[pymodule_export]
    use crate::paths::{holdings, paths};
    #[pymodule_export]
    use crate::reading::read_unless_inside;
    #[pymodule_export]
    use crate::running::RunningCode;
    #[pymodule_export]
    use crate::scan::{Snapshot, closure, reached, scan, snapshot};
    #[pymodule_export]
    use crate::state::library_state;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::gc::require_gil(module.py())?;
        crate::gc::Stream::prepare(module.py());
        crate::objects::prepare(module.py());
        Ok(())
    }
}
