//! One conversation of one process, for `tests/sock.rs`: says a word, and prints whom it talks to
//! as the process sees it, and the answer: `PEER ANSWER`.
//!
//! `sock-client tcp|udp|datagrams ADDRESS:PORT [SOURCE]`: a TCP connection, a connected UDP socket, and one that
//! is not connected and sends four datagrams; bound to an address, if one is given.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, bail};

const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().context("which kind?")?;
    let to: SocketAddr = arguments.next().context("to whom?")?.parse().context("an address")?;
    let source = arguments.next().map(|source| source.parse::<IpAddr>()).transpose()?;
    match kind.as_str() {
        "tcp" => {
            let mut stream = lb_tests::http::open(source, to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let peer = stream.peer_addr()?;
            stream.write_all(b"hello")?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            println!("{peer} {answer}");
        }
        "udp" => {
            let socket = bound(source, to)?;
            socket.connect(to)?;
            socket.send(b"hello")?;
            let (from, answer) = receive(&socket)?;
            let peer = socket.peer_addr()?;
            anyhow::ensure!(from == peer, "the answer comes from {from}, the peer is {peer}");
            println!("{peer} {answer}");
        }
        "datagrams" => {
            let socket = bound(source, to)?;
            for _ in 0..4 {
                socket.send_to(b"hello", to)?;
                let (from, answer) = receive(&socket)?;
                println!("{from} {answer}");
            }
        }
        other => bail!("{other:?} is none of tcp, udp, datagrams"),
    }
    Ok(())
}

fn bound(source: Option<IpAddr>, to: SocketAddr) -> anyhow::Result<UdpSocket> {
    let any =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((source.unwrap_or(any), 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn receive(socket: &UdpSocket) -> anyhow::Result<(SocketAddr, String)> {
    let mut buffer = [0; 256];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok((from, String::from_utf8_lossy(&buffer[..length]).into_owned()))
}
