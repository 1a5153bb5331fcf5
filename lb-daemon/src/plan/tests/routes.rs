//! Services that send some clients to a group of their backends.

use config::model::SourceRoute;

use super::*;

/// Of each route: its prefix, whether its group is the second one, and the group's backends, which are no others'.
pub(super) type Routed = Vec<(&'static str, bool)>;

const PREFIXES: [&str; 6] = [
    "10.0.0.0/8",
    "192.0.2.0/24",
    "192.0.2.128/25",
    "192.0.2.192/32",
    "2001:db8::/32",
    "0.0.0.0/0",
];

pub(super) fn arbitrary() -> impl Strategy<Value = Routed> {
    let prefixes = prop::sample::subsequence(PREFIXES.to_vec(), 0..=PREFIXES.len());
    prefixes.prop_flat_map(|prefixes| {
        let len = prefixes.len();
        prop::collection::vec(any::<bool>(), len)
            .prop_map(move |second| prefixes.iter().copied().zip(second).collect())
    })
}

/// Routes these to the groups `a` and `b`, with backends 100 and on, and 110 and on.
pub(super) fn put(service: &mut Service, routed: &[(&'static str, bool)]) {
    for (second, group, first) in [(false, "a", 100), (true, "b", 110)] {
        let prefixes: Vec<_> =
            routed.iter().filter(|r| r.1 == second).map(|r| r.0.parse().unwrap()).collect();
        if prefixes.is_empty() {
            continue;
        }
        service.source_routes.push(SourceRoute { prefixes, group: group.to_owned() });
        service.backends.extend((first..first + 3).map(|n| Backend {
            group: Some(group.to_owned()),
            ..backend(n, 1, BackendStateOf::Active)
        }));
    }
}

/// Each client reaches the group of the longest prefix that has it, and every other one the service's own backends.
pub(super) fn check(rig: &Rig, state: &DesiredState) -> Result<(), TestCaseError> {
    for (name, spec) in &state.services {
        if let Some(part) = &spec.part_of {
            let standing = &rig.planner.services()[name.as_str()];
            prop_assert_eq!(standing.frontends.len(), 1);
            prop_assert!(state.services.contains_key(&part.service));
            continue;
        }
        if !spec.ports.iter().any(|port| port.port == 80) {
            continue;
        }
        let front = name[1..].parse().unwrap();
        for client in
            ["10.9.9.9", "192.0.2.1", "192.0.2.130", "192.0.2.192", "192.0.3.0", "9.9.9.9"]
        {
            let client: IpAddr = client.parse().unwrap();
            let nets = spec.source_routes.iter().flat_map(|route| {
                route.prefixes.iter().map(move |net| (net, route.group.as_str()))
            });
            let longest = nets.filter(|(net, _)| net.contains(&client));
            let group = longest.max_by_key(|(net, _)| net.prefix_len()).map(|(_, group)| group);
            let takes: Vec<IpAddr> = spec
                .backends
                .iter()
                .filter(|b| b.group.as_deref() == group)
                .map(|b| b.address)
                .collect();
            let got = rig.send_from(client, front, 7, Phase::Opening);
            match got {
                Err(reason) => prop_assert!(takes.is_empty(), "{client}: {reason:?}"),
                Ok(backend) => prop_assert!(takes.contains(&backend), "{client}: {backend}"),
            }
        }
    }
    Ok(())
}

fn with_canary(own: &[u8], canary: &[(u8, BackendStateOf)]) -> DesiredState {
    let mut web = service("web", 1, &[80], own);
    let prefixes = vec!["192.0.2.0/24".parse().unwrap()];
    web.source_routes.push(SourceRoute { prefixes, group: "canary".to_owned() });
    web.backends.extend(
        canary.iter().map(|&(n, state)| Backend {
            group: Some("canary".to_owned()),
            ..backend(n, 1, state)
        }),
    );
    wanted([web])
}

fn client(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

fn all(rig: &Rig, phase: Phase) -> Vec<IpAddr> {
    (0..200u8).map(|n| rig.send_from(client(n), 1, 1000, phase).unwrap()).collect()
}

/// Down, drained or without weight: new connections go to the service's own backends, and stay there when the group
/// takes connections again; those that the group had go on.
#[test]
fn clients_of_a_group_that_takes_nothing_go_to_the_service() {
    use BackendStateOf::{Active, Draining};
    // At once, and when nothing moves any more.
    for (drained, back) in [(false, 20), (true, 20), (true, 200)] {
        let mut rig = Rig::new();
        let up = with_canary(&[1, 2, 3], &[(11, Active), (12, Active)]);
        rig.plan(&up, 0);
        let own = [ip(1), ip(2), ip(3)];
        let groups = [ip(11), ip(12)];
        let before = all(&rig, Phase::Opening);
        assert!(before.iter().all(|b| groups.contains(b)));
        let set = |rig: &mut Rig, down: bool, at: u64| {
            if drained {
                let state = if down { Draining } else { Active };
                rig.plan(&with_canary(&[1, 2, 3], &[(11, state), (12, state)]), at);
                return;
            }
            for n in [11, 12] {
                let now = Duration::from_secs(at);
                let ops = rig.planner.set_health("web/canary", ip(n), down, &rig.fake, now);
                rig.fake.apply(&ops).unwrap();
            }
        };
        set(&mut rig, true, 10);
        assert_eq!(all(&rig, Phase::Established), before, "drained: {drained}");
        let opened = |rig: &Rig| -> Vec<IpAddr> {
            (0..200u8).map(|n| rig.send_from(client(n), 1, 2000, Phase::Opening).unwrap()).collect()
        };
        let during = opened(&rig);
        assert!(during.iter().all(|b| own.contains(b)), "drained: {drained}");
        let go_on = |rig: &Rig| -> Vec<IpAddr> {
            let one = |n| rig.send_from(client(n), 1, 2000, Phase::Established).unwrap();
            (0..200u8).map(one).collect()
        };
        assert_eq!(go_on(&rig), during, "drained: {drained}");
        if back > 10 + DRAIN.as_secs() {
            rig.settle(10 + DRAIN.as_secs());
        }
        set(&mut rig, false, back);
        assert_eq!(go_on(&rig), during, "back after {back}, drained: {drained}");
        assert!(opened(&rig).iter().all(|b| groups.contains(b)), "drained: {drained}");
        // Others have noticed nothing.
        assert!(rig.open(50).iter().all(|b| own.contains(b)));
    }
}

#[test]
fn routes_come_and_go_and_other_flows_stay() {
    let mut rig = Rig::new();
    rig.plan(&wanted([service("web", 1, &[80], &[1, 2, 3])]), 0);
    let before = rig.open(300);
    rig.plan(&with_canary(&[1, 2, 3], &[(11, BackendStateOf::Active)]), 10);
    assert_eq!(rig.go_on(300), before);
    assert!(all(&rig, Phase::Opening).iter().all(|&b| b == ip(11)));
    let ring = rig.planner.services()["web"].ring;
    rig.plan(&wanted([service("web", 1, &[80], &[1, 2, 3])]), 20);
    assert_eq!(rig.go_on(300), before);
    assert_eq!(rig.planner.services()["web"].ring, ring);
    assert!(!all(&rig, Phase::Opening).contains(&ip(11)));
    rig.plan(&wanted([]), 30);
    rig.planner.release();
    assert_eq!(rig.planner.used(), (0, 0, 0));
}

/// Connections of a group that is taken out stay until a drain is over, over restarts and other changes too; what begins
/// meanwhile has another backend, and keeps it. Then nothing of the group is left.
#[test]
fn a_group_that_is_removed_drains() {
    use BackendStateOf::Active;
    let both = with_canary(&[1, 2, 3], &[(11, Active), (12, Active)]);
    let without = || service("web", 1, &[80], &[1, 2, 3]);
    // Its servers go, or become the service's own, and so does the whole of the address 192.0.2.0/24 but for a half.
    let promoted = service("web", 1, &[80], &[1, 2, 3, 11, 12]);
    let mut half = without();
    let prefixes = vec!["192.0.2.128/25".parse().unwrap()];
    half.source_routes.push(SourceRoute { prefixes, group: "b".to_owned() });
    half.backends.push(Backend { group: Some("b".to_owned()), ..backend(21, 1, Active) });
    for (after, restart) in [(without(), false), (without(), true), (promoted, true), (half, false)]
    {
        let mut rig = Rig::new();
        rig.plan(&both, 0);
        let before = all(&rig, Phase::Opening);
        let others = rig.open(50);
        let adopt = |rig: &mut Rig, at: u64| {
            let now = Duration::from_secs(at);
            rig.adopt(&["web"], now, now + DRAIN);
        };
        if restart {
            adopt(&mut rig, 10);
        }
        let routed = after.source_routes.len();
        let stay = if routed == 0 { 200 } else { 128 };
        let new = wanted([after]);
        rig.plan(&new, 10);
        let check = |rig: &Rig| {
            assert_eq!(all(rig, Phase::Established)[..stay], before[..stay], "{routed} {restart}");
            assert_eq!(rig.go_on(50), others);
            let late = client(200);
            for n in 0..50 {
                let got = rig.send_from(late, 1, 3000 + n, Phase::Opening).unwrap();
                assert_eq!(got == ip(21), routed > 0, "{got}");
                assert_eq!(rig.send_from(late, 1, 3000 + n, Phase::Established), Ok(got));
            }
        };
        check(&rig);
        assert_eq!(rig.plan(&new, 11), [], "all of it stands");
        let opened: Vec<_> = (0..stay as u8)
            .map(|n| (n, rig.send_from(client(n), 1, 2000, Phase::Opening).unwrap()))
            .collect();
        let go_on = |rig: &Rig| {
            for &(n, server) in &opened {
                assert_eq!(rig.send_from(client(n), 1, 2000, Phase::Established), Ok(server));
            }
        };
        go_on(&rig);
        if restart {
            adopt(&mut rig, 20);
            rig.plan(&new, 20);
        }
        rig.settle(69);
        check(&rig);
        go_on(&rig);
        rig.settle(20 + 2 * DRAIN.as_secs());
        rig.settle(20 + 4 * DRAIN.as_secs());
        go_on(&rig);
        assert!(rig.planner.next_deadline().is_none());
        let mut fresh = Rig::new();
        fresh.plan(&new, 0);
        assert_eq!(rig.planner.used().0, fresh.planner.used().0);
        assert_eq!(rig.planner.used().1, fresh.planner.used().1);
        let names = |rig: &Rig| rig.planner.services().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&rig), names(&fresh));
        rig.plan(&wanted([]), 1000);
        rig.planner.release();
        assert_eq!(rig.planner.used(), (0, 0, 0));
    }
}

/// It comes back before its drain is over, or its service goes, or another address takes the place of its own.
#[test]
fn a_group_that_drains_comes_back_or_goes_with_its_service() {
    use BackendStateOf::Active;
    let both = with_canary(&[1, 2, 3], &[(11, Active), (12, Active)]);
    let mut rig = Rig::new();
    rig.plan(&both, 0);
    let before = all(&rig, Phase::Opening);
    rig.plan(&wanted([service("web", 1, &[80], &[1, 2, 3])]), 10);
    let during = |rig: &Rig, phase| -> Vec<IpAddr> {
        (0..200u8).map(|n| rig.send_from(client(n), 1, 2000, phase).unwrap()).collect()
    };
    let opened = during(&rig, Phase::Opening);
    rig.plan(&both, 20);
    assert_eq!(all(&rig, Phase::Established), before);
    assert_eq!(during(&rig, Phase::Established), opened);
    rig.settle(20 + DRAIN.as_secs());
    assert_eq!(all(&rig, Phase::Established), before);
    assert!(all(&rig, Phase::Opening).iter().all(|b| [ip(11), ip(12)].contains(b)));

    rig.plan(&wanted([service("web", 1, &[80], &[1, 2, 3])]), 200);
    rig.plan(&wanted([service("web", 2, &[80], &[1, 2, 3])]), 210);
    assert_eq!(rig.send_from(client(1), 1, 1000, Phase::Established), Err(Reason::NotOurs));
    assert!(rig.planner.services().keys().all(|name| &**name == "web"));
    rig.plan(&wanted([]), 220);
    rig.planner.release();
    assert_eq!(rig.planner.used(), (0, 0, 0));
}

/// A server that packets name is found whether it is in a group or not, and nobody once it has gone.
#[test]
fn servers_of_groups_have_numbers_until_they_have_gone() {
    let state = |canary: &[u8]| {
        let mut web = service("web", 1, &[80], &[1]);
        web.steering.tcp_option = true;
        let prefixes = vec!["192.0.2.0/24".parse().unwrap()];
        web.source_routes.push(SourceRoute { prefixes, group: "canary".to_owned() });
        web.backends.extend(canary.iter().map(|&n| Backend {
            group: Some("canary".to_owned()),
            ..backend(n, 1, BackendStateOf::Active)
        }));
        for backend in &mut web.backends {
            let IpAddr::V4(address) = backend.address else { panic!("IPv4") };
            backend.server_id = Some(address.octets()[3].into());
        }
        wanted([web])
    };
    let named = |rig: &Rig, id: u8| -> Option<IpAddr> {
        let view = rig.fake.view();
        let key = FrontendKey::new(vip(1).into(), 80, 6);
        let (_, frontend) = pick::frontend(&view, &key).unwrap();
        let choice = Choice::read(&view, frontend).unwrap();
        let row = abi::choice::named(&view, frontend, &choice, id.into());
        pick::Tables::backend(&view, row).map(|b| b.addr().into())
    };
    let mut rig = Rig::new();
    rig.plan(&state(&[11, 12]), 0);
    for n in [1, 11, 12] {
        assert_eq!(named(&rig, n), Some(ip(n)));
    }
    let fewer = state(&[11]);
    rig.plan(&fewer, 10);
    assert_eq!(named(&rig, 12), Some(ip(12)), "connections that it has name it");
    rig.settle(10 + DRAIN.as_secs());
    assert_eq!(named(&rig, 12), None);
    // Its row becomes another's.
    let other = wanted([service("other", 2, &[80], &[40, 41, 42])]);
    let mut both = fewer.clone();
    both.services.extend(other.services);
    rig.plan(&both, 100);
    assert_eq!(named(&rig, 12), None);
    assert_eq!(named(&rig, 11), Some(ip(11)));
    assert_eq!(named(&rig, 1), Some(ip(1)));
}

/// Two parts never have the same key, and one keeps its own when another daemon takes over.
#[test]
fn the_numbers_of_parts_stay() {
    let mut rig = Rig::new();
    let state = with_canary(&[1], &[(11, BackendStateOf::Active)]);
    rig.plan(&state, 0);
    let keys = |rig: &Rig| -> Vec<FrontendKey> {
        rig.planner.services()["web/canary"].frontends.keys().copied().collect()
    };
    let before = keys(&rig);
    let names: Vec<&str> = state.services.keys().map(String::as_str).collect();
    rig.adopt(&names, Duration::ZERO, Duration::ZERO);
    assert_eq!(rig.plan(&state, 1), []);
    assert_eq!(keys(&rig), before);
    let taken = before[0].port_protocol;
    let planned = Planned::new(1, Duration::ZERO);
    let number = rig.planner.part_number("web/canary", &planned);
    assert_eq!(FrontendKey::group(before[0].addr, number).port_protocol, taken + 1);
}
