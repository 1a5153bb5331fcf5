//! The server's side of server ids, with nothing but the standard library: `rustc server-id.rs`.
//!
//! ```text
//! server-id ADDRESS:PORT NUMBER header    # UDP, number in the first 8 bytes of the payload
//! server-id ADDRESS:PORT NUMBER quic      # UDP, number in connection ids
//! ```
//! `ADDRESS` is the service's, on this machine's loopback. The client sends back what it was given, and the
//! balancer then finds this server, whatever the client's address and port. The second form is no QUIC: it
//! shows where the number goes in one.

use std::{env, io, net::UdpSocket, process::ExitCode};

/// What the 8 bytes begin with: two letters, version 1, reserved.
const HEADER: [u8; 4] = [0x4c, 0x42, 1, 0];
/// Bytes of a connection id behind its first one: the number's two, and six of our own.
const REST: u8 = 8;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, number, form] = arguments.as_slice() else { return usage() };
    let Ok(number) = number.parse::<u16>() else { return usage() };
    let answer: fn(&[u8], u16, u64) -> Option<Vec<u8>> = match form.as_str() {
        "header" => |packet, number, _| Some(with_header(packet, number)),
        "quic" => with_connection_id,
        _ => return usage(),
    };
    match serve(address, number, answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: server-id ADDRESS:PORT NUMBER header|quic");
    ExitCode::from(2)
}

fn serve(
    address: &str,
    number: u16,
    answer: fn(&[u8], u16, u64) -> Option<Vec<u8>>,
) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    println!("listening");
    let mut buffer = [0; 2048];
    for count in 0.. {
        let (length, client) = socket.recv_from(&mut buffer)?;
        if let Some(packet) = answer(&buffer[..length], number, count) {
            socket.send_to(&packet, client)?;
        }
    }
    Ok(())
}

/// The header with our number, then the server's words.
fn with_header(packet: &[u8], number: u16) -> Vec<u8> {
    let text = if packet.starts_with(&HEADER) { packet.get(8..).unwrap_or(&[]) } else { packet };
    let mut answer = HEADER.to_vec();
    answer.extend(u32::from(number).to_be_bytes());
    answer.extend(format!("server {number}: ").bytes());
    answer.extend(text);
    answer
}

/// To a long header, a long header whose source connection id is a new one of ours, for the client to send to
/// from now on; to a short header, words alone. `None`: cut short.
fn with_connection_id(packet: &[u8], number: u16, count: u64) -> Option<Vec<u8>> {
    let words = format!("server {number}");
    if packet.first()? & 0x80 == 0 {
        return Some([&[0x40][..], words.as_bytes()].concat());
    }
    // Flags, version, destination id with its length, source id with its length.
    let theirs = 6 + usize::from(*packet.get(5)?);
    let theirs = packet.get(theirs..)?;
    let theirs = theirs.get(..=usize::from(*theirs.first()?))?;
    let mut answer = packet.get(..5)?.to_vec();
    answer.extend(theirs);
    answer.push(1 + REST);
    answer.push(REST);
    answer.extend(number.to_be_bytes());
    // Must be unguessable in earnest: take them from the kernel's generator.
    answer.extend(&count.to_be_bytes()[2..]);
    answer.extend(words.bytes());
    Some(answer)
}
