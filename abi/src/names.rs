//! DNS messages over UDP, from the policy programs to the daemon: what endpoints ask, and what they are
//! answered. Each is a copy of a frame that policy let pass.

use crate::table::shared;

/// First bytes of a frame that are handed over: headers, and the 1,232 bytes of a message that do not need
/// fragments anywhere.
pub const CAPTURED: usize = 1536;
/// Bytes of the ring buffer, a power of two.
pub const RING_BYTES: u32 = 1 << 20;
/// The port of DNS servers, in the order of the network.
pub const PORT: u16 = 53u16.to_be();

/// A record of the ring buffer.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    ifindex: u32,
    captured: u32,
    length: u32,
    way: u32,
    bytes: [u8; CAPTURED],
}

shared!(Message, 1552, { ifindex @ 0, captured @ 4, length @ 8, way @ 12, bytes @ 16 });

impl Message {
    /// Byte offset of the frame.
    pub const BYTES: usize = core::mem::offset_of!(Self, bytes);

    /// What stands in front of the frame: interface, bytes of the frame that follow, all its bytes, and
    /// which way it goes as a [`crate::policy::Way`].
    #[inline(always)]
    #[must_use]
    pub const fn head(ifindex: u32, captured: u32, length: u32, way: u32) -> [u32; 4] {
        [ifindex, captured, length, way]
    }

    /// From a record's bytes. `None`: it is of another length, or says that it has more than it can.
    #[must_use]
    pub fn from_bytes(record: &[u8]) -> Option<Self> {
        let record: &[u8; size_of::<Self>()] = record.try_into().ok()?;
        // SAFETY: integers only, without padding (`shared!`): any bytes are one; the read is unaligned.
        let message = unsafe { record.as_ptr().cast::<Self>().read_unaligned() };
        (message.captured as usize <= CAPTURED).then_some(message)
    }

    /// The interface that it went through.
    #[must_use]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Whether it went to the endpoint, else from it.
    #[must_use]
    pub const fn is_answer(&self) -> bool {
        self.way == crate::policy::Way::In as u32
    }

    /// The frame's first bytes.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.bytes[..(self.captured as usize).min(CAPTURED)]
    }

    /// Whether these are all of it.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.captured == self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_message() {
        let mut record = [7u8; size_of::<Message>()];
        for (at, word) in Message::head(3, 2, 4, 1).into_iter().enumerate() {
            record[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        let message = Message::from_bytes(&record).unwrap();
        assert_eq!((message.ifindex(), message.frame()), (3, &[7u8, 7][..]));
        assert!(!message.is_answer() && !message.is_whole());
        record[12] = 0;
        record[8] = 2;
        let message = Message::from_bytes(&record).unwrap();
        assert!(message.is_answer() && message.is_whole());
        record[6] = 1;
        assert_eq!(Message::from_bytes(&record), None);
        assert_eq!(Message::from_bytes(&record[1..]), None);
    }
}
