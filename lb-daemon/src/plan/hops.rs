//! Next hops and health: what a backend may take, and how it is reached.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use abi::table::{Egress, HopWord, State};
use config::model::{BackendState, SourceOf};

use super::{Full, Planner};
use crate::{
    datapath::{Op, Tables},
    nexthop::{Hop, NextHop},
};

impl Planner {
    /// Next hops that changed.
    ///
    /// # Errors
    /// [`Full`].
    pub fn set_hops(
        &mut self,
        changed: &BTreeMap<IpAddr, NextHop>,
        tables: &dyn Tables,
        now: Duration,
    ) -> Result<Vec<Op>, Full> {
        let mut ops = Vec::new();
        for (&address, hop) in changed {
            self.hops.insert(address, hop.clone());
        }
        let addresses: Vec<IpAddr> = changed.keys().copied().collect();
        self.rehop(&addresses, tables, &mut ops)?;
        let names: BTreeSet<Arc<str>> =
            addresses.iter().filter_map(|a| self.by_address.get(a)).flatten().cloned().collect();
        for name in names {
            self.restate(&name, tables, now, &mut ops);
        }
        self.announce_nat(tables, &mut ops)?;
        Ok(ops)
    }

    /// Takes over the next hops that a planner before this one knew.
    ///
    /// # Errors
    /// [`Full`].
    pub fn inherit_hops(
        &mut self,
        hops: HashMap<IpAddr, NextHop>,
        tables: &dyn Tables,
        now: Duration,
    ) -> Result<Vec<Op>, Full> {
        let mut ops = Vec::new();
        self.hops = hops;
        let addresses: Vec<IpAddr> = self.by_address.keys().copied().collect();
        self.rehop(&addresses, tables, &mut ops)?;
        let names: Vec<Arc<str>> = self.services.keys().cloned().collect();
        for name in names {
            self.restate(&name, tables, now, &mut ops);
        }
        Ok(ops)
    }

    /// The next hops that are known, for [`Self::inherit_hops`] of the next planner.
    #[must_use]
    pub fn take_hops(&mut self) -> HashMap<IpAddr, NextHop> {
        std::mem::take(&mut self.hops)
    }

    /// A backend's health changed.
    pub fn set_health(
        &mut self,
        service: &str,
        backend: IpAddr,
        down: bool,
        tables: &dyn Tables,
        now: Duration,
    ) -> Vec<Op> {
        let key = (service.to_owned(), backend);
        let changed = if down { self.unhealthy.insert(key) } else { self.unhealthy.remove(&key) };
        let mut ops = Vec::new();
        if changed {
            self.restate(service, tables, now, &mut ops);
        }
        ops
    }

    /// The next hop of an address as known.
    #[must_use]
    pub fn hop(&self, address: IpAddr) -> Option<&NextHop> {
        self.hops.get(&address)
    }

    /// Stores the hop words of these addresses' rows where they differ.
    pub(super) fn rehop(
        &mut self,
        addresses: &[IpAddr],
        tables: &dyn Tables,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        for &address in addresses {
            let rows: Vec<u32> = self
                .by_address
                .get(&address)
                .into_iter()
                .flatten()
                .filter_map(|n| Some(self.services.get(n)?.members.get(&address)?.row))
                .collect();
            if rows.is_empty() {
                continue;
            }
            let word = self.hop_word(address, ops)?;
            for row in rows {
                if tables.backend(row).hop() != word {
                    ops.push(Op::Hop(row, word));
                }
            }
        }
        Ok(())
    }

    /// The word for an address's next hop; writes the egress row that it needs.
    pub(super) fn hop_word(&mut self, address: IpAddr, ops: &mut Vec<Op>) -> Result<HopWord, Full> {
        let hop = match self.hops.get(&address) {
            Some(NextHop::Resolved(hop)) => hop.clone(),
            Some(NextHop::Local) => return Ok(HopWord::LOCAL),
            Some(NextHop::Unresolved(_)) | None => return Ok(HopWord::UNRESOLVED),
        };
        let mac = hop.dst_mac;
        let wanted = self.egress_of(&hop);
        let wanted = self.with_nat(wanted, &hop, ops)?;
        let row = match self.egress.iter().position(|e| *e == Some(wanted)) {
            Some(row) => row,
            None => {
                let row = self.egress.iter().position(Option::is_none).ok_or(Full("EGRESS"))?;
                self.egress[row] = Some(wanted);
                ops.push(Op::Egress(row as u32, wanted));
                row
            }
        };
        Ok(HopWord::new(mac, row as u8, address.is_ipv4()))
    }

    fn egress_of(&self, hop: &Hop) -> Egress {
        let source4 = match self.tunnel_source.ipv4 {
            SourceOf::Prefix(p) => Some((p.addr().octets(), 32 - p.prefix_len())),
            SourceOf::Auto => match hop.source {
                Some(IpAddr::V4(a)) => Some((a.octets(), 0)),
                _ => None,
            },
        };
        let source6 = match self.tunnel_source.ipv6 {
            SourceOf::Prefix(p) => Some((p.addr().octets(), 128 - p.prefix_len())),
            SourceOf::Auto => match hop.source {
                Some(IpAddr::V6(a)) => Some((a.octets(), 0)),
                _ => None,
            },
        };
        Egress::new(hop.ifindex, hop.src_mac, hop.mtu, source4, source6)
    }

    /// Stores the state words of a service's backends where they differ. A backend that comes back
    /// keeps away from the flows that went elsewhere meanwhile, for as long as a drain takes.
    pub(super) fn restate(
        &mut self,
        name: &str,
        tables: &dyn Tables,
        now: Duration,
        ops: &mut Vec<Op>,
    ) {
        self.restate_backends(name, tables, now, ops);
        self.note_deadline(name);
    }

    fn restate_backends(
        &mut self,
        name: &str,
        tables: &dyn Tables,
        now: Duration,
        ops: &mut Vec<Op>,
    ) {
        let Some(service) = self.services.get_mut(name) else { return };
        let Some(spec) = service.spec.clone() else { return };
        let mut states: Vec<(IpAddr, u32, State, bool)> = Vec::new();
        for (&address, member) in &service.members {
            let wanted = spec.own_backends().find(|b| b.address == address);
            let unhealthy = self.unhealthy.contains(&(name.to_owned(), address));
            let reachable = self.hops.get(&address).is_some_and(NextHop::is_reachable);
            let maintenance = wanted.is_some_and(|b| b.state == BackendState::Maintenance);
            let takes_new = wanted.is_some_and(|b| b.state == BackendState::Active && b.weight > 0);
            let gone = !reachable || maintenance;
            let weight = wanted.map_or(0, super::services::weight);
            // One that only fails its check may be there: who is connected to it finds out.
            let state = State {
                down: unhealthy || gone,
                keeps: unhealthy && !gone,
                weight,
                ..State::default()
            };
            states.push((address, member.row, state, takes_new));
        }
        let up: Vec<u32> =
            states.iter().filter(|(_, _, state, new)| !state.down && *new).map(|s| s.1).collect();
        for (index, &(address, row, mut state, _)) in states.iter().enumerate() {
            let old = tables.backend(row).state();
            let Some(member) = service.members.get_mut(&address) else { continue };
            if state.down {
                member.recovering = None;
                // Spread heirs: each backend's is another one, as far as there are enough.
                state.heir = (!up.is_empty()).then(|| up[index % up.len()]);
            } else {
                if old.down {
                    member.recovering = Some(now + spec.drain_timeout);
                }
                state.recovering = member.recovering.is_some();
            }
            if state != old {
                ops.push(Op::State(row, state));
            }
        }
    }
}
