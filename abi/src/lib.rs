//! Every byte that the kernel and the daemon share, and the packet code that both run.
//!
//! `no_std`, no I/O, no allocation. What stands in a map is in [`table`], [`flow`], [`prefix`];
//! what is done with a packet is in [`wire`], [`upper`], [`hash`], [`pick`], [`sock`], [`outer`], [`reply`] and
//! [`checksum`], as pure functions that run here under test and in the kernel unchanged. Every exit of a program has
//! a [`reason::Reason`].
#![no_std]

pub mod addr;
pub mod chance;
pub mod checksum;
pub mod choice;
pub mod constants;
pub mod early;
pub mod event;
pub mod flow;
pub mod guard;
pub mod hash;
pub mod limits;
pub mod names;
pub mod nat;
pub mod outer;
pub mod pick;
pub mod policy;
pub mod prefix;
pub mod ranges;
pub mod reason;
pub mod reply;
pub mod routes;
pub mod scope;
pub mod server;
pub mod sock;
pub mod spans;
pub mod summary;
pub mod synproxy;
pub mod table;
pub mod upper;
pub mod wire;
