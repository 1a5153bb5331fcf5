//! The prefixes of a set of policy tables: [`abi::policy::nets`]. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    mem::take,
};

use abi::{
    policy::nets::{self, Known, NET_WAYS, NetBucket, Told},
    prefix::Net6,
};
use ipnet::IpNet;

use super::{Identity, Op};
use crate::plan::Full;

/// What stands in a way that was given back: it is of no prefix, and programs may still look at its address.
const WAITS: u32 = u32::MAX;

/// Where a prefix stands.
#[derive(Clone, Copy)]
struct Spot {
    key: Net6,
    bucket: u32,
    way: usize,
    identity: Identity,
}

/// See the module.
pub(super) struct Nets {
    filter_mask: u32,
    mask: u32,
    known: u64,
    at: BTreeMap<IpNet, Spot>,
    metas: HashMap<u32, [u32; NET_WAYS]>,
    rows: HashMap<u32, [u64; 2]>,
    /// How many prefixes each bit is told for: bits of rows, of short lengths, of families.
    tellers: HashMap<(u32, usize, u64), u32>,
    waiting: Vec<(u32, usize)>,
}

/// The row that stands for [`Known`] among the tellers: no table has so many.
const KNOWN: u32 = u32::MAX;

/// Rows of the filter and buckets, both powers of two, for this many prefixes. Where two prefixes in three
/// have a bucket of their own, hardly one in 10^8 finds both of its buckets full.
pub(crate) fn room(prefixes: u32) -> [u32; 2] {
    let buckets = prefixes.saturating_add(prefixes / 2).max(64).next_power_of_two();
    [buckets.min(1 << 20), buckets.min(1 << 25)]
}

impl Nets {
    pub(super) fn new(prefixes: u32) -> Self {
        let [filter, buckets] = room(prefixes);
        Self {
            filter_mask: filter - 1,
            mask: buckets - 1,
            known: 0,
            at: BTreeMap::new(),
            metas: HashMap::new(),
            rows: HashMap::new(),
            tellers: HashMap::new(),
            waiting: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.at.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = IpNet> {
        self.at.keys().copied()
    }

    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The programs have left what was given back.
    pub(super) fn release(&mut self) {
        for (bucket, way) in take(&mut self.waiting) {
            if let Some(metas) = self.metas.get_mut(&bucket) {
                metas[way] = 0;
                if *metas == [0; NET_WAYS] {
                    self.metas.remove(&bucket);
                }
            }
        }
    }

    /// Puts a prefix there, or gives it another identity.
    pub(super) fn put(
        &mut self,
        net: IpNet,
        identity: Identity,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        if let Some(spot) = self.at.get_mut(&net) {
            if spot.identity != identity {
                spot.identity = identity;
                let Spot { key, bucket, way, .. } = *spot;
                self.store(bucket, way, NetBucket::meta(key.len, identity), ops);
            }
            return Ok(());
        }
        // Multicast where addresses of IPv4 stand: no packet from or for it is judged.
        let Some(key) = nets::key(net.addr(), net.prefix_len()) else { return Ok(()) };
        let [bucket, other] = key.buckets().map(|row| row & self.mask);
        let used = |bucket: u32| {
            self.metas.get(&bucket).map_or(0, |m| m.iter().filter(|&&meta| meta != 0).count())
        };
        let bucket = if used(other) < used(bucket) { other } else { bucket };
        let metas = self.metas.get(&bucket).copied().unwrap_or_default();
        let way = metas.iter().position(|&meta| meta == 0).ok_or(Full("P_NETS"))?;
        ops.push(Op::Net { bucket, way, words: [key.hi, key.lo] });
        self.store(bucket, way, NetBucket::meta(key.len, identity), ops);
        for bit in self.bits(key) {
            let tellers = self.tellers.entry(bit).or_default();
            *tellers += 1;
            if *tellers == 1 {
                self.tell(bit, true, ops);
            }
        }
        self.at.insert(net, Spot { key, bucket, way, identity });
        Ok(())
    }

    pub(super) fn remove(&mut self, net: IpNet, ops: &mut Vec<Op>) {
        let Some(Spot { key, bucket, way, .. }) = self.at.remove(&net) else { return };
        self.store(bucket, way, 0, ops);
        if let Some(metas) = self.metas.get_mut(&bucket) {
            metas[way] = WAITS;
        }
        self.waiting.push((bucket, way));
        for bit in self.bits(key) {
            let Some(tellers) = self.tellers.get_mut(&bit) else { continue };
            *tellers -= 1;
            if *tellers == 0 {
                self.tellers.remove(&bit);
                self.tell(bit, false, ops);
            }
        }
    }

    /// What tells of a prefix: row, word, bit.
    fn bits(&self, key: Net6) -> [(u32, usize, u64); 2] {
        let length = match nets::told(key) {
            Told::Row(row, word, bit) => (row & self.filter_mask, word, bit),
            Told::Short(bit) => (KNOWN, 0, bit),
        };
        [length, (KNOWN, 0, Known::any(key))]
    }

    fn tell(&mut self, (row, word, bit): (u32, usize, u64), on: bool, ops: &mut Vec<Op>) {
        if row == KNOWN {
            self.known = if on { self.known | bit } else { self.known & !bit };
            ops.push(Op::Known(self.known));
            return;
        }
        let words = self.rows.entry(row).or_default();
        words[word] = if on { words[word] | bit } else { words[word] & !bit };
        ops.push(Op::NetFilter { row, word, bits: words[word] });
    }

    /// Stores the half of a word that is a way's.
    fn store(&mut self, bucket: u32, way: usize, meta: u32, ops: &mut Vec<Op>) {
        let metas = self.metas.entry(bucket).or_default();
        metas[way] = meta;
        let half = |way: usize| match metas.get(way) {
            Some(&WAITS) | None => 0,
            Some(&meta) => u64::from(meta),
        };
        let index = way / 2;
        ops.push(Op::NetMeta { bucket, index, word: half(2 * index) | half(2 * index + 1) << 32 });
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use abi::policy::nets::Nets as _;
    use proptest::prelude::*;

    use super::*;

    const PREFIXES: u32 = 512;

    /// What the kernel would hold.
    #[derive(Default)]
    struct Held {
        buckets: HashMap<u32, [u64; 8]>,
        made: HashMap<u32, NetBucket>,
        filter: HashMap<u32, [u64; 2]>,
        known: u64,
    }

    impl Held {
        fn apply(&mut self, ops: &[Op]) {
            for op in ops {
                match *op {
                    Op::Net { bucket, way, words } => {
                        let held = self.buckets.entry(bucket).or_default();
                        let meta = held[NetBucket::META + way / 2] >> (way % 2 * 32);
                        assert_eq!(meta as u32, 0, "an address is written while nobody reads it");
                        held[way * 2..way * 2 + 2].copy_from_slice(&words);
                        self.made.insert(bucket, NetBucket::from_words(*held));
                    }
                    Op::NetMeta { bucket, index, word } => {
                        let held = self.buckets.entry(bucket).or_default();
                        held[NetBucket::META + index] = word;
                        self.made.insert(bucket, NetBucket::from_words(*held));
                    }
                    Op::NetFilter { row, word, bits } => {
                        self.filter.entry(row).or_default()[word] = bits;
                    }
                    Op::Known(word) => self.known = word,
                    ref other => panic!("{other:?}"),
                }
            }
        }
    }

    impl abi::policy::nets::Nets for Held {
        fn known(&self) -> Known {
            Known(self.known)
        }
        fn filter(&self, row: u32) -> [u64; 2] {
            self.filter.get(&(row & (room(PREFIXES)[0] - 1))).copied().unwrap_or_default()
        }
        fn net_bucket(&self, index: u32) -> Option<&NetBucket> {
            const EMPTY: &NetBucket = &NetBucket::from_words([0; 8]);
            Some(self.made.get(&(index & (room(PREFIXES)[1] - 1))).unwrap_or(EMPTY))
        }
    }

    fn naive(nets: &BTreeMap<IpNet, Identity>, address: IpAddr) -> Identity {
        let covers = nets.iter().filter(|(net, _)| net.contains(&address));
        covers.max_by_key(|(net, _)| net.prefix_len()).map_or(0, |(_, identity)| *identity)
    }

    /// Few bits vary, so that prefixes lie in each other.
    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..4u32, 0..4u32, 0..4u32, 0..4u32).prop_map(|(a, b, c, d)| IpAddr::from(
                ((10 + a) << 24 | b << 16 | c << 8 | d).to_be_bytes()
            )),
            (0..4u128, 0..4u128, 0..4u128, 0..4u128).prop_map(|(a, b, c, d)| {
                IpAddr::from((0x2001 << 112 | a << 96 | b << 78 | c << 60 | d).to_be_bytes())
            }),
            any::<u32>().prop_map(|a| IpAddr::from(a.to_be_bytes())),
            any::<u128>().prop_map(|a| IpAddr::from(a.to_be_bytes())),
        ]
    }

    /// Also where addresses of IPv4 stand.
    fn net() -> impl Strategy<Value = IpNet> {
        let there = (0..4u128).prop_map(|a| IpAddr::from((0xffff << 112 | a << 60).to_be_bytes()));
        (prop_oneof![20 => address(), 1 => there], 0..=128u8).prop_map(|(address, len)| {
            let len = if address.is_ipv4() { len % 33 } else { len };
            IpNet::new(address, len).expect("a length").trunc()
        })
    }

    proptest! {
        #[test]
        fn the_longest_prefix_is_found(
            rounds in prop::collection::vec(
                (prop::collection::vec((net(), 0..1000u32), 0..40), any::<prop::sample::Index>()),
                1..6,
            ),
            addresses in prop::collection::vec(address(), 50),
        ) {
            let (mut nets, mut held) = (Nets::new(PREFIXES), Held::default());
            let mut wanted = BTreeMap::new();
            for (puts, gone) in rounds {
                let mut ops = Vec::new();
                for (net, n) in puts {
                    let identity = abi::limits::policy::FIRST_CIDR + n;
                    nets.put(net, identity, &mut ops).expect("room");
                    if nets::key(net.addr(), net.prefix_len()).is_some() {
                        wanted.insert(net, identity);
                    }
                }
                let gone: Vec<IpNet> = wanted.keys().copied().skip(gone.index(5)).step_by(3).collect();
                for net in gone {
                    wanted.remove(&net);
                    nets.remove(net, &mut ops);
                }
                held.apply(&ops);
                prop_assert_eq!(nets.len(), wanted.len());
                let inside = wanted.keys().flat_map(|net| [net.network(), net.broadcast()]);
                for address in addresses.iter().copied().chain(inside) {
                    let found = abi::policy::nets::identity(&held, address.into());
                    prop_assert_eq!(found, naive(&wanted, address), "{}", address);
                }
                nets.release();
            }
            for net in wanted.into_keys() {
                let mut ops = Vec::new();
                nets.remove(net, &mut ops);
                held.apply(&ops);
            }
            prop_assert_eq!((held.known().0, nets.len()), (0, 0));
            prop_assert!(held.filter.values().all(|words| *words == [0, 0]));
        }
    }

    #[test]
    fn a_place_that_was_given_back_waits() {
        let mut nets = Nets::new(PREFIXES);
        let net: IpNet = "192.0.2.0/24".parse().expect("a prefix");
        let mut ops = Vec::new();
        nets.put(net, 1 << 24, &mut ops).expect("room");
        nets.remove(net, &mut ops);
        let used = |nets: &Nets| nets.metas.values().flatten().filter(|&&meta| meta != 0).count();
        assert_eq!((used(&nets), nets.waits()), (1, true));
        nets.release();
        assert_eq!((used(&nets), nets.waits()), (0, false));
    }

    #[test]
    fn a_million_prefixes_have_room() {
        let mut nets = Nets::new(1 << 20);
        let mut ops = Vec::new();
        for n in 0..1_000_000u32 {
            let address = n.wrapping_mul(0x9e37_79b1).to_be_bytes();
            let net = IpNet::new(address.into(), 32 - (n % 9) as u8).expect("a length").trunc();
            nets.put(net, (1 << 24) + n, &mut ops).expect("room");
            ops.clear();
        }
    }
}
