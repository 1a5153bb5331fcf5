//! Addresses as a whole: a row for each VIP of any service, its ranges of ports, and the filter that tells other
//! addresses from them at one load.

use std::collections::BTreeMap;

use abi::{
    addr::Addr,
    hash, pick,
    ranges::Ranges,
    spans::Span,
    table::{Frontend, FrontendKey},
};
use config::model::Service;

use super::{Full, Planner, Vip, buckets::Buckets, services};
use crate::datapath::{Op, Tables};

/// Port 0 of a protocol.
const ANY_TCP: (u16, u8) = (0, 6);
const ANY_UDP: (u16, u8) = (0, 17);

/// What the row of an address as a whole should say.
#[derive(Default)]
struct Wanted {
    /// Rows of services with port 0, TCP and UDP.
    any: [Option<u32>; 2],
    /// As [`Vip`] has it.
    is: (bool, bool),
    spans: Vec<Span>,
}

impl Planner {
    /// The rows of addresses as a whole: one for each VIP of any service.
    pub(super) fn plan_vips(
        &mut self,
        tables: &dyn Tables,
        buckets: &mut Buckets,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let wanted = self.wanted_vips();
        self.nat.announced = self.nat.rows.len();
        let gone: Vec<Addr> =
            self.vips.keys().filter(|a| !wanted.contains_key(a)).copied().collect();
        for addr in gone {
            if let Some(vip) = self.vips.remove(&addr) {
                buckets.replace(tables, &FrontendKey::vip(addr), vip.row, None, ops);
                self.frontends.give(vip.row);
                self.give_spans(vip.spans);
            }
        }
        for (addr, Wanted { any: [tcp, udp], is, spans }) in wanted {
            let any = Frontend::any_word(tcp, udp);
            let standing = self.vips.get(&addr).copied();
            let before = standing.map_or(Ranges::ANYBODY, |vip| vip.spans);
            let spans = self.put_spans(before, spans, tables, ops)?;
            if let Some(vip) = standing
                && vip.is == is
            {
                if vip.any != any {
                    ops.push(Op::FrontendAny(vip.row, any));
                }
                if tables.frontend(vip.row).ranges() != spans.to_word() {
                    ops.push(Op::FrontendRanges(vip.row, spans.to_word()));
                }
                self.vips.insert(addr, Vip { any, spans, ..vip });
                continue;
            }
            let row = self.frontends.take().ok_or(Full("FRONTENDS"))?;
            let value = Frontend::vip(addr, tcp, udp);
            let mut value = if is.1 { value.with_nat(is.0) } else { value };
            value.set_ranges(spans.to_word());
            ops.push(Op::Frontend(row, value));
            let key = FrontendKey::vip(addr);
            match standing {
                Some(old) => {
                    buckets.replace(tables, &key, old.row, Some(row), ops);
                    self.frontends.give(old.row);
                }
                None => {
                    buckets.insert(tables, &key, row, ops).map_err(|_| Full("BUCKETS"))?;
                }
            }
            self.vips.insert(addr, Vip { row, any, is, spans });
        }
        plan_filter(self.vips.keys().copied(), tables, ops);
        Ok(())
    }

    fn wanted_vips(&self) -> BTreeMap<Addr, Wanted> {
        let mut wanted: BTreeMap<Addr, Wanted> = BTreeMap::new();
        if self.nat.on {
            for &addr in &self.nat.rows {
                wanted.entry(addr).or_default().is.1 = true;
            }
        }
        for service in self.services.values() {
            for (key, &row) in &service.frontends {
                let vip = wanted.entry(key.addr).or_default();
                vip.is.0 = true;
                match key.port_and_protocol() {
                    ANY_TCP => vip.any[0] = Some(row),
                    ANY_UDP => vip.any[1] = Some(row),
                    _ => {}
                }
            }
            let Some(spec) = &service.spec else { continue };
            for port in spec.ports.iter().filter(|port| port.is_range()) {
                for &address in &spec.addresses {
                    if let Some(&row) = service.frontends.get(&services::key(address, port))
                        && let Some(span) =
                            Span::new(port.protocol.number(), port.port, port.last, row)
                    {
                        wanted.entry(address.into()).or_default().spans.push(span);
                    }
                }
            }
        }
        wanted
    }

    /// A VIP's ranges of ports, in the arena. What stands there and is the same stays; what it replaces is
    /// given back.
    fn put_spans(
        &mut self,
        before: Ranges,
        mut spans: Vec<Span>,
        tables: &dyn Tables,
        ops: &mut Vec<Op>,
    ) -> Result<Ranges, Full> {
        spans.sort_unstable();
        let words: Vec<u64> = spans.into_iter().map(Span::to_word).collect();
        let count = words.len() as u32;
        if before.count == count
            && (before.offset..).zip(&words).all(|(i, &word)| tables.slot(i) == word)
        {
            return Ok(before);
        }
        self.give_spans(before);
        if words.is_empty() {
            return Ok(Ranges::ANYBODY);
        }
        let offset = self.arena.take(count).ok_or(Full("SLOTS"))?;
        ops.push(Op::Words { offset, words });
        Ok(Ranges { offset, count, only: true })
    }

    fn give_spans(&mut self, spans: Ranges) {
        if spans.count > 0 {
            self.arena.give(spans.offset, spans.count);
        }
    }
}

/// Words that the ranges of ports of a service take.
pub(crate) fn room(spec: &Service) -> u64 {
    let ranges = spec.ports.iter().filter(|port| port.is_range()).count();
    (ranges * spec.addresses.len()) as u64
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
        let (index, bit) = pick::vip_place(hash::vip(addr, salt), capacity.vip_shift());
        wanted[index as usize] |= bit;
    }
    for (index, word) in (0..).zip(wanted) {
        if tables.vip_word(index) != word {
            ops.push(Op::VipWord(index, word));
        }
    }
}
