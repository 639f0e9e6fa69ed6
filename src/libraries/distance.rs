//! How far from a module of a library an object was met, and where.

use pyo3::ffi;
use rustc_hash::FxHashMap;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_entry, try_insert, try_push};
use crate::heap::address_table::ByteTable;

/// How far from a module something was met.
#[derive(Clone, Copy, Default, PartialEq)]
pub struct Distance {
    /// Whether an instance stood on the way.
    pub past_instance: bool,
    /// Whether a function, or what is like one, stood on the way: what it leads to is needed when it is called.
    pub past_wrapper: bool,
    /// Whether it is a result that a library has cached, or what a root object holds: the library does not call it.
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

    /// As a byte that is not 0.
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

    /// Whether everything that can be reached from `other` can be reached from here.
    pub fn covers(self, other: Self) -> bool {
        self.steps <= other.steps
            && self.past_instance <= other.past_instance
            && self.past_wrapper == other.past_wrapper
            && self.never_called <= other.never_called
    }
}

/// Where objects were met: a byte for each, or a list if none of several places covers the others.
///
/// A walk that forgot the first place at the second would, in a cycle, meet it at both in turn, and never end.
#[derive(Default)]
pub struct VisitedDistances {
    bytes: ByteTable,
    uncovered: FxHashMap<usize, Vec<Distance>>,
}

/// The byte of an object whose places are in the list: no `Distance::code`.
const SEVERAL: u8 = 1;

impl VisitedDistances {
    /// Notes where an object is met; `false` if all that can be reached from there could be reached from where it was
    /// met before.
    #[inline]
    pub fn record(&mut self, object: *mut ffi::PyObject, at: Distance) -> Result<bool, Failure> {
        let byte = self.bytes.get_or_insert(object)?;
        match Distance::of_code(*byte) {
            Some(before) if before.covers(at) => return Ok(false),
            Some(before) if !at.covers(before) => {
                let mut places = Vec::new();
                try_push(&mut places, before)?;
                try_push(&mut places, at)?;
                try_insert(&mut self.uncovered, object as usize, places)?;
                *byte = SEVERAL;
                return Ok(true);
            }
            None if *byte == SEVERAL => {}
            _ => {
                *byte = at.code();
                return Ok(true);
            }
        }
        let places = try_entry(&mut self.uncovered, object as usize)?;
        if places.iter().any(|before| before.covers(at)) {
            return Ok(false);
        }
        places.retain(|&before| !at.covers(before));
        try_push(places, at)?;
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
    fn a_distance_is_what_its_byte_says() {
        for distance in all() {
            assert!(distance.code() > SEVERAL);
            assert!(Distance::of_code(distance.code()) == Some(distance));
        }
    }

    #[test]
    fn what_was_covered_once_stays_covered() {
        let objects = [0x7000_0010, 0x7000_0020, 0x9000_0000_usize];
        let order = |of: &Distance| (of.code() as usize * 37) % 251;
        for object in objects.map(|address| address as *mut ffi::PyObject) {
            let mut met = VisitedDistances::default();
            let mut before: Vec<Distance> = Vec::new();
            let mut distances: Vec<_> = all().collect();
            distances.sort_by_key(order);
            for distance in distances.repeat(2) {
                let is_covered = before.iter().any(|known| known.covers(distance));
                assert_eq!(met.record(object, distance).unwrap(), !is_covered);
                before.push(distance);
            }
        }
    }
}
