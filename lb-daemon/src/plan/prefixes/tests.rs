use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use abi::{
    hash,
    prefix::{Bitmap, One, list_v4, list_v6},
};
use config::{
    PrefixSet,
    model::{PrefixList, Protocol, Rate, RateLimit, Source},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::*;
use crate::datapath::{Datapath, fake::Fake};
use abi::scope::Seen;

fn capacity(bitmaps: u32, blocks: u32) -> Capacity {
    let lines = abi::prefix::LINES;
    let (buckets, frontends, slots, backends, egress) = (1, 1, 1, 1, 1);
    let (filter6, buckets6) = (16, 64);
    Capacity {
        buckets,
        frontends,
        slots,
        backends,
        egress,
        flows: 8,
        lines,
        bitmaps,
        blocks,
        filter6,
        buckets6,
        nat: 1,
        nat_ports: 0,
    }
}

fn tables() -> Fake {
    Fake::new(capacity(100, 100), 0, 0)
}

/// The list of an address, found by the code that programs run.
fn found(tables: &Fake, ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(ip) => list_v4(tables, ip.into()),
        IpAddr::V6(_) if tables.control().flags() & Control::PREFIXES_V6 == 0 => 0,
        IpAddr::V6(ip) => {
            let bits = u128::from(ip);
            let addr = [(bits >> 64) as u64, bits as u64];
            let filter = abi::prefix::Prefixes::filter6(tables, hash::leading6(addr[0]));
            list_v6(tables, addr, filter, (tables.control().flags() >> 32) as u32)
        }
    }
}

fn list(name: &str, action: ListAction, prefixes: Vec<IpNet>) -> Arc<PrefixList> {
    of_source(name, action, prefixes, Source::Kubernetes("a/b".to_owned()))
}

fn of_source(
    name: &str,
    action: ListAction,
    prefixes: Vec<IpNet>,
    source: Source,
) -> Arc<PrefixList> {
    let (name, prefixes) = (name.to_owned(), prefixes.into_iter().collect());
    let (skipped, skipped_lines) = (Vec::new(), 0);
    Arc::new(PrefixList {
        name,
        source,
        action,
        prefixes,
        skipped,
        skipped_lines,
        remote: None,
        force: false,
        scope: config::model::Scope::default(),
    })
}

/// What the documentation promises, by trying every prefix.
fn oracle(p: &Prefilter, ip: IpAddr) -> Option<&str> {
    let covers = |set: &PrefixSet| set.iter().any(|n| n.contains(&ip));
    if covers(&p.allow) {
        return None;
    }
    let first =
        |action| p.lists.iter().filter(|l| l.action == action).find(|l| covers(&l.prefixes));
    first(ListAction::Drop).or_else(|| first(ListAction::Audit)).map(|l| l.name.as_str())
}

/// Prefixes near each other, so that they overlap.
fn prefix() -> impl Strategy<Value = IpNet> {
    let v4 = (0u32..2048, 20u8..=32).prop_map(|(low, len)| {
        IpNet::V4(Ipv4Net::new(Ipv4Addr::from(0xcb00_7000 + low), len).unwrap())
    });
    let v6 = (any::<u16>(), 24u8..=128).prop_map(|(low, len)| {
        let ip = Ipv6Addr::from(0x2001_0db8u128 << 96 | u128::from(low));
        IpNet::V6(Ipv6Net::new(ip, len).unwrap())
    });
    let broad = ["203.0.0.0/16", "0.0.0.0/0", "::/0", "203.0.112.0/20", "2001:d00::/24"];
    let broad = prop::sample::select(broad.to_vec()).prop_map(|t| t.parse().unwrap());
    prop_oneof![12 => v4, 12 => v6, 1 => broad]
}

fn prefilter(source: Source) -> impl Strategy<Value = Prefilter> {
    let lists = prop::collection::vec((any::<bool>(), prop::collection::vec(prefix(), 0..8)), 0..4);
    (lists, prop::collection::vec(prefix(), 0..3)).prop_map(move |(lists, allow)| Prefilter {
        allow: allow.into_iter().collect(),
        lists: lists
            .into_iter()
            .enumerate()
            .map(|(i, (drop, prefixes))| {
                let action = if drop { ListAction::Drop } else { ListAction::Audit };
                of_source(&format!("l{i}"), action, prefixes, source.clone())
            })
            .collect(),
        ..Prefilter::default()
    })
}

fn of_files() -> impl Strategy<Value = Prefilter> {
    prefilter(Source::Kubernetes("a/b".to_owned()))
}

/// The same lists with some prefixes more and less.
fn change(p: &Prefilter, changes: &[(usize, IpNet)]) -> Prefilter {
    let mut p = p.clone();
    for (at, net) in changes {
        let count = p.lists.len();
        if count == 0 {
            break;
        }
        let list = Arc::make_mut(&mut p.lists[at % count]);
        let _ = list.prefixes.insert(*net) || list.prefixes.remove(*net);
    }
    p
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn every_address_is_of_the_list_that_the_oracle_says(first in of_files(), second in of_files()) {
        let mut prefixes = Prefixes::default();
        let mut tables = tables();
        for p in [&first, &second] {
            tables.apply(&prefixes.plan(p, &tables).unwrap()).unwrap();
            prefixes.release();
            says_what_the_oracle_says(&tables, &prefixes, p)?;
        }
        prop_assert_eq!(prefixes.plan(&second, &tables).unwrap(), vec![]);
        let lists = second.lists.iter().map(|l| Arc::new((**l).clone())).collect();
        let equal = Prefilter { lists, ..second.clone() };
        prop_assert_eq!(prefixes.plan(&equal, &tables).unwrap(), vec![]);
    }

    /// Bans are stored into the half in force, and mean the same as a new half.
    #[test]
    fn stores_say_what_a_new_half_says(
        first in prefilter(Source::Api),
        changes in prop::collection::vec(
            prop::collection::vec((0..4usize, prefix()), 1..4), 1..12,
        ),
    ) {
        let mut prefixes = Prefixes::default();
        let mut tables = tables();
        tables.apply(&prefixes.plan(&first, &tables).unwrap()).unwrap();
        let mut now = first;
        for some in changes {
            now = change(&now, &some);
            let ops = prefixes.plan(&now, &tables).unwrap();
            let short = some.iter().any(|(_, net)| net.prefix_len() < 12);
            let whole = ops.iter().any(|op| matches!(op, Op::Prefixes(_)));
            prop_assert!(short || !whole, "{:?}", ops);
            tables.apply(&ops).unwrap();
            prefixes.release();
        }
        says_what_the_oracle_says(&tables, &prefixes, &now)?;
        let names = now.lists.iter().map(|l| l.name.as_str());
        let mut adopted = Prefixes::adopt(&tables, names);
        prop_assert_eq!(adopted.plan(&now, &tables).unwrap(), vec![]);
        prop_assert_eq!(adopted.used(), prefixes.used());
    }

    /// Wherever a change is cut short, packets meet the old lists or the new ones.
    #[test]
    fn a_change_cut_short_is_none_or_all(
        first in of_files(), second in of_files(), cut in 0.0..1.0f64,
    ) {
        let mut prefixes = Prefixes::default();
        let mut tables = tables();
        // Of one shape, so that rows of lists stay and only prefixes change.
        let lists = first.lists.iter().zip(&second.lists).map(|(a, b)| {
            list(&a.name, a.action, b.prefixes.iter().collect())
        });
        let lists: Vec<_> = lists.collect();
        let first = Prefilter { lists: first.lists[..lists.len()].to_vec(), ..first };
        let second = Prefilter { lists, ..second };
        tables.apply(&prefixes.plan(&first, &tables).unwrap()).unwrap();
        prefixes.release();
        let ops = prefixes.plan(&second, &tables).unwrap();
        let done = (ops.len() as f64 * cut) as usize;
        tables.apply(&ops[..done]).unwrap();
        let stands = if done == ops.len() { &second } else { &first };
        says_what_the_oracle_says(&tables, &prefixes, stands)?;

        let names = second.lists.iter().map(|l| l.name.as_str());
        let mut adopted = Prefixes::adopt(&tables, names);
        tables.apply(&adopted.plan(&second, &tables).unwrap()).unwrap();
        says_what_the_oracle_says(&tables, &adopted, &second)?;
        let names = second.lists.iter().map(|l| l.name.as_str());
        let mut again = Prefixes::adopt(&tables, names);
        prop_assert_eq!(again.plan(&second, &tables).unwrap(), vec![]);
    }
}

fn says_what_the_oracle_says(
    tables: &Fake,
    prefixes: &Prefixes,
    p: &Prefilter,
) -> Result<(), TestCaseError> {
    let v4 = (0..2100u32).map(|low| IpAddr::from(Ipv4Addr::from(0xcb00_7000 + low)));
    let v6 =
        (0..300u128).map(|low| IpAddr::from(Ipv6Addr::from(0x2001_0db8u128 << 96 | (low * 217))));
    let far = ["8.8.8.8", "2001:4860::1", "203.0.1.1", "2001:dff::1"].map(|t| t.parse().unwrap());
    for ip in v4.chain(v6).chain(far) {
        let want = oracle(p, ip).map_or(0, |n| prefixes.number_of(n).unwrap());
        prop_assert_eq!(found(tables, ip), want, "{}", ip);
        prop_assert_eq!(lookup(p, ip).decides, oracle(p, ip));
    }
    Ok(())
}

fn dropping(nets: &[&str]) -> Prefilter {
    let nets = nets.iter().map(|n| n.parse().unwrap()).collect();
    let lists = vec![of_source("l", ListAction::Drop, nets, Source::Api)];
    Prefilter { lists, ..Prefilter::default() }
}

#[test]
fn one_more_prefix_is_one_store() {
    let (mut prefixes, mut tables) = (Prefixes::default(), tables());
    tables.apply(&prefixes.plan(&dropping(&["192.0.2.0/24"]), &tables).unwrap()).unwrap();
    let more = dropping(&["192.0.2.0/24", "198.51.100.7/32"]);
    let ops = prefixes.plan(&more, &tables).unwrap();
    let one = One { base: 7, host_bits: 0, inside: 1, outside: 0 };
    assert_eq!(ops, [Op::Line(0xc6_3364, Entry::One(one))]);
    tables.apply(&ops).unwrap();
    let ops = prefixes.plan(&dropping(&["198.51.100.7/32"]), &tables).unwrap();
    assert_eq!(ops, [Op::Line(0xc0_0002, Entry::List(0))]);
}

#[test]
fn a_bitmap_comes_with_the_second_prefix_and_goes_with_it() {
    let (mut prefixes, mut tables) = (Prefixes::default(), tables());
    let mut plan = |nets: &[&str], prefixes: &mut Prefixes| {
        let ops = prefixes.plan(&dropping(nets), &tables).unwrap();
        tables.apply(&ops).unwrap();
        ops
    };
    plan(&["192.0.2.1/32"], &mut prefixes);
    let ops = plan(&["192.0.2.1/32", "192.0.2.3/32"], &mut prefixes);
    let bitmap = Bitmap::new([0b1010, 0, 0, 0]);
    let entry = Entry::Bitmap { row: 0, list: 1 };
    assert_eq!(ops, [Op::Bitmap(0, bitmap), Op::Line(0xc0_0002, entry)]);
    let ops = plan(&["192.0.2.128/25"], &mut prefixes);
    assert!(matches!(ops[..], [Op::Line(0xc0_0002, Entry::One(_))]), "{ops:?}");
    assert_eq!(prefixes.used().0, 1, "until programs have left it");
    prefixes.release();
    assert_eq!(prefixes.used().0, 0);
}

#[test]
fn two_lists_in_one_network_are_a_block() {
    let (mut prefixes, mut tables) = (Prefixes::default(), tables());
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let p = Prefilter {
        allow: [net("192.0.2.7/32")].into_iter().collect(),
        lists: vec![
            list("a", ListAction::Audit, vec![net("192.0.2.0/25")]),
            list("b", ListAction::Drop, vec![net("192.0.2.0/28"), net("192.0.2.64/32")]),
        ],
        ..Prefilter::default()
    };
    tables.apply(&prefixes.plan(&p, &tables).unwrap()).unwrap();
    assert_eq!(prefixes.used(), (0, 1));
    let [a, b] = ["a", "b"].map(|name| prefixes.number_of(name).unwrap());
    for (low, want) in [(0, b), (6, b), (7, 0), (15, b), (16, a), (64, b), (127, a), (128, 0)] {
        assert_eq!(found(&tables, [192, 0, 2, low].into()), want, "{low}");
    }
}

#[test]
fn several_prefixes_of_a_file_change_at_once_or_not_at_all() {
    let (mut prefixes, mut tables) = (Prefixes::default(), tables());
    let of_file = |nets: &[&str]| {
        let nets = nets.iter().map(|n| n.parse().unwrap()).collect();
        let lists = vec![list("l", ListAction::Drop, nets)];
        Prefilter { lists, ..Prefilter::default() }
    };
    tables.apply(&prefixes.plan(&of_file(&["192.0.2.0/24"]), &tables).unwrap()).unwrap();
    prefixes.release();
    let two = of_file(&["192.0.2.0/24", "198.51.100.7/32", "203.0.113.9/32"]);
    let ops = prefixes.plan(&two, &tables).unwrap();
    assert!(matches!(ops[..], [Op::Prefixes(_), Op::Flags(0)]), "{ops:?}");
    tables.apply(&ops).unwrap();
    let ops = prefixes.plan(&of_file(&["198.51.100.7/32", "203.0.113.9/32"]), &tables).unwrap();
    assert!(matches!(ops[..], [Op::Line(..)]), "{ops:?}");
    // The other half may still be read.
    let ops = prefixes.plan(&of_file(&["192.0.2.0/24"]), &tables).unwrap();
    assert!(matches!(ops[..], [Op::Settle, Op::Prefixes(_), Op::Flags(Control::HALF)]), "{ops:?}");
}

#[test]
fn what_finds_no_room_changes_nothing_and_says_what_it_needs() {
    let mut prefixes = Prefixes::default();
    let small = Fake::new(capacity(4, 4), 0, 0);
    let nets = (0..5).flat_map(|i| [1, 3].map(|low| format!("192.0.{i}.{low}/32")));
    let nets: Vec<String> = nets.chain(["2001:db8::/32".to_owned()]).collect();
    let p = dropping(&nets.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(prefixes.plan(&p, &small), Err(Full("BITMAPS")));
    assert_eq!(prefixes.number_of("l"), None);
    let needs = prefixes.needs(&p).unwrap();
    let wants = Needs { any: true, lines: 1, bitmaps: 5, blocks: 0, nets6: 1, leading6: 1 };
    assert_eq!(needs, wants);
    assert_eq!(prefixes.plan(&p, &tables()).unwrap().len(), 3, "list, half, flags");

    let mut prefixes = Prefixes::default();
    let none = Fake::new(Capacity { lines: 0, ..capacity(0, 0) }, 0, 0);
    assert_eq!(prefixes.needs(&Prefilter::default()).unwrap(), Needs::default());
    assert_eq!(prefixes.plan(&Prefilter::default(), &none), Ok(vec![]));
    assert_eq!(prefixes.plan(&dropping(&["192.0.2.0/24"]), &none), Err(Full("LINES")));
}

#[test]
fn very_many_ipv6_prefixes_are_found() {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        u128::from(state >> 20)
    };
    let nets: Vec<IpNet> = (0..3000)
        .map(|_| {
            let ip = Ipv6Addr::from(0x2a00u128 << 112 | next() << 68 | next());
            IpNet::V6(Ipv6Net::new(ip, 20 + (next() % 109) as u8).unwrap())
        })
        .collect();
    let p = Prefilter {
        allow: nets.iter().step_by(50).copied().collect(),
        lists: vec![list("l", ListAction::Drop, nets.clone())],
        ..Prefilter::default()
    };
    let mut tables = Fake::new(Capacity { filter6: 1024, buckets6: 2048, ..capacity(1, 1) }, 0, 0);
    let mut prefixes = Prefixes::default();
    tables.apply(&prefixes.plan(&p, &tables).unwrap()).unwrap();
    for net in nets {
        for ip in [net.network(), net.broadcast()] {
            let want = u8::from(oracle(&p, ip).is_some());
            assert_eq!(found(&tables, ip), want, "{net}");
        }
    }
}

#[test]
fn lookup_names_lists_and_prefixes() {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let mut p = dropping(&["192.0.2.0/24", "192.0.2.64/26"]);
    p.lists.insert(0, list("watch", ListAction::Audit, vec![net("192.0.0.0/16")]));
    let all = config::model::Scope::default();
    let hits = vec![
        Hit { list: "watch", action: ListAction::Audit, prefix: net("192.0.0.0/16"), scope: &all },
        Hit { list: "l", action: ListAction::Drop, prefix: net("192.0.2.64/26"), scope: &all },
    ];
    let seen = lookup(&p, "::ffff:192.0.2.65".parse().unwrap());
    let want = Verdict { decides: Some("l"), hits: hits.clone(), ..Verdict::default() };
    assert_eq!(seen, want);
    p.allow = [net("0.0.0.0/0")].into_iter().collect();
    let seen = lookup(&p, "192.0.2.65".parse().unwrap());
    assert_eq!(seen, Verdict { allowed: Some(net("0.0.0.0/0")), hits, ..Verdict::default() });
    assert_eq!(lookup(&p, "2001:db8::1".parse().unwrap()), Verdict::default());
}

#[test]
fn lookup_of_a_packet_minds_scopes() {
    use config::model::{About, Scope, ScopeProtocol};
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let ssh =
        Scope { protocol: Some(ScopeProtocol::Tcp), ports: vec![(22, 22)], ..Scope::default() };
    let mut p = dropping(&[]);
    p.lists = [
        ("watch", ListAction::Audit, Scope::default()),
        ("ssh", ListAction::Drop, ssh),
        ("wan", ListAction::Drop, Scope { interfaces: vec!["wan".into()], ..Scope::default() }),
        ("out", ListAction::Drop, Scope { destination: true, ..Scope::default() }),
    ]
    .into_iter()
    .map(|(name, action, scope)| {
        let list = list(name, action, vec![net("192.0.2.0/24")]);
        Arc::new(PrefixList { scope, ..Arc::unwrap_or_clone(list) })
    })
    .collect();
    let ask = |about: About<'_>| {
        let seen = lookup_packet(&p, "192.0.2.7".parse().unwrap(), &about);
        assert_eq!(seen.hits.len(), 4);
        (seen.decides.map(str::to_owned), seen.depends)
    };
    let to =
        |protocol, port| About { protocol: Some(protocol), port: Some(port), ..About::default() };
    let on = |interface, about| About { interface: Some(interface), ..about };
    let decides = |list: &str| (Some(list.to_owned()), false);
    assert_eq!(ask(to(ScopeProtocol::Tcp, 22)), decides("ssh"));
    assert_eq!(ask(on("lan", to(ScopeProtocol::Tcp, 80))), decides("watch"));
    assert_eq!(ask(on("wan", to(ScopeProtocol::Udp, 22))), decides("wan"));
    assert_eq!(ask(About { destination: true, ..About::default() }), decides("out"));
    assert_eq!(ask(About::default()), (Some("ssh".to_owned()), true), "by protocol and port");
    assert_eq!(ask(to(ScopeProtocol::Udp, 22)), (Some("wan".to_owned()), true), "by interface");
}

#[test]
fn limits_keep_their_rows_and_filters_are_flags() {
    let limit = |name: &str, packets_per_second| RateLimit {
        name: name.to_owned(),
        source: Source::Api,
        action: ListAction::Drop,
        protocol: Some(Protocol::Udp),
        port: 53,
        rate: Rate::Packets(packets_per_second),
        burst: 10,
        key: (24, 56),
        tcp_flags: (0, 0),
    };
    let (mut prefixes, mut tables) = (Prefixes::default(), tables());
    let mut p = dropping(&["192.0.2.0/24"]);
    p.rate_limits = vec![limit("a", 10), limit("b", 20)];
    p.filters.tcp_flags = true;
    tables.apply(&prefixes.plan(&p, &tables).unwrap()).unwrap();
    prefixes.release();
    let flags = |tables: &Fake| tables.control().flags() & Control::GUARD;
    assert_eq!(flags(&tables), Control::FILTER_TCP_FLAGS | Control::LIMITS);
    assert_eq!((prefixes.limit_row("a"), prefixes.limit_row("b")), (Some(0), Some(1)));

    p.rate_limits = vec![limit("b", 20), limit("c", 30)];
    p.filters = config::model::Filters { amplification: true, ..Default::default() };
    let ops = prefixes.plan(&p, &tables).unwrap();
    assert!(matches!(ops[..], [Op::Limit(0, _), Op::Flags(_)]), "{ops:?}");
    tables.apply(&ops).unwrap();
    assert_eq!(flags(&tables), Control::FILTER_AMPLIFICATION | Control::LIMITS);
    assert_eq!((prefixes.limit_row("b"), prefixes.limit_row("c")), (Some(1), Some(0)));

    let mut adopted = Prefixes::adopt(&tables, ["l"].into_iter());
    assert_eq!(adopted.plan(&p, &tables).unwrap(), vec![]);
    let mut adopted = Prefixes::adopt(&tables, ["l"].into_iter());
    p.rate_limits.clear();
    let ops = adopted.plan(&p, &tables).unwrap();
    assert!(matches!(ops[..], [Op::Limit(0, _), Op::Limit(1, _), Op::Flags(_)]), "{ops:?}");
}

fn any_scope() -> impl Strategy<Value = config::model::Scope> {
    let protocol = prop::sample::select(vec![
        None,
        Some(ScopeProtocol::Tcp),
        Some(ScopeProtocol::Udp),
        Some(ScopeProtocol::Icmp),
    ]);
    let ports = prop::sample::select(vec![vec![], vec![(53, 53)], vec![(50, 60), (80, 80)]]);
    let interfaces = prop::sample::select(vec![vec![], vec!["eth0"], vec!["eth1", "gone"]]);
    (interfaces, any::<bool>(), protocol, ports).prop_map(
        |(interfaces, destination, protocol, ports)| {
            let has_ports = matches!(protocol, Some(ScopeProtocol::Tcp | ScopeProtocol::Udp));
            config::model::Scope {
                interfaces: interfaces.into_iter().map(str::to_owned).collect(),
                destination,
                protocol,
                ports: if has_ports { ports } else { Vec::new() },
            }
        },
    )
}

/// Lists of which some have scopes.
fn with_scopes(p: Prefilter, scopes: &[Option<config::model::Scope>]) -> Prefilter {
    let mut p = p;
    for (list, scope) in p.lists.iter_mut().zip(scopes) {
        if let Some(scope) = scope {
            Arc::make_mut(list).scope = scope.clone();
        }
    }
    p
}

/// What the documentation promises of lists with scopes, by trying every list.
fn scoped_oracle<'a>(p: &'a Prefilter, ip: IpAddr, seen: &Seen) -> Option<&'a str> {
    let covers = |set: &PrefixSet| set.iter().any(|n| n.contains(&ip));
    if covers(&p.allow) {
        return None;
    }
    let has = |scope: &config::model::Scope| {
        let protocol = match scope.protocol {
            None => true,
            Some(ScopeProtocol::Tcp) => seen.protocol == 6,
            Some(ScopeProtocol::Udp) => seen.protocol == 17,
            Some(ScopeProtocol::Sctp) => seen.protocol == 132,
            Some(ScopeProtocol::Icmp) => seen.protocol == 1 || seen.protocol == 58,
        };
        let name = match seen.ifindex {
            1 => "eth0",
            2 => "eth1",
            _ => "another",
        };
        let port = scope.ports.is_empty()
            || seen.port.is_some_and(|p| scope.ports.iter().any(|(a, b)| (*a..=*b).contains(&p)));
        let interface = scope.interfaces.is_empty() || scope.interfaces.iter().any(|i| i == name);
        scope.destination == seen.destination && protocol && port && interface
    };
    let first = |action| {
        let mut lists = p.lists.iter().filter(|l| l.action == action);
        lists.find(|l| covers(&l.prefixes) && has(&l.scope))
    };
    first(ListAction::Drop).or_else(|| first(ListAction::Audit)).map(|l| l.name.as_str())
}

fn says_what_the_scoped_oracle_says(
    tables: &Fake,
    prefixes: &Prefixes,
    p: &Prefilter,
) -> Result<(), TestCaseError> {
    let v4 = (0..2100u32).step_by(3).map(|low| IpAddr::from(Ipv4Addr::from(0xcb00_7000 + low)));
    let v6 =
        (0..100u128).map(|low| IpAddr::from(Ipv6Addr::from(0x2001_0db8u128 << 96 | (low * 651))));
    let far = ["8.8.8.8", "2001:4860::1", "203.0.1.1", "2001:dff::1"].map(|t| t.parse().unwrap());
    let scopes: Vec<Scope> = (0..=MAX_LISTS).map(|row| tables.scope(row)).collect();
    for ip in v4.chain(v6).chain(far) {
        let number = found(tables, ip);
        let row = tables.list(number.into());
        for (protocol, port) in [(6, Some(80)), (17, Some(53)), (17, None), (1, None), (58, None)] {
            for (ifindex, destination) in [(1, false), (2, true), (3, false), (3, true)] {
                let seen = Seen { ifindex, protocol, port, destination };
                let decided = match row.is_plain() {
                    true if destination => 0,
                    true => u32::from(number),
                    false => abi::scope::decides(&row, |n| scopes[n as usize].has(&seen)),
                };
                let want = scoped_oracle(p, ip, &seen);
                let want = want.map_or(0, |n| u32::from(prefixes.number_of(n).unwrap()));
                prop_assert_eq!(decided, want, "{} {:?}", ip, seen);
            }
        }
    }
    let asks = tables.control().flags() & Control::DESTINATIONS != 0;
    prop_assert_eq!(asks, p.lists.iter().any(|l| l.scope.destination));
    Ok(())
}

fn interfaces() -> BTreeMap<String, u32> {
    BTreeMap::from([("eth0".to_owned(), 1), ("eth1".to_owned(), 2)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn overlapping_scopes_are_all_right(
        first in of_files(), second in of_files(),
        scopes in prop::collection::vec(prop::option::weighted(0.7, any_scope()), 8..9),
    ) {
        let mut prefixes = Prefixes::default();
        prop_assert_eq!(prefixes.set_interfaces(interfaces()), vec![]);
        let mut tables = tables();
        let wanted = [with_scopes(first, &scopes[..4]), with_scopes(second, &scopes[4..])];
        for p in &wanted {
            tables.apply(&prefixes.plan(p, &tables).unwrap()).unwrap();
            prefixes.release();
            says_what_the_scoped_oracle_says(&tables, &prefixes, p)?;
        }
        let names = wanted[1].lists.iter().map(|l| l.name.as_str());
        let mut adopted = Prefixes::adopt(&tables, names);
        adopted.set_interfaces(interfaces());
        prop_assert_eq!(adopted.plan(&wanted[1], &tables).unwrap(), vec![]);
    }

    #[test]
    fn stores_keep_scopes_right(
        first in prefilter(Source::Api),
        scopes in prop::collection::vec(prop::option::weighted(0.7, any_scope()), 4..5),
        changes in prop::collection::vec(
            prop::collection::vec((0..4usize, prefix()), 1..4), 1..8,
        ),
    ) {
        let mut prefixes = Prefixes::default();
        prefixes.set_interfaces(interfaces());
        let mut tables = tables();
        let mut now = with_scopes(first, &scopes);
        tables.apply(&prefixes.plan(&now, &tables).unwrap()).unwrap();
        for some in changes {
            now = change(&now, &some);
            tables.apply(&prefixes.plan(&now, &tables).unwrap()).unwrap();
            prefixes.release();
        }
        says_what_the_scoped_oracle_says(&tables, &prefixes, &now)?;
    }

    /// Wherever a change of scopes is cut short, packets meet the old lists or the new ones.
    #[test]
    fn a_change_of_scopes_cut_short_is_none_or_all(
        lists in of_files(),
        scopes in prop::collection::vec(prop::option::weighted(0.7, any_scope()), 8..9),
        cut in 0.0..1.0f64,
    ) {
        let mut prefixes = Prefixes::default();
        prefixes.set_interfaces(interfaces());
        let mut tables = tables();
        let first = with_scopes(lists.clone(), &scopes[..4]);
        let second = with_scopes(lists, &scopes[4..]);
        tables.apply(&prefixes.plan(&first, &tables).unwrap()).unwrap();
        prefixes.release();
        let before = Prefixes { numbers: prefixes.numbers.clone(), ..Prefixes::default() };
        let ops = prefixes.plan(&second, &tables).unwrap();
        let flags = ops.iter().position(|op| matches!(op, Op::Flags(_))).map_or(0, |at| at + 1);
        let done = (flags as f64 * cut) as usize;
        if done < flags {
            tables.apply(&ops[..done]).unwrap();
            says_what_the_scoped_oracle_says(&tables, &before, &first)?;
            tables.apply(&ops[done..]).unwrap();
        } else {
            tables.apply(&ops).unwrap();
        }
        says_what_the_scoped_oracle_says(&tables, &prefixes, &second)?;
    }
}

#[test]
fn an_interface_that_comes_is_one_store() {
    let (mut prefixes, mut tables) = (Prefixes::default(), tables());
    let mut p = dropping(&["192.0.2.0/24"]);
    let scope = config::model::Scope { interfaces: vec!["eth1".to_owned()], ..Default::default() };
    p = with_scopes(p, &[Some(scope)]);
    tables.apply(&prefixes.plan(&p, &tables).unwrap()).unwrap();
    assert_eq!(tables.scope(1).interfaces()[0], 0, "it is not there");
    let ops = prefixes.set_interfaces(interfaces());
    assert!(matches!(ops[..], [Op::Scope(1, _)]), "{ops:?}");
    tables.apply(&ops).unwrap();
    assert_eq!(tables.scope(1).interfaces()[..2], [2, 0]);
    assert_eq!(prefixes.set_interfaces(interfaces()), []);
}

#[test]
fn more_combinations_than_numbers_are_refused() {
    // Each address is on another set of eight lists.
    let ports = |n: u16| config::model::Scope {
        protocol: Some(ScopeProtocol::Tcp),
        ports: vec![(n, n)],
        ..Default::default()
    };
    let nets = |bit: u32| {
        let of = (0..256u32).filter(move |low| low >> bit & 1 != 0);
        of.map(|low| format!("192.0.2.{low}/32").parse().unwrap()).collect::<Vec<IpNet>>()
    };
    let lists = (0..8u32).map(|bit| {
        let mut list = list(&format!("l{bit}"), ListAction::Drop, nets(bit));
        Arc::make_mut(&mut list).scope = ports(bit as u16 + 1);
        list
    });
    let mut p = Prefilter { lists: lists.collect(), ..Prefilter::default() };
    let (mut prefixes, tables) = (Prefixes::default(), tables());
    assert_eq!(prefixes.plan(&p, &tables), Err(Full("LISTS")));
    p.lists.pop();
    assert!(prefixes.plan(&p, &tables).is_ok());
}
