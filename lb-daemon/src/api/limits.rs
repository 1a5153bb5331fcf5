//! Every bound of the API, in one place.

use std::time::Duration;

/// Largest request body, in bytes.
pub const BODY_BYTES: usize = 1 << 20;

/// Largest body of a change of many prefixes at once, in bytes.
pub const BULK_BYTES: usize = 64 << 20;

/// Such bodies that are read at a time.
pub const BULK_BODIES: usize = 2;

/// Connections that one listener serves at a time; further ones wait in the kernel's queue.
pub const CONNECTIONS: usize = 256;

/// Largest request head (request line and headers), in bytes.
pub const HEAD_BYTES: usize = 64 << 10;

/// Time for a request's head to arrive, and for an idle connection to say something.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for a request's body to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for all of such a body to arrive.
pub const BULK_TIMEOUT: Duration = Duration::from_secs(120);

/// Time for the owner task to accept a command and to answer it.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Age at which a connection is closed after the request it is busy with.
pub const CONNECTION_AGE: Duration = Duration::from_secs(300);

/// Time for requests under way to end once the listener shuts down.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);

/// Entries of connections in one answer.
pub const CONNECTIONS_SHOWN: usize = 100_000;

/// Requests per second that one listener answers in the long run.
pub const REQUESTS_PER_SECOND: u32 = 200;

/// Requests that one listener answers at once after a quiet time.
pub const REQUEST_BURST: u32 = 400;

const _: () = {
    assert!(REQUEST_BURST >= REQUESTS_PER_SECOND);
    assert!(HEAD_BYTES >= 8192, "smaller heads than this are refused by nobody else");
};
