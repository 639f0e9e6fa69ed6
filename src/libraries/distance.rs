//! How far from a library's module a walk reaches an object, and through what.

use pyo3::ffi;
use rustc_hash::FxHashMap;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_entry, try_insert, try_push};
use crate::heap::address_table::ByteTable;

/// How far from a module a walk reached an object.
#[derive(Clone, Copy, Default, PartialEq)]
pub struct Distance {
    /// Whether the path leads through an instance.
    pub past_instance: bool,
    /// Whether the path leads through a wrapper (a function or the like), which needs what it leads to when it is called.
    pub past_wrapper: bool,
    /// Whether the path leads through a cache or a root object: the library does not call what these lead to.
    pub never_called: bool,
    pub steps: u8,
}

pub const MOST_STEPS: u8 = 15;

impl Distance {
    pub fn step(self) -> Self {
        Self {
            steps: self.steps + 1,
            ..self
        }
    }

    /// The distance as a byte that is neither 0 nor `SEVERAL`.
    fn code(self) -> u8 {
        let flags = [
            true,
            self.past_instance,
            self.past_wrapper,
            self.never_called,
        ];
        let flags = flags
            .iter()
            .fold(0, |code, &flag| code << 1 | u8::from(flag));
        flags << 4 | self.steps
    }

    fn of_code(code: u8) -> Option<Self> {
        (code > SEVERAL).then_some(Self {
            past_instance: code & 0x40 != 0,
            past_wrapper: code & 0x20 != 0,
            never_called: code & 0x10 != 0,
            steps: code & MOST_STEPS,
        })
    }

    /// Whether a walk at this distance reaches everything that it reaches at `other`.
    pub fn covers(self, other: Self) -> bool {
        self.steps <= other.steps
            && self.past_instance <= other.past_instance
            && self.past_wrapper == other.past_wrapper
            && self.never_called <= other.never_called
    }
}

/// At which distances objects were visited: a byte for each object, or a list if it was visited at several distances
/// that do not cover each other.
///
/// If only the last distance were kept, a walk around a cycle could visit an object at two distances in turn for ever.
#[derive(Default)]
pub struct VisitedDistances {
    bytes: ByteTable,
    uncovered: FxHashMap<usize, Vec<Distance>>,
}

/// The byte of an object whose distances are in a list. No `Distance::code` has this value.
const SEVERAL: u8 = 1;

impl VisitedDistances {
    /// Records that an object is visited at a distance; `false` if a distance recorded before covers this one.
    #[inline]
    pub fn record(&mut self, object: *mut ffi::PyObject, at: Distance) -> Result<bool, Failure> {
        let byte = self.bytes.get_or_insert(object)?;
        match Distance::of_code(*byte) {
            Some(before) if before.covers(at) => return Ok(false),
            Some(before) if !at.covers(before) => {
                let mut distances = Vec::new();
                try_push(&mut distances, before)?;
                try_push(&mut distances, at)?;
                try_insert(&mut self.uncovered, object as usize, distances)?;
                *byte = SEVERAL;
                return Ok(true);
            }
            None if *byte == SEVERAL => {}
            _ => {
                *byte = at.code();
                return Ok(true);
            }
        }
        let distances = try_entry(&mut self.uncovered, object as usize)?;
        if distances.iter().any(|before| before.covers(at)) {
            return Ok(false);
        }
        distances.retain(|&before| !at.covers(before));
        try_push(distances, at)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Distance> {
        (0..=MOST_STEPS).flat_map(|steps| {
            (0..8).map(move |flags| Distance {
                past_instance: flags & 1 != 0,
                past_wrapper: flags & 2 != 0,
                never_called: flags & 4 != 0,
                steps,
            })
        })
    }

    #[test]
    fn a_distance_and_its_byte_correspond() {
        for distance in all() {
            assert!(distance.code() > SEVERAL);
            assert!(Distance::of_code(distance.code()) == Some(distance));
        }
    }

    #[test]
    fn a_covered_distance_stays_covered() {
        let objects = [0x7000_0010, 0x7000_0020, 0x9000_0000_usize];
        let order = |of: &Distance| (of.code() as usize * 37) % 251;
        for object in objects.map(|address| address as *mut ffi::PyObject) {
            let mut visited = VisitedDistances::default();
            let mut before: Vec<Distance> = Vec::new();
            let mut distances: Vec<_> = all().collect();
            distances.sort_by_key(order);
            for distance in distances.repeat(2) {
                let is_covered = before.iter().any(|known| known.covers(distance));
                assert_eq!(visited.record(object, distance).unwrap(), !is_covered);
                before.push(distance);
            }
        }
    }
}
