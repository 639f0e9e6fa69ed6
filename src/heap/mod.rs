//! Objects in memory: the object stream, facts about types, tables by address.

pub mod address_sets;
pub mod address_table;
pub mod object_stream;
pub mod prefetch;
pub mod reference_counts;
pub mod type_facts;
