//! A million packets, made by chance from a seed and then damaged. `LB_PACKETS` and `LB_SEED` make it
//! longer and other.

use abi::reason::Reason;
use lb_tests::mutated::{self, MET};

#[test]
fn a_million_packets() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    let (count, seed) = (number("LB_PACKETS", 1_000_000), number("LB_SEED", 1));
    let seen = mutated::run(seed, count).unwrap_or_else(|what| panic!("{what}"));
    println!("{seen:#?}");
    assert_eq!(seen.values().sum::<u64>(), count);
    let missing: Vec<&str> =
        MET.map(Reason::name).into_iter().filter(|name| !seen.contains_key(name)).collect();
    assert!(count < 100_000 || missing.is_empty(), "not reached: {missing:?}");
}
