//! Addresses as a whole: a row for each VIP of any service, and the filter that tells other addresses from
//! them at one load.

use std::collections::BTreeMap;

use abi::{
    addr::Addr,
    pick,
    table::{Frontend, FrontendKey},
};

use super::{Full, Planner, Vip, buckets::Buckets};
use crate::datapath::{Op, Tables};

/// Port 0 of a protocol.
const ANY_TCP: u32 = 6 << 16;
const ANY_UDP: u32 = 17 << 16;

/// What an address as a whole is wanted for.
#[derive(Default)]
struct Whole {
    /// Rows of services with port 0, TCP and UDP.
    any: [Option<u32>; 2],
    /// As [`Vip`] has it.
    is: (bool, bool),
}

impl Planner {
    /// The rows of addresses as a whole: one for each VIP of any service.
    pub(super) fn plan_vips(
        &mut self,
        tables: &dyn Tables,
        buckets: &mut Buckets,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let mut wanted: BTreeMap<Addr, Whole> = BTreeMap::new();
        if self.nat.on {
            for &addr in &self.nat.rows {
                wanted.entry(addr).or_default().is.1 = true;
            }
        }
        self.nat.announced = self.nat.rows.len();
        for service in self.services.values() {
            for (key, &row) in &service.frontends {
                let Whole { any, is } = wanted.entry(key.addr).or_default();
                is.0 = true;
                match key.port_protocol {
                    ANY_TCP => any[0] = Some(row),
                    ANY_UDP => any[1] = Some(row),
                    _ => {}
                }
            }
        }
        let gone: Vec<Addr> =
            self.vips.keys().filter(|a| !wanted.contains_key(a)).copied().collect();
        for addr in gone {
            if let Some(vip) = self.vips.remove(&addr) {
                buckets.replace(tables, &FrontendKey::vip(addr), vip.row, None, ops);
                self.frontends.give(vip.row);
            }
        }
        for (addr, Whole { any: [tcp, udp], is }) in wanted {
            let any = Frontend::any_word(tcp, udp);
            let old = self.vips.get_mut(&addr);
            if let Some(vip) = old
                && vip.is == is
            {
                if vip.any != any {
                    vip.any = any;
                    ops.push(Op::FrontendAny(vip.row, any));
                }
                continue;
            }
            let row = self.frontends.take().ok_or(Full("FRONTENDS"))?;
            let value = Frontend::vip(addr, tcp, udp);
            let value = if is.1 { value.with_nat(is.0) } else { value };
            ops.push(Op::Frontend(row, value));
            let key = FrontendKey::vip(addr);
            match self.vips.insert(addr, Vip { row, any, is }) {
                Some(old) => {
                    buckets.replace(tables, &key, old.row, Some(row), ops);
                    self.frontends.give(old.row);
                }
                None => {
                    buckets.insert(tables, &key, row, ops).map_err(|_| Full("BUCKETS"))?;
                }
            }
        }
        plan_filter(self.vips.keys().copied(), tables, ops);
        Ok(())
    }
}

/// The operations that make the filter one of these addresses and no others. Between them and those of the
/// buckets any order will do: an address that only one of the two has is passed up, as one that neither has.
pub(crate) fn plan_filter(
    vips: impl Iterator<Item = Addr>,
    tables: &dyn Tables,
    ops: &mut Vec<Op>,
) {
    let (capacity, salt) = (tables.capacity(), tables.control().salt());
    let mut wanted = vec![0u64; capacity.vip_words() as usize];
    for addr in vips {
        let (index, bit) = pick::vip_place(addr, salt, capacity.vip_shift());
        wanted[index as usize] |= bit;
    }
    for (index, word) in (0..).zip(wanted) {
        if tables.vip_word(index) != word {
            ops.push(Op::VipWord(index, word));
        }
    }
}
