//! What users write: the domain model, the YAML files, their validation and their schema.
//!
//! [`Loader`] turns a directory (or one file) into a [`model::DesiredState`], or into the list of
//! everything that is wrong with it. [`Watcher`] says when it is time to load again.
#![forbid(unsafe_code)]

mod api;
mod duration;
mod fault;
mod file;
mod geo;
pub mod glob;
mod lists;
mod load;
pub mod model;
pub mod policy;
mod prefixes;
mod schema;
mod tree;
mod validate;
mod watch;

pub use api::{
    endpoint_to_json, parse_endpoint_json, parse_scope_json, parse_service_json, service_to_json,
};
pub use duration::{format_duration, parse_duration};
pub use fault::{Fault, FieldFault};
pub use file::parse_prefix;
pub use geo::{Country, Geo};
pub use lists::{Checked, ListLines, MAX_ATTRIBUTION, parse_list};
pub use load::{Given, Loader};
pub use prefixes::{Compared, Net4, PrefixSet};
pub use schema::schema;
pub use validate::is_name;
pub use watch::{WatchError, Watcher};
