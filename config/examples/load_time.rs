//! Prints how long a configuration of 10,000 services takes to load, and to load again after one of
//! its 100 files changed: `cargo run --release -p lb-config --example load_time`.

use std::{
    fmt::Write as _,
    fs, process,
    time::{Duration, Instant},
};

use lb_config::Loader;

const FILES: usize = 100;
const SERVICES_PER_FILE: usize = 100;
const BACKENDS: usize = 10;
const ROUNDS: u32 = 50;

fn main() -> std::io::Result<()> {
    let directory = std::env::temp_dir().join(format!("lb-load-time-{}", process::id()));
    fs::create_dir(&directory)?;
    let result = measure(&directory);
    fs::remove_dir_all(&directory)?;
    result
}

fn measure(directory: &std::path::Path) -> std::io::Result<()> {
    for file in 0..FILES {
        fs::write(directory.join(format!("{file:03}.yaml")), text(file, 100))?;
    }
    let mut loader = Loader::new(directory);
    println!("first load: {:?}", timed(&mut loader));
    std::thread::sleep(Duration::from_millis(50));
    timed(&mut loader);
    let mut unchanged: Vec<_> = (0..ROUNDS).map(|_| timed(&mut loader)).collect();
    let mut changed = Vec::new();
    for round in 0..ROUNDS {
        let file = (round as usize * 7) % FILES;
        fs::write(directory.join(format!("{file:03}.yaml")), text(file, round + 1))?;
        changed.push(timed(&mut loader));
    }
    print("nothing changed", &mut unchanged);
    print("one file changed", &mut changed);
    Ok(())
}

fn timed(loader: &mut Loader) -> Duration {
    let start = Instant::now();
    match loader.load() {
        Ok(state) => {
            let took = start.elapsed();
            assert_eq!(state.services.len(), FILES * SERVICES_PER_FILE);
            took
        }
        Err(faults) => {
            for fault in faults {
                eprintln!("{fault}");
            }
            process::exit(1);
        }
    }
}

fn print(what: &str, times: &mut [Duration]) {
    times.sort();
    let (min, median, max) = (times[0], times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: min {min:?}, median {median:?}, max {max:?}");
}

fn text(file: usize, weight: u32) -> String {
    let mut text = String::from("services:\n");
    for service in 0..SERVICES_PER_FILE {
        let _ = write!(
            text,
            "  - name: service-{file}-{service}\n    address: 100.64.{file}.{service}\n    ports:\n      \
             - {{name: https, port: 443, protocol: tcp}}\n    forwarding: ipip\n    backends:\n"
        );
        for backend in 0..BACKENDS {
            let _ = writeln!(
                text,
                "      - {{name: web-{backend}, address: 10.{file}.{service}.{backend}, weight: {weight}}}"
            );
        }
    }
    text
}
