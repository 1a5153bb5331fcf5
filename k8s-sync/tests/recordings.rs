//! Recordings of objects as an API server gives them out, and the services that come of them.
//!
//! `recordings/NAME.json` is what `kubectl get services,endpointslices -o json` prints;
//! `recordings/NAME.txt` is what stands in the index afterwards, as [`render`] writes it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{fs, path::PathBuf};

use common::{Object, apply, index, render};
use lb_k8s_sync::Index;

fn recording(name: &str) -> (Vec<Object>, String) {
    let path = |ending| {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/recordings/{name}.{ending}"))
    };
    let list: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(path("json")).unwrap()).unwrap();
    let items = list["items"].as_array().unwrap();
    let objects = items.iter().map(Object::parse).collect();
    (objects, fs::read_to_string(path("txt")).unwrap())
}

fn check(name: &str) {
    let (objects, expected) = recording(name);
    let mut forwards = index();
    for object in &objects {
        apply(&mut forwards, object);
    }
    let found = render(&forwards);
    assert_eq!(found, expected, "{name} gives:\n{found}");

    let mut backwards = index();
    for object in objects.iter().rev() {
        apply(&mut backwards, object);
    }
    assert_eq!(render(&backwards), expected, "{name} backwards");
    empty_again(forwards, &objects);
}

/// Nothing is left of objects that are gone.
fn empty_again(mut index: Index, objects: &[Object]) {
    for object in objects {
        common::delete(&mut index, object);
    }
    assert_eq!(format!("{index:?}"), format!("{:?}", common::index()));
}

#[test]
fn a_dual_stack_service_in_the_middle_of_a_rolling_update() {
    check("rolling-update");
}

#[test]
fn cluster_dns_the_api_server_and_a_service_without_endpoints() {
    check("cluster-dns");
}

#[test]
fn what_cannot_be_carried_out_is_said() {
    check("not-expressible");
}
