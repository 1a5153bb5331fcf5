//! Full NAT: one entry for both directions of a connection.
//!
//! The table is flat. A connection's NAT port is one of [`CANDIDATES`] that its hash names, and the place of
//! its entry is the hash of both ends of the translated side: backend and port, NAT address and NAT port.
//! So a packet of the client finds it at the first candidate, nearly always, and a packet of the backend
//! knows the place at once; two connections with the same translated tuple would need the same place, and
//! so cannot be. An entry is one cache line. It is claimed by one compare-and-exchange of its state
//! word, published by a second store of it, and taken over when it has expired: nothing is ever moved or swept.
//! What most packets of connections that stand go by is smaller than that: [`quick`].

pub mod clients;
mod entry;
pub mod family;
mod lookup;
pub mod quick;
mod rewrite;

pub use entry::{Entry, Phase, Side, Stamp};
pub use lookup::{
    CANDIDATES, Entries, Flow, Found, Ports, Reply, changes, first, note, pair, place, reply,
    search,
};
pub use rewrite::{To, address_sum, addresses4, checksum, frame, header4};
