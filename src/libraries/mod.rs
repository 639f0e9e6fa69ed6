//! Which types and modules are a library's, and the objects that libraries reference globally.

pub mod distance;
pub mod imported_modules;
pub mod kinds;
pub mod library_folders;
pub mod library_globals;
pub mod library_types;
pub mod root_objects;
