//! Prints how long a configuration of 10,000 services takes to load, and to load again after one of
//! its 100 files changed, as wall clock time and as time on the processor: `cargo run --release -p lb-config --example load_time`.

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
    let (wall, cpu) = timed(&mut loader);
    println!("first load: {wall:?} ({cpu:?} on the processor)");
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

fn timed(loader: &mut Loader) -> (Duration, Duration) {
    let cpu = on_processor();
    let start = Instant::now();
    match loader.load() {
        Ok(state) => {
            let took = (start.elapsed(), on_processor().saturating_sub(cpu));
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

/// Time this thread has run, which other processes on a busy machine do not add to.
fn on_processor() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = stat.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

fn print(what: &str, times: &mut [(Duration, Duration)]) {
    times.sort();
    let (wall, _) = times[times.len() / 2];
    let mut cpu: Vec<Duration> = times.iter().map(|(_, cpu)| *cpu).collect();
    cpu.sort();
    println!(
        "{what}: min {:?}, median {wall:?}, max {:?} (median {:?} on the processor)",
        times[0].0,
        times[times.len() - 1].0,
        cpu[cpu.len() / 2]
    );
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
