//! What a service wants beyond its ring: a few words in the arena, and the table of its server ids behind.

use std::{collections::BTreeMap, net::IpAddr};

use abi::{
    choice::{self, Choice, Spread},
    table::Frontend,
};
use config::model::{Forwarding, Scheduling, Service};

use super::{Full, Member, Planned, Planner, ranges, words::Place};
use crate::datapath::{Op, Tables};

/// How many words are said to stand at `at`. `None`: that is not in the arena.
pub(super) fn length(at: u32, tables: &dyn Tables) -> Option<u32> {
    let room = tables.capacity().slots;
    at.checked_add(Choice::WORDS).filter(|&end| end <= room)?;
    let ids = u32::try_from(tables.slot(at + Choice::WORDS - 1)).ok()?;
    ids.checked_add(Choice::WORDS)
}

impl Planner {
    /// What it wants beyond its ring. Packets may name the servers of its parts, too.
    pub(super) fn put_choice(
        &mut self,
        service: &mut Planned,
        spec: &Service,
        tables: &dyn Tables,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let mut members = service.members.clone();
        for part in &spec.parts {
            if let Some(part) = self.services.get(part.name.as_str()) {
                members.extend(&part.members);
            }
        }
        // Those of parts that drain, too, where nobody else has the address.
        let drain = self.services.values().filter(|part| part.outlived(&spec.name));
        for (&address, &member) in drain.flat_map(|part| &part.members) {
            members.entry(address).or_insert(member);
        }
        let old = service.choice;
        let words = words(spec, &members, |row| leaving(old, &members, row, tables));
        service.choice = old.put(words, &mut self.arena, tables, ops)?;
        Ok(())
    }

    /// The numbers of servers that have gone name nobody: their rows will be others'.
    pub(super) fn renumber(
        &mut self,
        name: &str,
        tables: &dyn Tables,
        ops: &mut Vec<Op>,
    ) -> Result<(), Full> {
        let Some((name, mut service)) = self.services.remove_entry(name) else { return Ok(()) };
        let mut done = Ok(());
        if let Some(spec) = service.spec.clone().filter(|spec| spec.steering.names_servers()) {
            done = self.put_choice(&mut service, &spec, tables, ops);
            service.point(tables, ops);
        }
        self.services.insert(name, service);
        done
    }
}

impl Planned {
    /// Has the rows of a service point to its words where they are now.
    pub(super) fn point(&self, tables: &dyn Tables, ops: &mut Vec<Op>) {
        for (key, &row) in &self.frontends {
            let routes = self.routes[ranges::family(key.addr.is_v4())];
            let special = Frontend::special_word(self.choice.at(), routes.at());
            if tables.frontend(row).any() != special {
                ops.push(Op::FrontendAny(row, special));
            }
        }
    }
}

/// The number of a backend that is leaving: its connections still name it.
fn leaving(
    old: Place,
    members: &BTreeMap<IpAddr, Member>,
    row: u32,
    tables: &dyn Tables,
) -> Option<u32> {
    let at = old.at()?;
    members.values().find(|m| m.row == row && m.leaving.is_some())?;
    let word = choice::id_word(row);
    (0..old.len() - Choice::WORDS).find(|id| tables.slot(at + Choice::WORDS + id) == word)
}

/// Words that a service takes at most.
pub(crate) fn room(spec: &Service) -> u64 {
    match wanted(spec) {
        None => 0,
        Some(_) => {
            // Those that are leaving may have had larger ones: then the table is full, and grows.
            let most = spec.backends.iter().filter_map(|b| b.server_id).max();
            u64::from(Choice::WORDS) + most.map_or(0, |most| u64::from(most) + 1)
        }
    }
}

fn words(
    spec: &Service,
    members: &BTreeMap<IpAddr, Member>,
    leaving: impl Fn(u32) -> Option<u32>,
) -> Vec<u64> {
    let Some(choice) = wanted(spec) else { return Vec::new() };
    let mut rows: BTreeMap<u32, u32> = BTreeMap::new();
    if spec.steering.names_servers() {
        for member in members.values() {
            if let Some(id) = leaving(member.row) {
                rows.insert(id, member.row);
            }
        }
        for backend in &spec.backends {
            if let (Some(id), Some(member)) = (backend.server_id, members.get(&backend.address)) {
                rows.insert(id.into(), member.row);
            }
        }
    }
    let ids = rows.keys().next_back().map_or(0, |most| most + 1);
    let mut words = Choice { ids, ..choice }.to_words().to_vec();
    words.resize((Choice::WORDS + ids) as usize, 0);
    for (id, row) in rows {
        words[(Choice::WORDS + id) as usize] = choice::id_word(row);
    }
    words
}

/// `None`: nothing beyond the ring.
fn wanted(spec: &Service) -> Option<Choice> {
    let steering = &spec.steering;
    // Its connections have entries of their own.
    let nat = spec.forwarding == Forwarding::Nat;
    let choice = Choice {
        spread: match steering.scheduling {
            Scheduling::Maglev => Spread::Hash,
            Scheduling::Random => Spread::Random,
            Scheduling::LeastConnections => Spread::Fewest,
        },
        track: steering.tracks() && !nat,
        nat,
        stay_ns: steering.affinity.map_or(0, |time| time.as_nanos() as u64),
        tcp_option: steering.tcp_option,
        udp_header: steering.udp_header,
        quic_len: steering.quic_len,
        ids: 0,
    };
    (choice != Choice { nat, ..Choice::default() }).then_some(choice)
}
