//! Prefixes and sources that look random, the same in every run.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use config::Net4;
use ipnet::Ipv6Net;

use crate::packet::{Flow, PORT};

/// SplitMix64 (Steele, Lea, Flood, 2014).
pub(crate) struct Random(pub(crate) u64);

const DST4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const DST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Different prefixes: nine of ten are addresses, the others have 24 to 31 bits. The first is an
    /// address.
    pub(crate) fn nets4(&mut self, count: usize) -> Vec<Net4> {
        let mut nets = Vec::with_capacity(count);
        let mut known = std::collections::HashSet::with_capacity(count);
        while nets.len() < count {
            let random = self.next();
            let short = random.is_multiple_of(10) && !nets.is_empty();
            let bits = if short { 24 + (random >> 8) as u8 % 8 } else { 32 };
            let net = Net4::new((random >> 32) as u32, bits);
            if known.insert(net) {
                nets.push(net);
            }
        }
        nets
    }

    /// Different prefixes of 32 to 64 bits and of addresses, spread over 2000::/3.
    pub(super) fn nets6(&mut self, count: usize) -> Vec<Ipv6Net> {
        let mut known = std::collections::BTreeSet::new();
        let mut nets = Vec::with_capacity(count);
        while nets.len() < count {
            let address = self.address6();
            let bits = [32, 40, 44, 48, 48, 48, 56, 64, 64, 128][self.next() as usize % 10];
            let net = Ipv6Net::new_assert(address, bits).trunc();
            if known.insert(net) {
                nets.push(net);
            }
        }
        nets
    }

    fn address6(&mut self) -> Ipv6Addr {
        let high = 0x2000_0000_0000_0000 | self.next() >> 3;
        Ipv6Addr::from(u128::from(high) << 64 | u128::from(self.next()))
    }

    /// Flows from sources that `wanted` takes.
    pub(super) fn sources4(&mut self, count: usize, wanted: impl Fn(u32) -> bool) -> Vec<Flow> {
        let mut flows = Vec::with_capacity(count);
        while flows.len() < count {
            let source = (self.next() >> 32) as u32;
            if wanted(source) {
                flows.push(flow4(source));
            }
        }
        flows
    }

    /// Flows from sources in these prefixes, each as likely as any other.
    pub(super) fn within4(&mut self, count: usize, nets: &[Net4]) -> Vec<Flow> {
        let mut one = || {
            let net = nets[self.next() as usize % nets.len()];
            let room = u64::from(net.last() - net.first()) + 1;
            flow4(net.first() + (self.next() % room) as u32)
        };
        (0..count).map(|_| one()).collect()
    }

    /// As [`Self::sources4`].
    pub(super) fn sources6(&mut self, count: usize, wanted: impl Fn(IpAddr) -> bool) -> Vec<Flow> {
        let mut flows = Vec::with_capacity(count);
        while flows.len() < count {
            let source = IpAddr::from(self.address6());
            if wanted(source) {
                flows.push(Flow { src: source, dst: DST6.into(), port: 40_000, to: PORT });
            }
        }
        flows
    }
}

fn flow4(source: u32) -> Flow {
    Flow { src: Ipv4Addr::from(source).into(), dst: DST4.into(), port: 40_000, to: PORT }
}
