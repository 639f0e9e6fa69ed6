//! Returns free pages of the C heap to the operating system.
#![allow(unsafe_code)]

use pyo3::prelude::*;

use crate::cpython::fallible_objects::{or_none, text};

/// Has the C allocator return free memory to the operating system.
///
/// Returns the name of the function that was called, or ``None`` if the platform has none.
#[pyfunction]
pub fn trim_heap(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    // Releases the GIL, so that other threads can run: a trim takes milliseconds on a large heap.
    let mechanism = py.detach(trim).map(|mechanism| text(py, mechanism));
    Ok(or_none(py, mechanism.transpose()?.map(Bound::into_any)))
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() -> Option<&'static str> {
    // SAFETY: malloc_trim(3) takes its own locks and may be called at any time.
    unsafe { libc::malloc_trim(0) };
    Some("malloc_trim")
}

#[cfg(target_vendor = "apple")]
fn trim() -> Option<&'static str> {
    unsafe extern "C" {
        // <malloc/malloc.h>; a null zone means all zones, a goal of 0 means as much as possible.
        fn malloc_zone_pressure_relief(zone: *mut std::ffi::c_void, goal: usize) -> usize;
    }
    // SAFETY: as declared in <malloc/malloc.h>; the call is thread-safe.
    unsafe { malloc_zone_pressure_relief(std::ptr::null_mut(), 0) };
    Some("malloc_zone_pressure_relief")
}

#[cfg(windows)]
fn trim() -> Option<&'static str> {
    use windows_sys::Win32::System::Memory::{GetProcessHeap, HeapCompact};
    use windows_sys::Win32::System::Threading::{GetCurrentProcess, SetProcessWorkingSetSize};
    // SAFETY: the process's own heap and pseudo-handle are always valid; (SIZE_T)-1 twice trims
    // the working set.
    unsafe {
        HeapCompact(GetProcessHeap(), 0);
        SetProcessWorkingSetSize(GetCurrentProcess(), usize::MAX, usize::MAX);
    }
    Some("HeapCompact")
}

/// musl and others: their allocators return memory when it is freed, or never.
#[cfg(not(any(
    all(target_os = "linux", target_env = "gnu"),
    target_vendor = "apple",
    windows
)))]
fn trim() -> Option<&'static str> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn free_pages_go_back_to_the_os() {
        fn resident() -> usize {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
            pages * 4096
        }
        // Small blocks below the mmap threshold, and one that is kept above them: only a trim can return the
        // memory below it.
        let blocks: Vec<Vec<u8>> = (0..2000).map(|_| vec![1u8; 64 * 1024]).collect();
        let top = vec![1u8; 64 * 1024];
        drop(blocks);
        let before = resident();
        Python::attach(|py| {
            let mechanism = trim_heap(py).unwrap();
            assert_eq!(mechanism.extract::<&str>().unwrap(), "malloc_trim");
        });
        let after = resident();
        assert!(before - after > 100 << 20, "{before} -> {after}");
        drop(top);
    }
}
