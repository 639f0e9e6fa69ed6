//! Access to the interpreter: calls that report running out of memory, and functions outside the stable ABI.

pub mod context_managers;
pub mod failure;
pub mod fallible_collections;
pub mod fallible_objects;
pub mod frame_locals;
pub mod frames;
pub mod gc_pause;
pub mod read_unless_inside;
pub mod type_attributes;
pub mod unstable_functions;
