//! Groups of backends that a service has no more. Such a part stays for as long as a drain takes, without backends that
//! take new flows: the clients that were routed to it still are, unless another route has them now, so that their
//! connections go on where they are; what they begin goes to the service's own backends.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use abi::{limits::MAX_RANGES, table::FrontendKey};
use config::model::{DesiredState, PartOf, Service};

use super::{Full, Planned, Planner, buckets::Buckets, ranges, routes};
use crate::datapath::{Op, Tables};

impl Planner {
    /// The part of that name is not wanted any more: it stays for a while, if its service does. `None`: it does not.
    pub(super) fn outlives(
        &self,
        name: &str,
        wanted: &DesiredState,
        tables: &dyn Tables,
        now: Duration,
    ) -> Option<(Arc<Service>, Duration)> {
        let part = self.services.get(name)?;
        let whole = match &part.spec {
            Some(_) => part.whole()?,
            None => self.who_leads_to(part, tables)?,
        };
        let whole = wanted.services.get(whole).filter(|spec| spec.part_of.is_none())?;
        let addresses = whole.addresses.iter().copied();
        let addresses: Vec<_> =
            addresses.filter(|&a| part.frontends.keys().any(|key| key.addr == a.into())).collect();
        if addresses.is_empty() {
            return None;
        }
        let part_of = match part.spec.as_ref().and_then(|spec| spec.part_of.clone()) {
            Some(part_of) => part_of,
            None => PartOf { service: whole.name.clone(), group: name.to_owned() },
        };
        let spec = whole.part(name.to_owned(), part_of, addresses, Vec::new());
        let ends = part.ends.unwrap_or(now + spec.drain_timeout);
        Some((Arc::new(spec), ends))
    }

    /// The service whose routes lead to a part of an earlier process, of which nothing else is known.
    fn who_leads_to(&self, part: &Planned, tables: &dyn Tables) -> Option<&str> {
        let numbers = numbers([part]);
        let routed = |whole: &Planned, v4: bool| {
            let stand = routes::standing(whole.routes[ranges::family(v4)], v4, tables);
            stand.iter().any(|(.., number)| numbers.contains(number))
        };
        let leads = |whole: &Planned| {
            whole.frontends.keys().any(|key| part.has_address(key))
                && (routed(whole, true) || routed(whole, false))
        };
        self.services.iter().find(|(_, whole)| leads(whole)).map(|(name, _)| &**name)
    }

    /// Has the routes of a service stand, and behind them those to parts that it has no more.
    pub(super) fn put_routes(
        &mut self,
        service: &mut Planned,
        spec: &Service,
        tables: &dyn Tables,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let nets = self.routes_of(spec);
        let ending = numbers(self.services.values().filter(|part| part.ends.is_some()));
        for v4 in [true, false] {
            let place = &mut service.routes[ranges::family(v4)];
            let mut wanted = routes::flatten(&nets, v4);
            if !ending.is_empty() {
                let mut before = routes::standing(*place, v4, tables);
                before.retain(|(.., number)| ending.contains(number));
                let both = routes::behind(&wanted, &before);
                // More than can be searched: then connections break, and not the routes that are wanted.
                if both.len() <= MAX_RANGES as usize {
                    wanted = both;
                }
            }
            *place = place.put(routes::words(&wanted, v4), &mut self.arena, tables, ops)?;
        }
        Ok(())
    }

    /// A part that has outlived its group goes: nobody is led there any more, and then it is not there.
    pub(super) fn end_part(
        &mut self,
        name: &str,
        tables: &dyn Tables,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let Some(part) = self.services.get_mut(name) else { return Ok(()) };
        part.ends = None;
        let whole = part.whole().map(str::to_owned);
        let whole = whole.and_then(|whole| self.services.remove_entry(whole.as_str()));
        let mut done = Ok(());
        if let Some((name, mut service)) = whole {
            if let Some(spec) = service.spec.clone() {
                done = self.put_routes(&mut service, &spec, tables, ops);
                service.point(tables, ops);
            }
            self.services.insert(name, service);
        }
        self.remove_service(name, tables, &mut Buckets::default(), ops);
        done
    }
}

impl Planned {
    /// The service that it is a part of.
    pub(super) fn whole(&self) -> Option<&str> {
        Some(&self.spec.as_ref()?.part_of.as_ref()?.service)
    }

    /// Whether it is a part of that service that nobody wants any more.
    pub(super) fn outlived(&self, whole: &str) -> bool {
        self.ends.is_some() && self.whole() == Some(whole)
    }

    fn has_address(&self, of: &FrontendKey) -> bool {
        self.frontends.keys().any(|key| key.addr == of.addr)
    }
}

/// By which routes know these parts.
fn numbers<'a>(parts: impl IntoIterator<Item = &'a Planned>) -> BTreeSet<u32> {
    let keys = parts.into_iter().flat_map(|part| part.frontends.keys());
    keys.filter(|key| key.is_group()).map(|key| key.port_protocol).collect()
}
