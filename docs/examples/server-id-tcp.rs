//! Server ids in a TCP option, with nothing but the standard library: `rustc server-id-tcp.rs`. Linux 5.10, root.
//!
//! ```text
//! server-id-tcp CGROUP serve ADDRESS:PORT NUMBER   # says its number in every segment
//! server-id-tcp CGROUP ask ADDRESS:PORT COUNT      # a client, which brings it back
//! ```
//! A program at the sockets of a cgroup (version 2) sets the option, so that servers and clients in it need no change:
//! this process enters the cgroup and then is one. The client opens `COUNT` connections, prints who answers, and asks
//! all of them again for each line that it reads. The programs are gone when the process ends.
//!
//! An acknowledgement with three or more SACK blocks beside timestamps has no room for the option: such a segment goes
//! where one without a number does.

use std::{
    env,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::ExitCode,
    thread,
    time::Duration,
};

/// What the option begins with: kind 253 (RFC 6994), 8 bytes, two letters. The number follows, big endian.
const OPTION: [u8; 4] = [253, 8, 0x4c, 0x42];
/// How the kernel is asked for it: kind, length of what is here, and the letters.
const SEARCH: [u8; 4] = [253, 4, 0x4c, 0x42];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [cgroup, role, address, number] = arguments.as_slice() else { return usage() };
    let Ok(number) = number.parse::<u32>() else { return usage() };
    let result = match role.as_str() {
        "serve" => serve(cgroup, address, number),
        "ask" => ask(cgroup, address, number),
        _ => return usage(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: server-id-tcp CGROUP serve ADDRESS:PORT NUMBER | CGROUP ask ADDRESS:PORT COUNT"
    );
    ExitCode::from(2)
}

fn serve(cgroup: &str, address: &str, number: u32) -> io::Result<()> {
    let _attached = attach(cgroup, &server(number))?;
    // Behind the program: it hears of sockets that begin to listen.
    let listener = TcpListener::bind(address)?;
    println!("listening");
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || -> io::Result<()> {
            let mut answers = stream.try_clone()?;
            for line in BufReader::new(stream).lines() {
                line?;
                writeln!(answers, "server {number}")?;
            }
            Ok(())
        });
    }
    Ok(())
}

fn ask(cgroup: &str, address: &str, count: u32) -> io::Result<()> {
    // u64 to u64: a socket's cookie, and the option that its peer has sent.
    let seen = bpf(MAP_CREATE, &words(&[LRU_HASH, 8, 8, 65_536]))?;
    let _attached = attach(cgroup, &client(seen.as_raw_fd()))?;
    let connect = |_| {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok((stream.try_clone()?, BufReader::new(stream)))
    };
    let mut open = (0..count).map(connect).collect::<io::Result<Vec<_>>>()?;
    let mut lines = io::stdin().lines();
    loop {
        for (stream, answers) in &mut open {
            stream.write_all(b"who?\n")?;
            let mut answer = String::new();
            if answers.read_line(&mut answer)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            print!("{answer}");
        }
        println!("all answered");
        match lines.next() {
            Some(line) => drop(line?),
            None => return Ok(()),
        }
    }
}

// When the kernel calls a program at a socket (enum in linux/bpf.h), and the flag that asks for the last two.
const ACTIVE_ESTABLISHED: i32 = 4;
const PASSIVE_ESTABLISHED: i32 = 5;
const LISTEN: i32 = 11;
const OPTION_LENGTH: i32 = 14;
const WRITE_OPTION: i32 = 15;
const WRITE_OPTION_FLAG: i32 = 1 << 6;

// Functions of the kernel's.
const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const SOCKET_COOKIE: i32 = 46;
const SET_FLAGS: i32 = 59;
const LOAD_OPTION: i32 = 142;
const STORE_OPTION: i32 = 143;
const RESERVE_OPTION: i32 = 144;

/// Registers: 0 is what a function returns, 1 to 4 are what it is given, 6 is the context, 7 the event, 10 the stack's
/// end. The option is at -8, a cookie at -16.
const STACK: u64 = 10;

/// One instruction: 8 bits code, 4 target, 4 source, 16 offset, 32 number.
const fn one(code: u64, target: u64, source: u64, offset: i16, number: i32) -> u64 {
    let offset = offset as u16 as u64;
    let number = number as u32 as u64;
    code | target << 8 | source << 12 | offset << 16 | number << 32
}

const fn set(target: u64, number: i32) -> u64 {
    one(0xb7, target, 0, 0, number)
}
const fn copy(target: u64, source: u64) -> u64 {
    one(0xbf, target, source, 0, 0)
}
const fn add(target: u64, number: i32) -> u64 {
    one(0x07, target, 0, 0, number)
}
/// 32 bits of the context, at `offset`.
const fn load(target: u64, offset: i16) -> u64 {
    one(0x61, target, 6, offset, 0)
}
/// 32 bits to the stack.
const fn put(offset: i16, bytes: [u8; 4]) -> u64 {
    one(0x62, STACK, 0, offset, i32::from_ne_bytes(bytes))
}
const fn call(function: i32) -> u64 {
    one(0x85, 0, 0, 0, function)
}

/// Does `body` at `event`.
fn at(event: i32, body: &[u64]) -> Vec<u64> {
    let mut all = vec![one(0x55, 7, 0, body.len() as i16, event)];
    all.extend(body);
    all
}

/// What all programs begin and end with.
fn program(parts: &[Vec<u64>]) -> Vec<u64> {
    let mut all = vec![copy(6, 1), load(7, 0)];
    all.extend(parts.iter().flatten());
    all.extend([set(0, 1), one(0x95, 0, 0, 0, 0)]);
    all
}

/// From now on the socket asks about each segment that it sends.
fn begin() -> Vec<u64> {
    const FLAGS: i16 = 84;
    vec![load(2, FLAGS), one(0x47, 2, 0, 0, WRITE_OPTION_FLAG), copy(1, 6), call(SET_FLAGS)]
}

/// Room for the option, in each segment.
fn reserve() -> Vec<u64> {
    at(
        OPTION_LENGTH,
        &[copy(1, 6), set(2, OPTION.len() as i32 + 4), set(3, 0), call(RESERVE_OPTION)],
    )
}

/// A server's: the option with its number, from the SYN-ACK on.
fn server(number: u32) -> Vec<u64> {
    let mut store = vec![put(-8, OPTION), put(-4, number.to_be_bytes())];
    store.extend([
        copy(1, 6),
        copy(2, STACK),
        add(2, -8),
        set(3, 8),
        set(4, 0),
        call(STORE_OPTION),
    ]);
    program(&[
        at(LISTEN, &begin()),
        at(PASSIVE_ESTABLISHED, &begin()),
        reserve(),
        at(WRITE_OPTION, &store),
    ])
}

/// A client's: the option of the SYN-ACK, from the ACK on; nothing where there was none.
fn client(seen: i32) -> Vec<u64> {
    // Loads the address of the map: two words.
    let map = [one(0x18, 1, 1, 0, seen), 0];
    let cookie = [copy(1, 6), call(SOCKET_COOKIE), one(0x7b, STACK, 0, -16, 0)];

    let mut keep = cookie.to_vec();
    keep.extend(map);
    keep.extend([
        copy(2, STACK),
        add(2, -16),
        copy(3, STACK),
        add(3, -8),
        set(4, 0),
        call(MAP_UPDATE),
    ]);
    keep.extend(begin());
    let mut look = vec![put(-8, SEARCH), put(-4, [0; 4])];
    look.extend([copy(1, 6), copy(2, STACK), add(2, -8), set(3, 8), set(4, 0), call(LOAD_OPTION)]);
    // Not the eight bytes that it has.
    look.push(one(0x55, 0, 0, keep.len() as i16, 8));
    look.extend(keep);

    let mut store = cookie.to_vec();
    store.extend(map);
    store.extend([copy(2, STACK), add(2, -16), call(MAP_LOOKUP)]);
    let bring = [copy(1, 6), copy(2, 0), set(3, 8), set(4, 0), call(STORE_OPTION)];
    // None is known.
    store.push(one(0x15, 0, 0, bring.len() as i16, 0));
    store.extend(bring);
    program(&[at(ACTIVE_ESTABLISHED, &look), reserve(), at(WRITE_OPTION, &store)])
}

// The system call: commands, kinds, and where its arguments are.
const MAP_CREATE: i64 = 0;
const PROG_LOAD: i64 = 5;
const LINK_CREATE: i64 = 28;
const LRU_HASH: u32 = 9;
const SOCK_OPS: u32 = 13;
const CGROUP_SOCK_OPS: u32 = 3;
#[cfg(target_arch = "x86_64")]
const SYS_BPF: i64 = 321;
#[cfg(not(target_arch = "x86_64"))]
const SYS_BPF: i64 = 280;

/// Loads the program, attaches it to the cgroup for as long as what is returned lives, and enters the cgroup.
fn attach(cgroup: &str, program: &[u64]) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let mut arguments = words(&[SOCK_OPS, program.len() as u32]);
    arguments[8..16].copy_from_slice(&(program.as_ptr() as u64).to_ne_bytes());
    arguments[16..24].copy_from_slice(&(license.as_ptr() as u64).to_ne_bytes());
    let loaded = bpf(PROG_LOAD, &arguments)?;
    let directory = File::open(cgroup)?;
    let [program, target] = [loaded.as_raw_fd(), directory.as_raw_fd()].map(|fd| fd as u32);
    let link = bpf(LINK_CREATE, &words(&[program, target, CGROUP_SOCK_OPS]))?;
    fs::write(format!("{cgroup}/cgroup.procs"), "0")?;
    Ok(link)
}

/// Arguments that begin with these words; the rest is 0.
fn words(first: &[u32]) -> [u8; 64] {
    let mut arguments = [0; 64];
    for (place, word) in arguments.chunks_exact_mut(4).zip(first) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    arguments
}

/// `bpf(2)`, for commands that return a descriptor.
fn bpf(command: i64, arguments: &[u8; 64]) -> io::Result<OwnedFd> {
    unsafe extern "C" {
        fn syscall(number: i64, ...) -> i64;
    }
    // SAFETY: the kernel reads 64 bytes there, and what they point to, which the caller holds.
    let got = unsafe { syscall(SYS_BPF, command, arguments.as_ptr(), arguments.len()) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(got as i32) })
}
