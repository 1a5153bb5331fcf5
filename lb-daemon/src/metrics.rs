//! Metrics in the text format of Prometheus.
//!
//! Owns names, labels and help texts. The numbers live in memory shared with the kernel and are read
//! while the page is written: a registry would copy every one of them (100,000 series on a large
//! node) into atomics of its own on each scrape and would keep series of deleted services until it is
//! told of each. So this module writes the text itself, from [`View`] and [`Counters`], and keeps
//! nothing between two scrapes.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use abi::reason::Reason;

use crate::{
    api::model::{serves, verdict_name},
    policy::names,
    view::{Attachment, BackendView, Count, Counters, Health, NextHopView, View},
};

/// Media type of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A family of series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Name of the family.
    pub name: &'static str,
    /// What it counts or measures.
    pub kind: Kind,
    /// Names of its labels, in the order of the values.
    pub labels: &'static [&'static str],
    /// For people.
    pub help: &'static str,
}

/// Type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the tables are made anew.
    Counter,
    /// Goes both ways.
    Gauge,
}

macro_rules! metrics {
    ($($const:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(const $const: Metric =
            Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*
        /// Every metric, in the order of the page.
        pub const METRICS: &[Metric] = &[$($const),*];
    };
}

metrics! {
    BUILD: Gauge "lb_build_info" ["version"]
        "1; the label is the version of the daemon.";
    UPTIME: Gauge "lb_process_uptime_seconds" []
        "Time since the daemon started.";
    READY: Gauge "lb_process_ready" []
        "1 when a configuration is in force and every interface is attached, else 0.";
    GENERATION: Gauge "lb_config_generation" []
        "Changes put in force since the tables were made.";
    APPLY: Gauge "lb_config_apply_seconds" []
        "From the notice of the last change to its last store.";
    SUCCESS: Gauge "lb_config_last_success_timestamp_seconds" []
        "When the last change came into force, in Unix time.";
    FAULTS: Gauge "lb_config_faults" []
        "Faults that keep what is on disk from coming into force.";
    ATTACHED: Gauge "lb_interface_attached" ["interface", "mode"]
        "1 when the programs are attached, in this mode (native, generic); 0 with mode none when not.";
    SERVICE_PACKETS: Counter "lb_service_packets_total" ["service", "address", "port", "protocol"]
        "Packets for an address and port of a service.";
    SERVICE_BYTES: Counter "lb_service_bytes_total" ["service", "address", "port", "protocol"]
        "Bytes of these packets, as received, with Ethernet header.";
    SERVICE_CONNECTIONS: Counter
        "lb_service_new_connections_total" ["service", "address", "port", "protocol"]
        "Of these packets, TCP segments and SCTP packets that open a connection.";
    SERVICE_SLOTS: Gauge "lb_service_ring_slots" ["service"]
        "Slots of the service's ring.";
    SERVICE_SERVING: Gauge "lb_service_serving_backends" ["service"]
        "Backends that get new flows: with slots, not down, and with a next hop.";
    SERVICE_MOVING: Gauge "lb_service_moving_slots" ["service"]
        "Slots between two backends because of a recent change.";
    BACKEND_PACKETS: Counter "lb_backend_packets_total" ["service", "backend", "address"]
        "Packets sent to a backend.";
    BACKEND_BYTES: Counter "lb_backend_bytes_total" ["service", "backend", "address"]
        "Bytes of these packets, as received, with Ethernet header.";
    BACKEND_CONNECTIONS: Counter
        "lb_backend_new_connections_total" ["service", "backend", "address"]
        "Of these packets, TCP segments and SCTP packets that open a connection.";
    BACKEND_ACTIVE: Gauge "lb_backend_active_connections" ["service", "backend", "address"]
        "Connections of a backend whose service has an entry for each: random, least-connections or tracked.";
    NOT_ADMITTED: Counter "lb_flows_not_admitted_total" []
        "Packets of flows that should have got an entry and got none, as there were too many new ones at once.";
    NAT_ENTRIES: Gauge "lb_nat_entries" []
        "Entries of the NAT table in use: connections that have not expired. Absent without services behind NAT.";
    NAT_CAPACITY: Gauge "lb_nat_capacity_entries" []
        "Entries that the NAT table was made for.";
    BACKEND_HEALTHY: Gauge "lb_backend_healthy" ["service", "backend", "address"]
        "0 when the health check found the backend down, else 1.";
    BACKEND_RESOLVED: Gauge "lb_backend_next_hop_resolved" ["service", "backend", "address"]
        "1 when route and neighbour are known, else 0.";
    BACKEND_WEIGHT: Gauge "lb_backend_weight" ["service", "backend", "address"]
        "Configured weight.";
    BACKEND_SLOTS: Gauge "lb_backend_slots" ["service", "backend", "address", "state"]
        "Slots of the ring that the backend owns; the label state is what the operator wants of it.";
    LIST_HITS: Counter "lb_prefilter_hits_total" ["list", "action"]
        "Packets whose source is in a blocklist.";
    LIST_BYTES: Counter "lb_prefilter_hit_bytes_total" ["list", "action"]
        "Bytes of these packets.";
    LIST_PREFIXES: Gauge "lb_prefilter_prefixes" ["list", "family"]
        "Prefixes of a blocklist.";
    LIMIT_PACKETS: Counter "lb_prefilter_rate_limited_total" ["limit", "action"]
        "Packets beyond a rate limit.";
    LIST_SKIPPED: Gauge "lb_prefilter_skipped_lines" ["list"]
        "Lines of a list file that are no prefixes and were left out (`on_error: skip`).";
    UNCONFIRMED: Gauge "lb_prefilter_unconfirmed_changes" []
        "Changes of lists that are taken back by themselves unless they are confirmed; 0 or 1.";
    FETCH_SUCCESS: Gauge "lb_list_fetch_last_success_timestamp_seconds" ["list"]
        "When the server last sent or confirmed a fetched list, in Unix time; 0: never.";
    FETCH_FAILURES: Gauge "lb_list_fetch_consecutive_failures" ["list"]
        "Attempts to fetch a list that failed since the last one that succeeded.";
    FETCHES: Counter "lb_list_fetches_total" ["list", "result"]
        "Attempts to fetch a list since the daemon started, by result (success, failure).";
    FETCH_BYTES: Gauge "lb_list_fetch_copy_bytes" ["list"]
        "Size of the copy of a fetched list.";
    RULE_PACKETS: Counter "lb_policy_rule_packets_total" ["rule"]
        "Packets that a rule of identity policy decided, of all rules of this name; replies are not counted.";
    RULE_BYTES: Counter "lb_policy_rule_bytes_total" ["rule"]
        "Bytes of these packets.";
    ENDPOINT_ATTACHED: Gauge "lb_policy_endpoint_attached" ["endpoint", "interface"]
        "1 when identity policy is enforced on the endpoint's interface, else 0.";
    FQDN_NAMES: Gauge "lb_policy_fqdn_names" []
        "Names that rules select and DNS has given addresses.";
    FQDN_ADDRESSES: Gauge "lb_policy_fqdn_addresses" []
        "Addresses of these names.";
    FQDN_ANSWERS: Counter "lb_policy_fqdn_answers_total" ["result"]
        "DNS messages that endpoints got since the daemon started, by what became of them (learned, unwanted, unasked, unreadable, lost).";
    REASON_PACKETS: Counter "lb_datapath_packets_total" ["reason", "verdict"]
        "Packets by the one reason for which each was passed, dropped or forwarded.";
    REASON_BYTES: Counter "lb_datapath_bytes_total" ["reason", "verdict"]
        "Bytes of these packets.";
    EVENTS: Counter "lb_events_total" []
        "Packets that were sampled.";
    EARLY: Counter "lb_fragments_early_total" ["outcome"]
        "Fragments for a VIP that waited for their first one: it came and they followed, it did not come in time (expired), or they could not be given to the program again (failed).";
    EVENTS_LOST: Counter "lb_events_lost_total" ["where"]
        "Samples that were lost: at the kernel's buffer, or by listeners to /v1/events that were too slow.";
    MAP_ENTRIES: Gauge "lb_map_entries" ["map"]
        "Entries in use; absent where only the kernel knows.";
    MAP_CAPACITY: Gauge "lb_map_capacity_entries" ["map"]
        "Entries that a table was made for.";
    MAP_BYTES: Gauge "lb_map_memory_bytes" ["map"]
        "Memory that a table takes.";
}

/// The whole page as of `now`.
#[must_use]
pub fn render(view: &View, counters: &dyn Counters, now: SystemTime) -> String {
    let mut page = Page::with_room_for(view);
    process(&mut page, view, now);
    interfaces(&mut page, view);
    services(&mut page, view, counters);
    backends(&mut page, view, counters);
    lists(&mut page, view, counters);
    policy(&mut page, view, counters);
    reasons(&mut page, counters);
    events(&mut page, view);
    maps(&mut page, view);
    page.text
}

fn process(page: &mut Page, view: &View, now: SystemTime) {
    page.family(&BUILD).sample(&[env!("CARGO_PKG_VERSION")], 1_u64);
    let uptime = now.duration_since(view.started).unwrap_or_default();
    page.family(&UPTIME).value(uptime.as_secs_f64());
    let ready = crate::api::model::not_ready(view).is_empty();
    page.family(&READY).value(u64::from(ready));
    page.family(&GENERATION).value(view.config.generation);
    if let Some(apply) = view.config.last_apply {
        page.family(&APPLY).value(apply.as_secs_f64());
    }
    if let Some(success) = view.config.last_success {
        let since = success.duration_since(UNIX_EPOCH).unwrap_or_default();
        page.family(&SUCCESS).value(since.as_secs_f64());
    }
    page.family(&FAULTS).value(view.config.faults.len() as u64);
}

fn interfaces(page: &mut Page, view: &View) {
    let mut family = page.family(&ATTACHED);
    for interface in &view.interfaces {
        let (mode, attached) = match &interface.attached {
            Attachment::Native => ("native", 1_u64),
            Attachment::Generic => ("generic", 1),
            Attachment::Failed(_) => ("none", 0),
        };
        family.sample(&[&interface.name, mode], attached);
    }
}

fn services(page: &mut Page, view: &View, counters: &dyn Counters) {
    // Read once: the three families of a frontend then agree with each other.
    let rows: Vec<_> = view
        .services
        .iter()
        .flat_map(|service| service.frontends.iter().map(move |frontend| (service, frontend)))
        .map(|(service, frontend)| {
            let labels = [
                service.spec.name.clone(),
                frontend.address.to_string(),
                frontend.port.numbers(),
                frontend.port.protocol.as_str().to_owned(),
            ];
            (labels, counters.frontend(frontend.row))
        })
        .collect();
    counted(page, &rows, [&SERVICE_PACKETS, &SERVICE_BYTES, &SERVICE_CONNECTIONS]);
    let mut family = page.family(&SERVICE_SLOTS);
    for service in &view.services {
        family.sample(&[&service.spec.name], u64::from(service.ring_size));
    }
    let mut family = page.family(&SERVICE_SERVING);
    for service in &view.services {
        let serving = service.backends().filter(|(spec, backend)| serves(spec, backend)).count();
        family.sample(&[&service.spec.name], serving as u64);
    }
    let mut family = page.family(&SERVICE_MOVING);
    for service in &view.services {
        family.sample(&[&service.spec.name], u64::from(service.moving_slots));
    }
}

type Read = fn(&config::model::Backend, &BackendView) -> u64;

fn backends(page: &mut Page, view: &View, counters: &dyn Counters) {
    let backends = || {
        view.services
            .iter()
            .flat_map(|service| service.backends().map(move |(spec, view)| (service, spec, view)))
    };
    let rows: Vec<_> = backends()
        .map(|(service, spec, backend)| {
            let labels = [service.spec.name.clone(), spec.name.clone(), spec.address.to_string()];
            (labels, counters.backend(backend.row))
        })
        .collect();
    counted(page, &rows, [&BACKEND_PACKETS, &BACKEND_BYTES, &BACKEND_CONNECTIONS]);

    let mut family = page.family(&BACKEND_ACTIVE);
    for ((service, _, backend), (labels, _)) in backends().zip(&rows) {
        if service.spec.counts_connections() {
            family.sample(labels, counters.active(backend.row));
        }
    }
    page.family(&NOT_ADMITTED).value(counters.not_admitted());
    let nat = counters.nat();
    if nat.capacity > 0 {
        page.family(&NAT_ENTRIES).value(nat.used);
        page.family(&NAT_CAPACITY).value(nat.capacity);
    }
    let gauges: [(&Metric, Read); 3] = [
        (&BACKEND_HEALTHY, |_, backend| u64::from(backend.health != Health::Down)),
        (&BACKEND_RESOLVED, |_, backend| {
            u64::from(!matches!(backend.next_hop, NextHopView::Unresolved(_)))
        }),
        (&BACKEND_WEIGHT, |spec, _| u64::from(spec.weight)),
    ];
    for (metric, read) in gauges {
        let mut family = page.family(metric);
        for ((_, spec, backend), (labels, _)) in backends().zip(&rows) {
            family.sample(labels, read(spec, backend));
        }
    }
    let mut family = page.family(&BACKEND_SLOTS);
    for ((_, spec, backend), (labels, _)) in backends().zip(&rows) {
        let [service, name, address] = labels;
        let labels = [service.as_str(), name, address, spec.state.as_str()];
        family.sample(&labels, u64::from(backend.slots));
    }
}

/// Packets, bytes and new connections of the same rows, as three families.
fn counted<const N: usize>(page: &mut Page, rows: &[([String; N], Count)], metrics: [&Metric; 3]) {
    let reads: [fn(&Count) -> u64; 3] = [|c| c.packets, |c| c.bytes, |c| c.new_connections];
    for (metric, read) in metrics.into_iter().zip(reads) {
        let mut family = page.family(metric);
        for (labels, count) in rows {
            family.sample(labels, read(count));
        }
    }
}

fn lists(page: &mut Page, view: &View, counters: &dyn Counters) {
    let counts: Vec<_> = view.lists.iter().map(|list| counters.list(list.row)).collect();
    let mut family = page.family(&LIST_HITS);
    for (list, count) in view.lists.iter().zip(&counts) {
        family.sample(&[list.name.as_str(), list.action.as_str()], count.packets);
    }
    let mut family = page.family(&LIST_BYTES);
    for (list, count) in view.lists.iter().zip(&counts) {
        family.sample(&[list.name.as_str(), list.action.as_str()], count.bytes);
    }
    let mut family = page.family(&LIST_PREFIXES);
    for list in &view.lists {
        family.sample(&[list.name.as_str(), "ipv4"], list.prefixes_v4);
        family.sample(&[list.name.as_str(), "ipv6"], list.prefixes_v6);
    }
    let mut family = page.family(&LIMIT_PACKETS);
    for limit in &view.limits {
        let labels = [limit.spec.name.as_str(), limit.spec.action.as_str()];
        family.sample(&labels, counters.limit(limit.row).packets);
    }
    let mut family = page.family(&LIST_SKIPPED);
    for list in &view.lists {
        family.sample(&[list.name.as_str()], list.skipped_lines);
    }
    page.family(&UNCONFIRMED).sample::<&str>(&[], u32::from(view.unconfirmed.is_some()));
    fetches(page, view);
}

fn fetches(page: &mut Page, view: &View) {
    let remote = view.lists.iter().filter(|list| list.remote.is_some()).map(|list| &list.name);
    let pulled = view.prefilter.crowdsec.iter().map(|bouncer| &bouncer.list);
    let lists: Vec<_> = remote
        .chain(pulled)
        .map(|list| (list.as_str(), view.fetches.get(list).unwrap_or_default()))
        .collect();
    let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut family = page.family(&FETCH_SUCCESS);
    for (list, progress) in &lists {
        family.sample(&[*list], progress.success.map_or(0, seconds));
    }
    let mut family = page.family(&FETCH_FAILURES);
    for (list, progress) in &lists {
        family.sample(&[*list], progress.failures);
    }
    let mut family = page.family(&FETCHES);
    for (list, progress) in &lists {
        family.sample(&[*list, "success"], progress.successes_total);
        family.sample(&[*list, "failure"], progress.failures_total);
    }
    let mut family = page.family(&FETCH_BYTES);
    for (list, progress) in &lists {
        family.sample(&[*list], progress.bytes);
    }
}

fn policy(page: &mut Page, view: &View, counters: &dyn Counters) {
    let mut rules: BTreeMap<&str, Count> = BTreeMap::new();
    for rule in &view.policy.rules {
        let (own, all) = (counters.rule(rule.row), rules.entry(&rule.name).or_default());
        all.packets += own.packets;
        all.bytes += own.bytes;
    }
    let mut family = page.family(&RULE_PACKETS);
    for (name, count) in &rules {
        family.sample(&[*name], count.packets);
    }
    let mut family = page.family(&RULE_BYTES);
    for (name, count) in &rules {
        family.sample(&[*name], count.bytes);
    }
    let mut family = page.family(&ENDPOINT_ATTACHED);
    for endpoint in view.policy.endpoints.iter().chain(&view.policy.host) {
        let attached = endpoint.attached.is_attached();
        let labels = [endpoint.spec.name.as_str(), endpoint.spec.interface.as_str()];
        family.sample(&labels, u64::from(attached));
    }
    let known = view.names.read();
    page.family(&FQDN_NAMES).sample::<&str>(&[], known.iter().count() as u64);
    let addresses: usize = known.iter().map(|one| one.addresses.len()).sum();
    page.family(&FQDN_ADDRESSES).sample::<&str>(&[], addresses as u64);
    drop(known);
    let mut family = page.family(&FQDN_ANSWERS);
    for result in names::Result::ALL {
        family.sample(&[result.as_str()], view.names.count(result));
    }
}

fn reasons(page: &mut Page, counters: &dyn Counters) {
    let reasons = counters.reasons();
    let labels = |reason: Reason| [reason.name(), verdict_name(reason.verdict())];
    let mut family = page.family(&REASON_PACKETS);
    for (reason, count) in &reasons {
        family.sample(&labels(*reason), count.packets);
    }
    let mut family = page.family(&REASON_BYTES);
    for (reason, count) in &reasons {
        family.sample(&labels(*reason), count.bytes);
    }
}

fn events(page: &mut Page, view: &View) {
    let counts = view.samples.counts();
    page.family(&EVENTS).value(counts.taken);
    let mut family = page.family(&EARLY);
    for outcome in crate::early::Outcome::ALL {
        family.sample(&[outcome.name()], view.early.of(outcome));
    }
    let mut family = page.family(&EVENTS_LOST);
    family.sample(&["buffer"], counts.lost);
    family.sample(&["listener"], counts.unheard);
}

fn maps(page: &mut Page, view: &View) {
    let mut family = page.family(&MAP_ENTRIES);
    for map in &view.maps {
        if let Some(entries) = map.entries {
            family.sample(&[map.name.as_str()], entries);
        }
    }
    let mut family = page.family(&MAP_CAPACITY);
    for map in &view.maps {
        family.sample(&[map.name.as_str()], map.capacity);
    }
    let mut family = page.family(&MAP_BYTES);
    for map in &view.maps {
        family.sample(&[map.name.as_str()], map.bytes);
    }
}

/// The text so far.
struct Page {
    text: String,
}

/// A family whose samples are being written; its header goes before the first of them.
struct Family<'p> {
    page: &'p mut Page,
    metric: &'p Metric,
    started: bool,
}

impl Page {
    fn with_room_for(view: &View) -> Self {
        let backends: usize = view.services.iter().map(|s| s.backends.len()).sum();
        let frontends: usize = view.services.iter().map(|s| s.frontends.len()).sum();
        Self { text: String::with_capacity(16_384 + 1_000 * backends + 500 * frontends) }
    }

    fn family<'p>(&'p mut self, metric: &'p Metric) -> Family<'p> {
        Family { page: self, metric, started: false }
    }
}

impl Family<'_> {
    /// The only sample of a family without labels.
    fn value(&mut self, value: impl std::fmt::Display) {
        self.sample::<&str>(&[], value);
    }

    fn sample<L: AsRef<str>>(&mut self, labels: &[L], value: impl std::fmt::Display) {
        let Metric { name, kind, labels: names, help } = self.metric;
        debug_assert_eq!(names.len(), labels.len(), "{name} has other labels");
        let text = &mut self.page.text;
        if !self.started {
            self.started = true;
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            };
            put(text, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        }
        text.push_str(name);
        for (i, (label, value)) in names.iter().zip(labels).enumerate() {
            text.push(if i == 0 { '{' } else { ',' });
            text.push_str(label);
            text.push_str("=\"");
            escape(text, value.as_ref());
            text.push('"');
        }
        if !names.is_empty() {
            text.push('}');
        }
        put(text, format_args!(" {value}\n"));
    }
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to a string does not fail");
}

/// Label values: backslash, quote and line feed have escapes, everything else stands for itself.
fn escape(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests;
