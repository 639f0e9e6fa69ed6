//! How far from a module of a library an object was met, and where.

use pyo3::ffi;

use crate::gc::Failure;
use crate::pages::Pages;
use crate::room::try_repeat;

/// How far from a module something was met.
#[derive(Clone, Copy, Default, PartialEq)]
pub struct Distance {
    /// Whether an instance stood on the way.
    pub past_instance: bool,
    /// Whether a function, or what is like one, stood on the way: what it leads to is needed when it is called.
    pub past_wrapper: bool,
    /// Whether it is a result that a library has cached, or what a root object holds: the library does not call it.
    pub uncalled: bool,
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
        let flags = [true, self.past_instance, self.past_wrapper, self.uncalled];
        let flags = flags
            .iter()
            .fold(0, |code, &flag| code << 1 | u8::from(flag));
        flags << 4 | self.steps
    }

    fn of_code(code: u8) -> Option<Self> {
        (code != 0).then_some(Self {
            past_instance: code & 0x40 != 0,
            past_wrapper: code & 0x20 != 0,
            uncalled: code & 0x10 != 0,
            steps: code & MOST_STEPS,
        })
    }

    /// Whether everything that can be reached from `other` can be reached from here.
    pub fn covers(self, other: Self) -> bool {
        self.steps <= other.steps
            && self.past_instance <= other.past_instance
            && self.past_wrapper >= other.past_wrapper
            && self.uncalled <= other.uncalled
    }
}

/// Where objects were met last, a byte for each.
pub struct Met(Pages<Vec<u8>, 1024>);

/// How many bytes of memory a block stands for.
const PAGE: usize = 1 << 14;
/// No two objects begin within this many bytes: the head of an object alone has as many.
const GRANULE: usize = 16;

impl Default for Met {
    fn default() -> Self {
        Self(Pages::new(|| try_repeat(0, PAGE / GRANULE)))
    }
}

impl Met {
    /// Notes where an object is met, and gives where it was met before.
    #[inline]
    pub fn note(
        &mut self,
        object: *mut ffi::PyObject,
        at: Distance,
    ) -> Result<Option<Distance>, Failure> {
        let address = object as usize;
        let byte = &mut self.0.made(address / PAGE)?[address % PAGE / GRANULE];
        let before = std::mem::replace(byte, at.code());
        Ok(Distance::of_code(before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_is_what_was_noted() {
        let mut met = Met::default();
        let objects = [0x7000_0010, 0x7000_0020, 0x9000_0000_usize];
        let mut distances = Vec::new();
        for steps in 0..=MOST_STEPS {
            for flags in 0..8 {
                distances.push(Distance {
                    past_instance: flags & 1 != 0,
                    past_wrapper: flags & 2 != 0,
                    uncalled: flags & 4 != 0,
                    steps,
                });
            }
        }
        for object in objects.map(|address| address as *mut ffi::PyObject) {
            let mut before = None;
            for &distance in &distances {
                assert!(met.note(object, distance).unwrap() == before);
                before = Some(distance);
            }
        }
    }
}
