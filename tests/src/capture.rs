//! Captures, and what a tool that is not ours says of their checksums.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::ensure;
use nix::sys::signal::Signal;

use crate::{
    eventually,
    netns::{self, Namespace},
    process::{Log, Process},
};

/// A running tcpdump.
#[derive(Debug)]
pub struct Capture {
    file: PathBuf,
    process: Process,
}

/// What tcpdump says of a capture's checksums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checksums {
    /// Lines with a checksum that is right.
    pub right: usize,
    /// Lines with one that is wrong, as printed.
    pub wrong: Vec<String>,
}

impl Capture {
    /// Captures what `filter` selects on an interface; it runs when this returns.
    ///
    /// # Errors
    ///
    /// tcpdump is missing or refuses.
    pub fn start(
        namespace: &Namespace,
        interface: &str,
        filter: &str,
        file: &Path,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new("tcpdump");
        // Each packet takes a slot of the snapshot's length: with tcpdump's own, a quarter of a megabyte,
        // the buffer holds 64, and a busy machine loses some. No frame of a lab is longer than this.
        command.args(["-n", "-U", "--immediate-mode", "-s", "4096", "-B", "32768", "-Z", "root"]);
        command.args(["-i", interface, "-w"]).arg(file).args(filter.split_whitespace());
        let log = Log::default();
        let process = Process::spawn(namespace, command, &log)?;
        log.wait_line("listening on", 0, Duration::from_secs(10))?;
        Ok(Self { file: file.to_path_buf(), process })
    }

    /// Ends the capture and gives every packet as text, one string each.
    ///
    /// # Errors
    ///
    /// Packets were lost, or the file cannot be read.
    pub fn packets(mut self) -> anyhow::Result<Vec<String>> {
        self.process.end(Signal::SIGINT)?;
        let log = self.process.log().lines().join("\n");
        ensure!(
            log.contains("\n0 packets dropped by kernel"),
            "the capture is not complete: {log}"
        );
        self.read()
    }

    /// Waits until what is captured so far fits: a packet that was sent need not be in the file yet.
    ///
    /// # Errors
    ///
    /// What `fits` says at last.
    pub fn until(&self, fits: impl Fn(&[String]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        eventually(Duration::from_secs(20), || fits(&self.read()?))
    }

    fn read(&self) -> anyhow::Result<Vec<String>> {
        let text = netns::output(
            Command::new("tcpdump").args(["-n", "-t", "-e", "-vvv", "-r"]).arg(&self.file),
        )?;
        let mut packets: Vec<String> = Vec::new();
        for line in text.lines() {
            match packets.last_mut() {
                Some(packet) if line.starts_with([' ', '\t']) => {
                    packet.push('\n');
                    packet.push_str(line);
                }
                _ => packets.push(line.to_owned()),
            }
        }
        Ok(packets)
    }
}

impl Checksums {
    /// Sorts packets, as [`Capture::packets`] gives them, by what tcpdump says.
    #[must_use]
    pub fn of(packets: &[String]) -> Self {
        let mut sums = Self::default();
        for packet in packets {
            let bad =
                ["incorrect", "bad cksum", "bad udp cksum", "bad icmp6 cksum", "wrong icmp cksum"];
            // Tunnels over IPv6 may do without (RFC 6935), which tcpdump does not know.
            let tunnel = packet.contains(".6080: ") || packet.contains(".6081: ");
            let packet =
                if tunnel { &packet.replacen("bad udp cksum 0x0000", "no", 1) } else { packet };
            if bad.iter().any(|words| packet.contains(words)) {
                sums.wrong.push(packet.clone());
            } else if packet.contains("correct)") || packet.contains("sum ok]") {
                sums.right += 1;
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::Checksums;

    #[test]
    fn wrong_checksums_are_seen() {
        let packets = [
            "IP (ttl 64, length 60)\n  1.1.1.1.1 > 2.2.2.2.80: Flags [S], cksum 0x1 (correct), seq 1",
            "IP (ttl 64, length 60)\n  1.1.1.1.1 > 2.2.2.2.80: Flags [S], cksum 0x1 (incorrect -> 0x2)",
            "IP (ttl 64, length 60, bad cksum 1 (->2)!)\n  1.1.1.1.1 > 2.2.2.2.80: cksum 0x1 (correct)",
        ]
        .map(str::to_owned);
        let sums = Checksums::of(&packets);
        assert_eq!(sums.right, 1);
        assert_eq!(sums.wrong, packets[1..]);
    }
}
