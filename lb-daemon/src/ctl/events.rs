//! `lbctl monitor` and `lbctl top`.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize as _;
use serde_json::Value;

use super::{
    client::{Client, segment},
    output::{Output, bytes, number, table},
};
use crate::api::events::{Event, Ranked, TopList};

/// Arguments of `monitor`.
#[derive(Debug, Args)]
pub(super) struct Monitor {
    /// Only what these programs say: `drop` of the prefilter and the balancer, `policy` of identity policy.
    #[arg(long = "type", value_name = "TYPE", value_parser = ["drop", "policy"])]
    kind: Option<String>,
    /// Only packets with this reason (`lbctl reason list --all`).
    #[arg(long)]
    reason: Option<String>,
    /// Only packets whose source is on this blocklist.
    #[arg(long)]
    list: Option<String>,
    /// Only packets from this address or prefix.
    #[arg(long, value_name = "CIDR")]
    source: Option<String>,
    /// Also packets that passed.
    #[arg(long)]
    passed: bool,
    /// End after so many packets.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Write the packets' first bytes to a file as well, for tcpdump and Wireshark.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
}

impl Monitor {
    pub(super) fn run(self, client: &Client, output: &Output) -> anyhow::Result<()> {
        let mut path = format!("/v1/events?passed={}", self.passed);
        let wanted = [
            ("type", &self.kind),
            ("reason", &self.reason),
            ("list", &self.list),
            ("source", &self.source),
        ];
        for (name, value) in wanted {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", segment(value)));
            }
        }
        let mut pcap = self.pcap.as_ref().map(Pcap::create).transpose()?;
        let mut left = self.count.unwrap_or(u64::MAX);
        // The daemon ends old connections: then on with the next.
        while left > 0
            && client.lines(&path, |line| {
                let Some(data) = line.strip_prefix("data: ").or_else(|| line.strip_prefix("data:"))
                else {
                    return Ok(true);
                };
                let value: Value = serde_json::from_str(data).context("the daemon's answer")?;
                if let Value::Number(lost) = &value {
                    writeln!(std::io::stderr(), "lbctl: {lost} packets were not shown in time")?;
                    return Ok(true);
                }
                let event = Event::deserialize(&value).context("the daemon's answer")?;
                if let Some(pcap) = &mut pcap {
                    pcap.add(&event)?;
                }
                output.line(&value, || sentence(&event))?;
                left -= 1;
                Ok(left > 0)
            })?
        {}
        Ok(())
    }
}

/// `12:31:05.123 dropped blocked list=drop eth0 192.0.2.7:40000 -> 203.0.113.10:80 tcp 74 B`
fn sentence(event: &Event) -> String {
    let time = event.time.split_once('T').map_or(&*event.time, |(_, time)| time);
    let mut line = format!("{} {}", time.trim_end_matches('Z'), event.outcome);
    let Event { reason, list, limit, rule, .. } = event;
    for (name, value) in [("", reason), ("list=", list), ("limit=", limit), ("rule=", rule)] {
        if let Some(value) = value {
            line.push_str(&format!(" {name}{value}"));
        }
    }
    if let Some([source, destination]) = event.identities {
        let [from, to] = event.labels.clone().unwrap_or_default();
        let side = |identity: u32, labels: BTreeMap<String, String>| {
            let pairs = labels.into_iter().map(|(key, value)| match value.as_str() {
                "" => key,
                value => format!("{key}={value}"),
            });
            match pairs.collect::<Vec<_>>().join(",") {
                labels if labels.is_empty() => identity.to_string(),
                labels => format!("{identity}({labels})"),
            }
        };
        line.push_str(&format!(" {} -> {}", side(source, from), side(destination, to)));
    }
    line.push_str(&format!(" {}", event.interface));
    if let (Some(source), Some(destination)) = (event.source, event.destination) {
        let end = |address: std::net::IpAddr, port: Option<u16>| match port {
            Some(port) => std::net::SocketAddr::new(address, port).to_string(),
            None => address.to_string(),
        };
        let (from, to) = (end(source, event.source_port), end(destination, event.destination_port));
        line.push_str(&format!(" {from} -> {to} {}", protocol(event.protocol)));
    }
    line.push_str(&format!(" {} B", event.length));
    if event.weight > 1 {
        line.push_str(&format!(", one of {}", event.weight));
    }
    line
}

fn protocol(number: Option<u8>) -> Cow<'static, str> {
    match number {
        Some(1) => "icmp".into(),
        Some(6) => "tcp".into(),
        Some(17) => "udp".into(),
        Some(58) => "icmpv6".into(),
        Some(132) => "sctp".into(),
        Some(other) => format!("protocol {other}").into(),
        None => "".into(),
    }
}

/// A capture file as libpcap reads it, of Ethernet frames.
struct Pcap(BufWriter<File>);

impl Pcap {
    fn create(path: &PathBuf) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("{}", path.display()))?;
        let mut file = BufWriter::new(file);
        let longest = abi::event::CAPTURED as u32;
        for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, longest, 1] {
            file.write_all(&u32::to_ne_bytes(word))?;
        }
        file.flush()?;
        Ok(Self(file))
    }

    fn add(&mut self, event: &Event) -> anyhow::Result<()> {
        let digits = event.data.as_bytes().chunks_exact(2);
        let byte =
            |pair| u8::from_str_radix(std::str::from_utf8(pair)?, 16).map_err(anyhow::Error::from);
        let data: Vec<u8> =
            digits.map(byte).collect::<anyhow::Result<_>>().context("the packet's bytes")?;
        let (seconds, micros) = (event.timestamp / 1_000_000, event.timestamp % 1_000_000);
        for word in [seconds as u32, micros as u32, data.len() as u32, event.length] {
            self.0.write_all(&word.to_ne_bytes())?;
        }
        self.0.write_all(&data)?;
        // It is read while it grows.
        Ok(self.0.flush()?)
    }
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub(super) struct Watch {
    /// Rows of each kind.
    #[arg(long, value_name = "N", default_value_t = 10)]
    limit: u32,
    /// Show it anew every so many seconds, until interrupted.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

impl Watch {
    pub(super) fn run(self, client: &Client, output: &Output) -> anyhow::Result<()> {
        loop {
            let (value, top): (Value, TopList) =
                client.get(&format!("/v1/top?limit={}", self.limit))?;
            let clear = if self.watch.is_some() { "\x1b[H\x1b[2J" } else { "" };
            output.show(&value, || format!("{clear}{}", page(&top)))?;
            let Some(seconds) = self.watch else { return Ok(()) };
            std::thread::sleep(Duration::from_secs(seconds));
        }
    }
}

fn page(top: &TopList) -> String {
    let TopList { seconds, packets, samples, sources, lists, reasons } = top;
    let rows = |all: &[Ranked]| -> Vec<[Cow<'static, str>; 4]> {
        all.iter()
            .map(|one| {
                let name = Cow::Owned(one.name.clone());
                [name, number(one.packets), rate(one.packets, *seconds), bytes(one.bytes)]
            })
            .collect()
    };
    let titled =
        |title: &'static str, all| table([title, "#PACKETS", "#PER SECOND", "#BYTES"], rows(all));
    let sources = table(
        ["SOURCE", "LIST", "#PACKETS", "#PER SECOND", "#BYTES"],
        sources.iter().zip(rows(sources)).map(|(one, [name, packets, rate, bytes])| {
            [name, one.list.clone().unwrap_or_default().into(), packets, rate, bytes]
        }),
    );
    format!(
        "dropped in the last {seconds} s: about {} packets, from {} samples\n\n{sources}\n\n{}\n\n{}",
        number(*packets),
        number(*samples),
        titled("LIST", lists),
        titled("REASON", reasons),
    )
}

/// Packets per second, to a tenth below ten: most of what is dropped is less than one.
fn rate(packets: u64, seconds: u64) -> Cow<'static, str> {
    let seconds = seconds.max(1);
    let tenths = packets.saturating_mul(10).div_ceil(seconds);
    match tenths {
        0..100 => Cow::Owned(format!("{}.{}", tenths / 10, tenths % 10)),
        _ => number((packets + seconds / 2) / seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        serde_json::from_value(serde_json::json!({
            "time": "2026-11-25T12:31:05.123Z", "timestamp": 1_795_000_000_123_456_u64,
            "hook": "xdp", "outcome": "dropped", "reason": "blocked", "list": "drop",
            "interface": "eth0", "source": "2001:db8::7", "destination": "203.0.113.10",
            "protocol": 6, "source_port": 40000, "destination_port": 80, "length": 74,
            "weight": 5, "data": "0011ff",
        }))
        .unwrap()
    }

    #[test]
    fn a_packet_in_a_line() {
        assert_eq!(
            sentence(&event()),
            "12:31:05.123 dropped blocked list=drop eth0 [2001:db8::7]:40000 -> 203.0.113.10:80 tcp \
             74 B, one of 5"
        );
    }

    #[test]
    fn rates() {
        for (packets, text) in [
            (0, "0.0"),
            (1, "0.1"),
            (60, "1.0"),
            (90, "1.5"),
            (594, "9.9"),
            (599, "10"),
            (600, "10"),
            (90_000, "1,500"),
        ] {
            assert_eq!(rate(packets, 60), text, "{packets}");
        }
    }

    #[test]
    fn a_capture_file() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let mut pcap = Pcap::create(&path.to_path_buf()).unwrap();
        pcap.add(&event()).unwrap();
        let got = std::fs::read(&path).unwrap();
        let words: Vec<u32> =
            got[..40].chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words[..6], [0xa1b2_c3d4, 0x0004_0002, 0, 0, 128, 1]);
        assert_eq!(words[6..], [1_795_000_000, 123_456, 3, 74]);
        assert_eq!(got[40..], [0, 0x11, 0xff]);
    }
}
