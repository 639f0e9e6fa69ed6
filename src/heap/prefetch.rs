//! Prefetching, so that loads from memory overlap: most of a heap is not in the processor's cache, and waiting for one
//! object after the other would take most of the time.
#![allow(unsafe_code)]

use std::{mem, ptr};

use pyo3::ffi;

/// How many objects a `PrefetchRing` has: enough to hide a load from memory.
pub const AHEAD: usize = 16;

/// Objects that are being prefetched, each with a value that belongs to it. An object comes out again when `AHEAD` more
/// have been pushed, and is in the cache by then.
pub struct PrefetchRing<V> {
    entries: [(*mut ffi::PyObject, V); AHEAD],
    oldest: usize,
}

impl<V: Copy + Default> Default for PrefetchRing<V> {
    fn default() -> Self {
        Self {
            entries: [(ptr::null_mut(), V::default()); AHEAD],
            oldest: 0,
        }
    }
}

impl<V: Copy + Default> PrefetchRing<V> {
    /// Starts to prefetch an object, and returns the one that was pushed `AHEAD` objects ago.
    #[inline(always)]
    pub fn push(
        &mut self,
        object: *mut ffi::PyObject,
        value: V,
    ) -> Option<(*mut ffi::PyObject, V)> {
        prefetch(object);
        self.replace_oldest((object, value))
    }

    /// Removes the object that was pushed first.
    #[cold]
    #[inline(never)]
    pub fn pop(&mut self) -> Option<(*mut ffi::PyObject, V)> {
        (0..AHEAD).find_map(|_| self.replace_oldest((ptr::null_mut(), V::default())))
    }

    #[inline(always)]
    fn replace_oldest(
        &mut self,
        entry: (*mut ffi::PyObject, V),
    ) -> Option<(*mut ffi::PyObject, V)> {
        let oldest = mem::replace(&mut self.entries[self.oldest], entry);
        self.oldest = (self.oldest + 1) % AHEAD;
        (!oldest.0.is_null()).then_some(oldest)
    }
}

/// Prefetches what a pointer points to. Never faults, whatever the pointer is; does nothing on other processors.
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

/// Prefetches the items of a list and the keys of a dict, which are in a block of memory of their own.
///
/// # Safety
/// `object` is live.
#[inline]
pub unsafe fn prefetch_contents(object: *mut ffi::PyObject) {
    // SAFETY: by this function's contract. Both types have at least five words (Include/cpython/listobject.h and
    // dictobject.h): `ob_item` is the fourth, `ma_keys` the fifth or the fourth. A wrong word only wastes a prefetch.
    unsafe {
        if ffi::PyDict_CheckExact(object) != 0 || ffi::PyList_CheckExact(object) != 0 {
            let words = object.cast::<*const u8>();
            prefetch(words.add(3).read());
            prefetch(words.add(4).read());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_returns_objects_in_the_order_they_were_pushed() {
        let object = |number: usize| (16 * number) as *mut ffi::PyObject;
        let mut ring = PrefetchRing::default();
        let mut returned = Vec::new();
        for number in 1..=3 * AHEAD {
            returned.extend(ring.push(object(number), number));
        }
        assert_eq!(returned.len(), 2 * AHEAD);
        returned.extend(std::iter::from_fn(|| ring.pop()));
        let pushed: Vec<_> = (1..=3 * AHEAD).map(|at| (object(at), at)).collect();
        assert_eq!(returned, pushed);
    }
}
