//! The graph of references: the closure, external references, referrer paths.

pub mod breadth_first_search;
pub mod callbacks;
pub mod closure;
pub mod external_references;
pub mod referrer_paths;
pub mod running_code;
pub mod scan;
pub mod unreachable;
