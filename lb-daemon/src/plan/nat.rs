//! Addresses that translated packets come from, and interfaces that clients' packets come from.

use std::net::IpAddr;

use abi::{
    addr::Addr,
    limits::{MAX_NAT_ADDRESSES, WAY_PROBES, WAYS},
    table::{Egress, Way},
};

use super::{Full, Planner, buckets::Buckets};
use crate::{
    datapath::{Op, Tables},
    nexthop::Hop,
};

/// What the planner knows of NAT.
#[derive(Default)]
pub(super) struct Nat {
    /// Some service is behind it.
    pub(super) on: bool,
    /// Those of the configuration.
    pub(super) configured: Vec<IpAddr>,
    /// Rows of the table of addresses, in order. A row keeps its address: entries name it.
    pub(super) rows: Vec<Addr>,
    /// How many of them the rows of addresses as a whole know of.
    pub(super) announced: usize,
}

impl Nat {
    /// What stands in the tables.
    pub(super) fn adopt(tables: &dyn Tables) -> Self {
        let rows = (0..MAX_NAT_ADDRESSES).map(|row| tables.nat_address(row));
        Self { rows: rows.take_while(|a| *a != Addr::default()).collect(), ..Self::default() }
    }

    /// Rows that hold these addresses in this order; new ones where there are none.
    fn run(&mut self, addresses: &[Addr], ops: &mut Vec<Op>) -> Result<(u8, u8), Full> {
        let count = addresses.len();
        if count == 0 {
            return Ok((0, 0));
        }
        let found = self.rows.windows(count).position(|rows| rows == addresses);
        let first = found.unwrap_or(self.rows.len());
        if found.is_none() {
            if first + count > MAX_NAT_ADDRESSES as usize {
                return Err(Full("NAT_ADDRESSES"));
            }
            for (row, &address) in (first..).zip(addresses) {
                ops.push(Op::NatAddress(row as u32, address));
            }
            self.rows.extend(addresses);
        }
        Ok((first as u8, count as u8))
    }
}

impl Planner {
    /// The way to a next hop, with the addresses that packets translated on that way come from: the
    /// configured ones of the family, else the one that the kernel would use.
    pub(super) fn with_nat(
        &mut self,
        egress: Egress,
        hop: &Hop,
        ops: &mut Vec<Op>,
    ) -> Result<Egress, Full> {
        let mut runs = [(0, 0); 2];
        for (run, v4) in runs.iter_mut().zip([true, false]) {
            let mut of: Vec<IpAddr> =
                self.nat.configured.iter().copied().filter(|a| a.is_ipv4() == v4).collect();
            if of.is_empty() {
                of.extend(hop.source.filter(|a| a.is_ipv4() == v4));
            }
            let of: Vec<Addr> = of.into_iter().map(Addr::from).collect();
            *run = self.nat.run(&of, ops)?;
        }
        let [v4, v6] = runs;
        Ok(egress.with_nat(v4, v6))
    }

    /// Rows of addresses as a whole for NAT addresses that have come.
    pub(super) fn announce_nat(
        &mut self,
        tables: &dyn Tables,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        if self.nat.on && self.nat.announced != self.nat.rows.len() {
            self.plan_vips(tables, &mut Buckets::default(), ops)?;
        }
        Ok(())
    }

    /// Addresses that translated packets come from.
    pub fn nat_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let rows = if self.nat.on { &*self.nat.rows } else { &[] };
        rows.iter().map(|&a| a.into())
    }
}

/// The operations that make these interfaces, with MTU and MAC, stand in the table of ways, and no others.
#[must_use]
pub fn ways(interfaces: &[(u32, u32, [u8; 6])], tables: &dyn Tables) -> Vec<Op> {
    let mut wanted = vec![Way::default(); WAYS as usize];
    for &(ifindex, mtu, mac) in interfaces {
        let places = (0..WAY_PROBES).map(|n| Way::place(ifindex, n) as usize);
        let free = places.into_iter().find(|&place| wanted[place].ifindex() == 0);
        match free {
            Some(place) => wanted[place] = Way::new(ifindex, mtu, mac),
            None => tracing::error!(ifindex, "no NAT for clients behind this interface: too many"),
        }
    }
    let stands = (0..).zip(wanted);
    stands
        .filter(|&(row, way)| tables.way(row) != way)
        .map(|(row, way)| Op::Way(row, way))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_addresses_keep_their_rows() {
        let a = |n: u32| Addr::v4(n);
        let (mut nat, mut ops) = (Nat::default(), Vec::new());
        assert_eq!(nat.run(&[], &mut ops), Ok((0, 0)));
        assert_eq!(nat.run(&[a(1)], &mut ops), Ok((0, 1)));
        assert_eq!(nat.run(&[a(2), a(3)], &mut ops), Ok((1, 2)));
        assert_eq!(nat.run(&[a(1), a(2)], &mut ops), Ok((0, 2)), "they stand there already");
        assert_eq!(nat.run(&[a(3), a(2)], &mut ops), Ok((3, 2)));
        assert_eq!(ops.len(), 5);
        let many: Vec<Addr> = (0..252).map(|n| a(1000 + n)).collect();
        assert_eq!(nat.run(&many, &mut ops), Err(Full("NAT_ADDRESSES")));
    }
}
