//! Loads that overlap: most of a heap is not in the cache, and to wait for each object is most of the time.
#![allow(unsafe_code)]

use pyo3::ffi;

/// Asks for what a pointer points to. Never faults, whatever it points to; does nothing where there is no way.
#[inline]
pub fn prefetch<T>(to: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads and writes nothing. SSE is part of x86_64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(to.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above; `prfm` is part of every ARMv8-A.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) to, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = to;
}

/// Asks for the items of a list and the keys of a dict, which lie elsewhere.
///
/// # Safety
/// `object` is live.
#[inline]
pub unsafe fn prefetch_contents(object: *mut ffi::PyObject) {
    // SAFETY: by this function's contract. Both types have five words at least (Include/cpython/listobject.h and
    // dictobject.h): `ob_item` is the fourth, `ma_keys` the fifth or the fourth. Nothing hangs on it.
    unsafe {
        if ffi::PyDict_CheckExact(object) != 0 || ffi::PyList_CheckExact(object) != 0 {
            let words = object.cast::<*const u8>();
            prefetch(words.add(3).read());
            prefetch(words.add(4).read());
        }
    }
}
