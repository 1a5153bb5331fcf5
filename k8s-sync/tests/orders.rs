//! Whatever the order in which objects come, change and go, the index holds what those that stand ask
//! for; and what it says has changed is what has changed.

mod common;

use std::{collections::BTreeMap, sync::Arc};

use common::{Object, apply, delete, index, render};
use config::model::Service;
use lb_k8s_sync::{Changes, Index, Key};
use proptest::prelude::*;
use serde_json::{Value, json};

/// One of few Services, in one of few forms: they share external addresses and change kind.
fn service(number: u8, form: u8) -> Value {
    let external: &[&str] = match form % 4 {
        0 => &[],
        1 => &["198.51.100.1"],
        2 => &["198.51.100.1", "2001:db8::1"],
        _ => &["198.51.100.2"],
    };
    let cluster = if form == 7 { "None".to_owned() } else { format!("10.96.0.{number}") };
    let mut ports = vec![json!({"name": "http", "port": 80, "targetPort": "http"})];
    if form % 3 == 1 {
        ports.push(json!({"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}));
    }
    let created = format!("2026-01-0{}T00:00:00Z", 9 - (number + form) % 3);
    json!({
        "kind": "Service",
        "metadata": {"namespace": "default", "name": format!("s{number}"), "creationTimestamp": created},
        "spec": {"clusterIP": cluster, "externalIPs": external, "ports": ports},
    })
}

/// One of few slices; its form says whose it is too, so it moves between Services.
fn slice(number: u8, form: u8) -> Value {
    let v4 = !form.is_multiple_of(5);
    let address = |host: u8| {
        if v4 { format!("10.244.0.{host}") } else { format!("2001:db8:244::{host}") }
    };
    let endpoints: Vec<Value> = (0..form % 4)
        .map(|i| {
            let turn = (form + i) % 3;
            let (ready, serving) = (turn == 0, turn == 1);
            json!({
                "addresses": [address(number % 2 * 2 + i)],
                "conditions": {"ready": ready, "serving": serving || ready, "terminating": !ready},
                "targetRef": {"kind": "Pod", "name": format!("pod-{}", (number + i) % 3)},
            })
        })
        .collect();
    let labels = if form == 11 {
        json!({})
    } else {
        json!({"kubernetes.io/service-name": format!("s{}", form % 3)})
    };
    json!({
        "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": format!("e{number}"), "labels": labels},
        "addressType": if v4 { "IPv4" } else { "IPv6" },
        "ports": [{"name": "http", "port": 8080 + i32::from(form % 2)}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        "endpoints": endpoints,
    })
}

fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        (0..3u8, 0..8u8).prop_map(|(n, form)| Object::parse(&service(n, form))),
        (0..4u8, 0..12u8).prop_map(|(n, form)| Object::parse(&slice(n, form))),
    ]
}

/// Objects that come or change, and (with `true`) go.
fn history() -> impl Strategy<Value = Vec<(Object, bool)>> {
    proptest::collection::vec((object(), proptest::bool::weighted(0.25)), 0..40)
}

fn step(index: &mut Index, object: &Object, goes: bool) -> Changes {
    if goes { delete(index, object) } else { apply(index, object) }
}

fn by_name(index: &Index) -> BTreeMap<String, Arc<Service>> {
    index.services().map(|service| (service.name.clone(), Arc::clone(service))).collect()
}

proptest! {
    #[test]
    fn only_what_stands_counts(history in history()) {
        let mut lived = index();
        let mut standing: BTreeMap<(bool, Key), Object> = BTreeMap::new();
        for (object, goes) in &history {
            step(&mut lived, object, *goes);
            let key = (matches!(object, Object::Service(_)), object.key());
            if *goes {
                standing.remove(&key);
            } else {
                standing.insert(key, object.clone());
            }
        }
        let mut fresh = index();
        for object in standing.values() {
            apply(&mut fresh, object);
        }
        prop_assert_eq!(render(&lived), render(&fresh));
        prop_assert_eq!(format!("{lived:?}"), format!("{fresh:?}"), "nothing is left behind");
    }

    #[test]
    fn every_order_gives_the_same(
        objects in proptest::collection::vec(object(), 0..12),
        seed in proptest::collection::vec(0..1000u16, 12),
    ) {
        // One form of each object, or the last one to come would count.
        let once: BTreeMap<String, Object> = objects
            .into_iter()
            .map(|o| (format!("{}{}", matches!(o, Object::Service(_)), o.key()), o))
            .collect();
        let mut shuffled: Vec<(u16, &Object)> = seed.into_iter().zip(once.values()).collect();
        shuffled.sort_by_key(|(at, _)| *at);
        let (mut sorted, mut other) = (index(), index());
        for object in once.values() {
            apply(&mut sorted, object);
        }
        for (_, object) in shuffled {
            apply(&mut other, object);
        }
        prop_assert_eq!(render(&sorted), render(&other));
    }

    #[test]
    fn changes_are_what_changed(history in history()) {
        let mut index = index();
        let mut followed: BTreeMap<String, Arc<Service>> = BTreeMap::new();
        for (object, goes) in &history {
            let before = by_name(&index);
            let Changes { put, gone } = step(&mut index, object, *goes);
            for name in gone {
                prop_assert!(followed.remove(&name).is_some(), "{name} was there");
            }
            for service in put {
                let old = followed.insert(service.name.clone(), Arc::clone(&service));
                prop_assert!(old.is_none_or(|old| old != service), "{} is different", service.name);
            }
            let after = by_name(&index);
            prop_assert_eq!(&followed, &after);
            for (name, service) in &after {
                if before.get(name) == Some(service) {
                    prop_assert!(Arc::ptr_eq(service, &before[name]), "{name} is the same allocation");
                }
                if matches!(object, Object::Slice(_)) && before.get(name) != Some(service) {
                    let of = |number| name.starts_with(&format!("default.s{number}."));
                    let touched = (0..3).filter(|&n| of(n)).count();
                    prop_assert_eq!(touched, 1);
                }
            }
        }
    }
}

#[test]
fn a_slice_touches_the_services_of_one_service_only() {
    let mut index = index();
    for number in 0..3 {
        apply(&mut index, &Object::parse(&service(number, 0)));
    }
    let before = by_name(&index);
    let changes = apply(&mut index, &Object::parse(&slice(0, 1)));
    let names: Vec<&str> = changes.put.iter().map(|service| service.name.as_str()).collect();
    assert_eq!((names, changes.gone), (vec!["default.s1.http.ipv4"], vec![]));
    for (name, service) in by_name(&index) {
        assert_eq!(Arc::ptr_eq(&service, &before[&name]), name != "default.s1.http.ipv4");
    }
    let again = apply(&mut index, &Object::parse(&slice(0, 1)));
    assert!(again.is_empty(), "an object that says the same changes nothing: {again:?}");
}

#[test]
fn when_all_endpoints_are_terminating_they_take_new_connections() {
    let mut index = index();
    apply(&mut index, &Object::parse(&service(1, 0)));
    let mut slice = slice(0, 1);
    let endpoint = |host: u8, ready: bool| {
        json!({
            "addresses": [format!("10.244.0.{host}")],
            "conditions": {"ready": ready, "serving": true, "terminating": !ready},
        })
    };
    slice["endpoints"] = json!([endpoint(1, false), endpoint(2, false)]);
    apply(&mut index, &Object::parse(&slice));
    let text = render(&index);
    assert!(text.contains("10.244.0.1 8081 10.244.0.1 active"), "{text}");

    slice["endpoints"] = json!([endpoint(1, false), endpoint(2, true)]);
    apply(&mut index, &Object::parse(&slice));
    let text = render(&index);
    assert!(text.contains("10.244.0.1 8081 10.244.0.1 draining"), "{text}");
    assert!(text.contains("10.244.0.2 8081 10.244.0.2 active"), "{text}");
}

#[test]
fn long_names_are_cut_and_stay_different() {
    let mut index = index();
    let long = "a".repeat(63);
    for last in ["x", "y"] {
        let mut service = service(1, 0);
        service["metadata"]["namespace"] = json!(long);
        service["metadata"]["name"] = json!(format!("{}{last}", "b".repeat(62)));
        service["spec"]["clusterIP"] = json!(if last == "x" { "10.96.1.1" } else { "10.96.1.2" });
        apply(&mut index, &Object::parse(&service));
    }
    let names: Vec<String> = index.services().map(|service| service.name.clone()).collect();
    assert_eq!(names.len(), 2);
    assert!(names[0] != names[1] && names.iter().all(|name| name.len() == 128), "{names:?}");
}

#[test]
fn an_object_without_a_name_is_refused_and_changes_nothing() {
    let mut index = index();
    let Object::Service(mut service) = Object::parse(&service(1, 0)) else { panic!("a Service") };
    service.metadata.namespace = None;
    let error = index.apply_service(&service).unwrap_err();
    assert_eq!(error.to_string(), "Service without metadata.name or metadata.namespace");
    assert_eq!(index.services().count(), 0);
}
