//! Which files and modules are a library's.

use std::path::MAIN_SEPARATOR;

use pyo3::prelude::*;
use rustc_hash::FxHashSet;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::{try_add, try_copy, try_push};

/// Which modules are libraries: by their folders, or by their names if they have no file.
///
/// `folders` are pairs of a folder and whether the files in it are a library's. The deepest folder decides; files
/// outside all folders are the program's. `builtin_names` are the top-level modules without a file that are libraries;
/// a name that ends in `*` stands for all names with that prefix.
#[pyclass(module = "fastpurge._core", frozen)]
#[derive(Default)]
pub struct Libraries {
    /// Without a separator at the end, longest first. An entry may also be a single file.
    folders: Vec<(String, bool)>,
    builtin_names: FxHashSet<String>,
    builtin_prefixes: Vec<String>,
}

impl Libraries {
    pub fn add_folder(&mut self, folder: &str, is_library: bool) -> Result<(), Failure> {
        let path = try_copy(folder.trim_end_matches(MAIN_SEPARATOR))?;
        try_push(&mut self.folders, (path, is_library))?;
        let longest_first = |(folder, _): &(String, bool)| std::cmp::Reverse(folder.len());
        self.folders.sort_unstable_by_key(longest_first);
        Ok(())
    }

    pub fn add_builtin(&mut self, name: &str) -> Result<(), Failure> {
        match name.strip_suffix('*') {
            Some(prefix) => try_push(&mut self.builtin_prefixes, try_copy(prefix)?),
            None => try_add(&mut self.builtin_names, try_copy(name)?).map(drop),
        }
    }

    pub fn has_builtin(&self, name: &str) -> bool {
        let matches = |prefix: &String| name.starts_with(prefix.as_str());
        self.builtin_names.contains(name) || self.builtin_prefixes.iter().any(matches)
    }

    /// Whether a file is a library's: the deepest folder decides, which is the one with the longest path. None if the
    /// file is in none of the folders.
    pub fn is_library_file(&self, file: &str) -> Option<bool> {
        let folder = self.folders.iter().find(|(folder, _)| {
            let rest = file.strip_prefix(folder.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(MAIN_SEPARATOR))
        });
        folder.map(|&(_, is_library)| is_library)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libraries() -> Libraries {
        let mut libraries = Libraries::default();
        for (folder, is_library) in [
            ("/env/lib", true),
            ("/env/lib/site-packages/app", false),
            ("/home/me", false),
            ("/home/me/.venv/lib", true),
            ("/home/me/six.py", true),
        ] {
            libraries.add_folder(folder, is_library).unwrap();
        }
        libraries
    }

    #[test]
    fn the_deepest_folder_decides() {
        let libraries = libraries();
        assert_eq!(
            libraries.is_library_file("/env/lib/json/__init__.py"),
            Some(true)
        );
        assert_eq!(
            libraries.is_library_file("/env/lib/site-packages/app/nodes.py"),
            Some(false)
        );
        assert_eq!(libraries.is_library_file("/home/me/script.py"), Some(false));
        assert_eq!(
            libraries.is_library_file("/home/me/.venv/lib/json/nn.py"),
            Some(true)
        );
        assert_eq!(libraries.is_library_file("/home/me/six.py"), Some(true));
    }

    #[test]
    fn a_folder_is_no_plain_string_prefix() {
        assert_eq!(libraries().is_library_file("/env/library/thing.py"), None);
        assert_eq!(
            libraries().is_library_file("relative/env/lib/thing.py"),
            None
        );
    }
}
