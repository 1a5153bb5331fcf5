//! Kubernetes objects to the desired state.
//!
//! Owns the meaning of Service and EndpointSlice objects: an [`Index`] takes them one at a time, in
//! any order, and keeps the [`config::model::Service`]s that they ask for. Pure: it does no I/O, reads
//! no clock and knows nothing of BPF maps. What it holds depends only on the objects that stand, not
//! on the order in which they came.
//!
//! What an object asks for and the model cannot express is a [`Notice`] that names object and field.
//!
//! Not here yet: watching the API server, `lb-daemon` asking this crate for anything, node ports,
//! session affinity, topology, Gateway API. docs/kubernetes.md says what each field becomes.
#![forbid(unsafe_code)]

mod index;
mod join;
mod notice;
mod service;
mod slice;

pub use index::{Changes, Index, Key, Nameless, Settings};
pub use notice::{Effect, Notice};
