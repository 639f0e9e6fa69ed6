//! Which types and modules are a library's, and what libraries keep.

pub mod distance;
pub mod imported_modules;
pub mod kinds;
pub mod library_folders;
pub mod library_globals;
pub mod library_types;
pub mod root_objects;
