//! What users write: the domain model, the YAML files, their validation and their schema.
#![forbid(unsafe_code)]

pub mod model;
