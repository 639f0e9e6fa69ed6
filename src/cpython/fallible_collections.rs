//! Collections that report running out of memory as an error.
//!
//! Rust's own collections abort the process, and sweeps run when memory is short.

use std::hash::Hash;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::cpython::failure::Failure;

#[inline]
pub fn try_push<T>(list: &mut Vec<T>, item: T) -> Result<(), Failure> {
    if list.len() == list.capacity() {
        list.try_reserve(1).map_err(|_| Failure::OutOfMemory)?;
    }
    list.push(item);
    Ok(())
}

pub fn try_extend<T>(list: &mut Vec<T>, items: impl IntoIterator<Item = T>) -> Result<(), Failure> {
    items.into_iter().try_for_each(|item| try_push(list, item))
}

pub fn try_collect<T>(items: impl IntoIterator<Item = T>) -> Result<Vec<T>, Failure> {
    let mut list = Vec::new();
    try_extend(&mut list, items)?;
    Ok(list)
}

/// An empty list with a capacity.
pub fn try_with_capacity<T>(count: usize) -> Result<Vec<T>, Failure> {
    let mut list = Vec::new();
    list.try_reserve_exact(count)
        .map_err(|_| Failure::OutOfMemory)?;
    Ok(list)
}

/// A list of `count` copies of an item.
pub fn try_repeat<T: Clone>(item: T, count: usize) -> Result<Vec<T>, Failure> {
    let mut list = try_with_capacity(count)?;
    list.resize(count, item);
    Ok(list)
}

/// An array on the heap, filled with copies of an item.
pub fn try_boxed_array<T: Clone, const SIZE: usize>(item: T) -> Result<Box<[T; SIZE]>, Failure> {
    let table = try_repeat(item, SIZE)?.into_boxed_slice();
    table.try_into().map_err(|_| Failure::OutOfMemory)
}

/// The value of a key, which is inserted as the default if it is missing.
#[inline]
pub fn try_entry<K: Eq + Hash, V: Default>(
    map: &mut FxHashMap<K, V>,
    key: K,
) -> Result<&mut V, Failure> {
    map.try_reserve(1).map_err(|_| Failure::OutOfMemory)?;
    Ok(map.entry(key).or_default())
}

#[inline]
pub fn try_insert<K: Eq + Hash, V>(
    map: &mut FxHashMap<K, V>,
    key: K,
    value: V,
) -> Result<Option<V>, Failure> {
    map.try_reserve(1).map_err(|_| Failure::OutOfMemory)?;
    Ok(map.insert(key, value))
}

/// Adds a key to a set; `true` if it was not in it.
pub fn try_add<K: Eq + Hash>(set: &mut FxHashSet<K>, key: K) -> Result<bool, Failure> {
    set.try_reserve(1).map_err(|_| Failure::OutOfMemory)?;
    Ok(set.insert(key))
}

pub fn try_copy(text: &str) -> Result<String, Failure> {
    let mut copy = String::new();
    let room = copy.try_reserve_exact(text.len());
    room.map_err(|_| Failure::OutOfMemory)?;
    copy.push_str(text);
    Ok(copy)
}
