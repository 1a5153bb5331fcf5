//! Every byte that the kernel and the daemon share, and the packet code that both run.
#![no_std]

pub mod reason;
