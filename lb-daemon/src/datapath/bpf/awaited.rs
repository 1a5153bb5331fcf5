//! Waiting for what programs write into a ring buffer.

use std::{io, os::fd::AsRawFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Who owns a ring buffer: its descriptor is theirs, is the same one always, and stays open for as long as they are there.
pub trait HoldsRing: AsRawFd {}

/// Tells when there is something to read.
///
/// # Errors
/// The kernel's.
pub fn awaited<T: HoldsRing>(holder: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor is that of the ring buffer that the holder owns, as `HoldsRing` says of it. The two types
    // that do so have it in a private field, and nothing takes it out or puts another one in its place.
    unsafe { AsyncFd::register_with_interest(holder, Interest::READABLE) }.map_err(io::Error::from)
}
