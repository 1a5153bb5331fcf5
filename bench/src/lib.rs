//! Measurements of the data path and of what compiles its tables.
//!
//! `packets` runs XDP programs on packets inside the kernel, each pass on a fresh one; `ring` times
//! the construction of rings; `prefilter` compares blocklists of one and of millions of prefixes, and times their loading; `policy` does
//! the same for identity policy; `scale` times changes of a large configuration in a running daemon; `fuzz` judges what becomes of
//! random packets. All
//! of them print tables and keep their figures as JSON, with the machine that they come from. Nothing
//! here decides whether a figure is good: the bars stand beside the figures.

pub mod frame;
pub mod fuzz;
pub mod machine;
pub mod packet;
pub mod packets;
pub mod policy;
pub mod prefilter;
pub mod report;
pub mod ring;
pub mod scale;
pub mod stats;
