//! One tiny round of every measurement: programs load, and do with each packet what the rows say.

use lb_bench::{
    fuzz,
    packets::{self, Effort},
    policy, prefilter, ring, scale,
};
use lb_tests::rig::need_root;

#[test]
fn packets_take_the_way_that_their_row_says() {
    need_root();
    packets::measure(Effort::TINY, None).expect("a tiny round").publish(None, "").expect("prints");
    packets::flood::measure(Effort::TINY).expect("a tiny round").publish(None, "").expect("prints");
}

#[test]
fn blocklists_are_measured() {
    need_root();
    let report = prefilter::measure(prefilter::Effort::TINY).expect("a tiny round");
    report.publish(None, "").expect("prints");
}

#[test]
fn lists_are_loaded_and_replaced_under_traffic() {
    need_root();
    let report = prefilter::load::measure(prefilter::load::Effort::TINY).expect("a tiny round");
    report.publish(None, "").expect("prints");
}

#[test]
fn policy_is_measured() {
    need_root();
    let effort = policy::Effort::TINY;
    policy::measure(effort).expect("a tiny round").publish(None, "").expect("prints");
    policy::change::measure(effort).expect("a change").publish(None, "").expect("prints");
    policy::identities::measure(effort).expect("a table").publish(None, "").expect("prints");
}

#[test]
fn rings_are_built() {
    ring::measure(1).expect("a round").publish(None, "").expect("prints");
}

#[test]
fn a_change_is_in_force_and_touches_one_ring() {
    need_root();
    scale::measure(scale::Effort::TINY).expect("a change").publish(None, "").expect("prints");
}

#[test]
fn random_packets_are_judged() {
    need_root();
    // One million is another test's.
    fuzz::measure(1, 0).expect("nothing goes wrong with none").publish(None, "").expect("prints");
}
