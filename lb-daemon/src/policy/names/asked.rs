//! Questions that endpoints asked and that have no answer yet: an answer nobody asked for is not believed.
//! Whoever wants to forge one has to guess the port and the number of the question.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

use super::dns::Message;

/// Questions that are remembered; the oldest make room.
const MOST: usize = 1 << 14;
/// How long an answer may take, in milliseconds.
const PATIENCE: u64 = 30_000;

/// Interface, endpoint's address and port, server, number.
type Key = (u32, (IpAddr, u16), IpAddr, u16);

/// See the module.
#[derive(Debug, Default)]
pub struct Asked {
    open: BTreeMap<Key, (String, u64)>,
    order: VecDeque<(Key, u64)>,
}

impl Asked {
    fn key(ifindex: u32, message: &Message) -> Key {
        (ifindex, message.local, message.server, message.id)
    }

    /// Remembers a question. `now`: milliseconds.
    pub fn ask(&mut self, ifindex: u32, question: &Message, now: u64) {
        let key = Self::key(ifindex, question);
        self.open.insert(key, (question.name.clone(), now));
        self.order.push_back((key, now));
        while self.order.len() > MOST
            || self.order.front().is_some_and(|(_, at)| now.saturating_sub(*at) > PATIENCE)
        {
            let Some((key, at)) = self.order.pop_front() else { return };
            // The same question may have been asked again.
            if self.open.get(&key).is_some_and(|(_, asked)| *asked == at) {
                self.open.remove(&key);
            }
        }
    }

    /// Whether this is the answer to a question, which then has it.
    pub fn answers(&mut self, ifindex: u32, answer: &Message, now: u64) -> bool {
        let key = Self::key(ifindex, answer);
        let own = self
            .open
            .get(&key)
            .is_some_and(|(name, at)| *name == answer.name && now.saturating_sub(*at) <= PATIENCE);
        own && self.open.remove(&key).is_some()
    }
}
