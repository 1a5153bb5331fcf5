//! One file, one decision each.

pub(crate) mod decap;
pub(crate) mod forward;
pub(crate) mod guard;
pub(crate) mod moving;
pub(crate) mod prefilter;
pub(crate) mod service;
