use config::model::ScopeProtocol;
use proptest::prelude::*;

use super::*;

fn add(list: &str, cidr: &str, until: Option<u64>) -> Change {
    let cidr = cidr.parse().unwrap();
    Change::Add { list: list.into(), cidr, added: 1, until, reason: None }
}

fn remove(list: &str, cidr: &str) -> Change {
    Change::Remove { list: list.into(), cidr: cidr.parse().unwrap() }
}

/// Everything that can be seen of lists, checked against each other.
fn seen(lists: &Lists) -> Vec<Change> {
    let mut all = Vec::new();
    let mut ends = BTreeSet::new();
    for (name, list) in lists.iter() {
        all.push(about(name, list.scope().clone()));
        all.push(Change::Set { list: name.clone(), audit: list.action() == ListAction::Audit });
        for (&cidr, ban) in list.entries() {
            all.push(again(name, cidr, ban.clone()));
            ends.extend(ban.until.map(|until| (until, name.clone(), cidr)));
        }
        let compact: PrefixSet = list.entries().keys().copied().collect();
        assert_eq!(
            list.compact.prefixes.iter().collect::<Vec<_>>(),
            compact.iter().collect::<Vec<_>>()
        );
    }
    assert_eq!(ends, lists.ends);
    assert_eq!(lists.len(), lists.iter().map(|(_, l)| l.entries().len()).sum::<usize>());
    all
}

#[test]
fn entries_end_by_themselves() {
    let mut lists = Lists::default();
    let all = [
        add("f", "192.0.2.1/32", Some(50)),
        add("f", "192.0.2.2/32", Some(20)),
        add("f", "192.0.2.3/32", None),
        add("f", "192.0.2.2/32", Some(60)),
    ];
    assert_eq!(lists.apply(&all).0, Done { added: 3, replaced: 1, removed: 0 });
    assert_eq!(lists.next_end(), Some(50));
    assert_eq!(lists.ended(49), []);
    let ended = lists.ended(55);
    assert_eq!(ended, [remove("f", "192.0.2.1/32")]);
    lists.apply(&ended);
    assert_eq!(lists.next_end(), Some(60));
    assert_eq!(lists.behind(&Arc::default()).lists[0].prefixes.len(), 2);
}

/// TCP to a port; 0: everything.
fn port(port: u16) -> Scope {
    let tcp = Some(config::model::ScopeProtocol::Tcp);
    match port {
        0 => Scope::default(),
        port => Scope { protocol: tcp, ports: vec![(port, port)], ..Scope::default() },
    }
}

#[test]
fn a_list_keeps_its_scope_until_it_is_deleted() {
    let mut lists = Lists::default();
    let make = Change::Make { list: "f".into(), scope: Some(port(80)), audit: Some(true) };
    lists.apply(&[make.clone(), add("f", "192.0.2.1/32", None)]);
    lists.apply(&[add("f", "192.0.2.2/32", None)]);
    lists.apply(&[remove("f", "192.0.2.1/32"), remove("f", "192.0.2.2/32")]);
    let list = lists.get("f").unwrap();
    assert_eq!((list.scope(), list.action()), (&port(80), ListAction::Audit));
    assert_eq!(lists.behind(&Arc::default()).lists[0].scope, port(80));
    assert_eq!(lists.apply(&[make]).1, [], "it is so already");
    let (_, undo) = lists.apply(&[Change::Delete { list: "f".into() }]);
    assert!(lists.get("f").is_none());
    lists.apply(&undo);
    let list = lists.get("f").unwrap();
    assert_eq!((list.scope(), list.action()), (&port(80), ListAction::Audit));
}

#[test]
fn lists_of_the_api_stand_behind_those_of_files() {
    let files = Arc::new(Prefilter {
        allow: PrefixSet::default(),
        lists: vec![List::new("of-a-file").compact],
        ..Prefilter::default()
    });
    let mut lists = Lists::default();
    assert!(Arc::ptr_eq(&lists.behind(&files), &files));
    lists.apply(&[add("a", "192.0.2.1/32", None), Change::Set { list: "b".into(), audit: true }]);
    let merged = lists.behind(&files);
    let names: Vec<_> = merged.lists.iter().map(|l| (l.name.as_str(), l.action)).collect();
    let (drop, audit) = (ListAction::Drop, ListAction::Audit);
    assert_eq!(names, [("of-a-file", drop), ("a", drop), ("b", audit)]);
}

proptest! {
    #[test]
    fn what_is_undone_was_never_done(
        first in prop::collection::vec(change(), 0..20),
        second in prop::collection::vec(change(), 0..200),
    ) {
        let mut lists = Lists::default();
        lists.apply(&first);
        let before = seen(&lists);
        let (_, undo) = lists.apply(&second);
        seen(&lists);
        lists.apply(&undo);
        prop_assert_eq!(seen(&lists), before);
    }
}

fn change() -> impl Strategy<Value = Change> {
    let list = prop::sample::select(vec!["a", "b"]);
    (0..10u8, list, 0..100u8, prop::option::of(0..5u64)).prop_map(|(op, list, low, until)| {
        let cidr = format!("192.0.2.{low}/32");
        match op {
            0 => Change::Delete { list: list.into() },
            1 if low % 3 == 0 => Change::Set { list: list.into(), audit: low % 2 == 0 },
            1 => Change::Make {
                list: list.into(),
                scope: (low % 5 != 0).then(|| port(u16::from(low % 4))),
                audit: (low % 7 != 0).then_some(low % 2 == 0),
            },
            2..=4 => remove(list, &cidr),
            _ => add(list, &cidr, until),
        }
    })
}

#[test]
fn a_list_has_one_scope_and_one_action() {
    let port = |port| Scope {
        protocol: Some(ScopeProtocol::Tcp),
        ports: vec![(port, port)],
        ..Scope::default()
    };
    let mut lists = Lists::default();
    let make = Change::Make { list: "f".into(), scope: Some(port(80)), audit: None };
    lists.apply(&[make]);
    let keeps = |scope: Option<&Scope>, audit| lists.get("f").unwrap().admits(scope, audit);
    assert_eq!(keeps(None, None), Ok(()));
    assert_eq!(keeps(Some(&port(80)), Some(false)), Ok(()));
    let other = keeps(Some(&port(81)), None).unwrap_err().to_string();
    for words in ["scope: ", "drop of packets tcp to 80,", "tcp to 81", "delete --list f --all"] {
        assert!(other.contains(words), "{words} is not in {other}");
    }
    let all = keeps(Some(&Scope::default()), None).unwrap_err().to_string();
    assert!(all.contains("not for drop of all packets"), "{all}");
    let audit = keeps(Some(&port(80)), Some(true)).unwrap_err().to_string();
    assert!(audit.contains("action: ") && audit.contains("prefilter set f"), "{audit}");
}
