//! Packets of connections that are translated: replies, later segments, and errors about them; and what must be true of
//! what became of them.

use super::{Dice, OURS4, OURS6, TRANSLATED, full_sum, l3_of, set_header_sum, vip4, vip6, wrong};

/// Connections that are remembered.
const REMEMBERED: usize = 64;

/// Connections that were translated not long ago: a packet of each as it came from its client, and as it was sent.
#[derive(Default)]
pub(super) struct Connections(Vec<[Vec<u8>; 2]>);

impl Connections {
    /// Remembers one, if this frame was sent to a backend, plain and right.
    pub(super) fn note(&mut self, dice: &mut Dice, came: &[u8], sent: &[u8]) {
        let both = [came, sent].map(|frame| {
            let l3 = &frame[l3_of(frame)?..];
            let of = Plain::of(l3)?;
            // What goes to these ports looks like a tunnel.
            let ports = [of.port(0), of.port(2)];
            let own = !ports.iter().any(|port| matches!(port, 6080 | 6081));
            (own && wrong(l3).is_none()).then(|| l3[..of.end].to_vec())
        });
        let [Some(came), Some(sent)] = both else { return };
        if !is_vip(address(&came, false)) || !is_due(&came) {
            return;
        }
        if self.0.len() < REMEMBERED {
            self.0.push([came, sent]);
        } else {
            self.0[dice.below(REMEMBERED)] = [came, sent];
        }
    }

    /// A packet of one of them: from the client, from the backend, or an error about either.
    pub(super) fn packet(&self, dice: &mut Dice) -> Option<Vec<u8>> {
        let [came, sent] = self.0.get(dice.below(REMEMBERED))?;
        let mut l3 = match dice.below(5) {
            0 | 1 => came.clone(),
            2 | 3 => turned(sent),
            _ => {
                let about = if dice.one_in(2) { sent.clone() } else { turned(came) };
                return Some(error(dice, &about));
            }
        };
        let Plain { l4, protocol, .. } = Plain::of(&l3)?;
        if protocol == 6 {
            // ACK, most often; SYN with and without it; the ends.
            l3[l4 + 13] = dice.of(&[0x10, 0x10, 0x18, 0x10, 0x12, 0x02, 0x11, 0x04]);
        }
        let hops = if l3[0] >> 4 == 4 { 8 } else { 7 };
        l3[hops] = dice.of(&[64, 64, 64, 64, 2, 1]);
        set_header_sum(&mut l3);
        set_sum(&mut l3);
        Some(l3)
    }
}

/// Where things are in a TCP segment or UDP datagram without options, extension headers or fragments.
struct Plain<'a> {
    l3: &'a [u8],
    l4: usize,
    end: usize,
    protocol: u8,
}

impl<'a> Plain<'a> {
    fn of(l3: &'a [u8]) -> Option<Self> {
        let short =
            |at: usize| Some(usize::from(u16::from_be_bytes([*l3.get(at)?, *l3.get(at + 1)?])));
        let (l4, end, protocol) = match l3.first()? {
            0x45 if short(6)? & 0x3fff == 0 => (20, short(2)?, *l3.get(9)?),
            first if first >> 4 == 6 => (40, short(4)? + 40, *l3.get(6)?),
            _ => return None,
        };
        let header = match protocol {
            6 => 20,
            17 => 8,
            _ => return None,
        };
        (end <= l3.len() && l4 + header <= end).then_some(Self { l3, l4, end, protocol })
    }

    /// A port, by its place in the header.
    fn port(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.l3[self.l4 + at], self.l3[self.l4 + at + 1]])
    }
}

/// Source or destination.
fn address(l3: &[u8], source: bool) -> &[u8] {
    let (first, len) = if l3[0] >> 4 == 4 { (12, 4) } else { (8, 16) };
    let at = if source { first } else { first + len };
    l3.get(at..at + len).unwrap_or_default()
}

fn is_vip(address: &[u8]) -> bool {
    TRANSLATED.iter().any(|&last| address == vip4(last) || address == vip6(last))
}

fn is_ours(address: &[u8]) -> bool {
    address == OURS4 || address == OURS6
}

/// Whether a packet that is sent on must be translated.
pub(super) fn is_due(came: &[u8]) -> bool {
    let to = address(came, false);
    is_vip(to) || is_ours(to)
}

/// What must be true of a packet that was translated, beside its checksums.
pub(super) fn judge(came: &[u8], sent: &[u8]) -> Result<(), String> {
    let forth = is_vip(address(came, false));
    let (src, dst) = (address(sent, true), address(sent, false));
    let backend = matches!(dst, [10, 0, 1, _] | [0x20, 1, 0x0d, 0xb8, 0, 2, ..]);
    let right = if forth { is_ours(src) && backend } else { is_vip(src) };
    // An error about a packet of a connection comes from whoever had it.
    let is_error =
        matches!((sent[0] >> 4, sent[9], sent[6]), (4, 1, _) | (6, _, 58 | 0 | 43 | 44 | 60));
    if !right && !is_error {
        return Err(format!("from {src:?} to {dst:?}"));
    }
    let hops = |l3: &[u8]| if l3[0] >> 4 == 4 { l3[8] } else { l3[7] };
    if hops(sent) != hops(came) - 1 {
        return Err(format!("{} hops are left of {}", hops(sent), hops(came)));
    }
    let Some(part) = Part::of(came) else { return Ok(()) };
    match Part::of(sent) {
        Some(other) if part == other => Ok(()),
        other => Err(format!("another payload: {part:?} became {other:?}")),
    }
}

/// What is above the headers of a packet, which stays what it is in either family.
#[derive(PartialEq, Eq)]
struct Part {
    protocol: u8,
    /// As it stands in an IPv6 header: where it begins in its datagram, and whether others follow.
    piece: u16,
    /// Without ports and checksum, if they are there.
    rest: Vec<u8>,
}

impl Part {
    /// `None`: it is neither TCP nor UDP, or not all there.
    fn of(l3: &[u8]) -> Option<Self> {
        let short = |at: usize| Some(u16::from_be_bytes([*l3.get(at)?, *l3.get(at + 1)?]));
        let (at, end, protocol, piece) = if l3.first()? >> 4 == 4 {
            let field = short(6)?;
            let at = usize::from(l3[0] & 15) * 4;
            (at, usize::from(short(2)?), *l3.get(9)?, field << 3 | field >> 13 & 1)
        } else {
            let (mut at, mut protocol, mut piece) = (40, *l3.get(6)?, 0);
            while matches!(protocol, 0 | 43 | 44 | 60) && piece == 0 {
                if protocol == 44 {
                    piece = short(at + 2)? & 0xfff9;
                }
                let len = if protocol == 44 { 0 } else { usize::from(*l3.get(at + 1)?) };
                protocol = *l3.get(at)?;
                at += 8 + 8 * len;
            }
            (at, usize::from(short(4)?) + 40, protocol, piece)
        };
        let mut rest = l3.get(at..end)?.to_vec();
        let (header, sum) = match protocol {
            6 => (20, 16),
            17 => (8, 6),
            _ => return None,
        };
        if piece >> 3 == 0 {
            if rest.len() < header {
                return None;
            }
            rest.drain(sum..sum + 2);
            rest.drain(..4);
        }
        Some(Self { protocol, piece, rest })
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { protocol, piece, rest } = self;
        write!(f, "{} bytes of {protocol} at {piece:#x}", rest.len())
    }
}

/// A packet that answers this one.
fn turned(l3: &[u8]) -> Vec<u8> {
    let mut out = l3.to_vec();
    let (first, len, l4) = if l3[0] >> 4 == 4 { (12, 4, 20) } else { (8, 16, 40) };
    out[first..first + 2 * len].rotate_left(len);
    out[l4..l4 + 4].rotate_left(2);
    out
}

/// An ICMP error about a packet, sent to who sent that.
fn error(dice: &mut Dice, about: &[u8]) -> Vec<u8> {
    let four = about[0] >> 4 == 4;
    let to = address(about, true).to_vec();
    let most = dice.of(&[28, 48, 120, 500]);
    let quoted = &about[..about.len().min(most.max(if four { 28 } else { 48 }))];
    let (kind, code) = if four {
        dice.of(&[(3, 4), (3, 3), (3, 1), (11, 0), (12, 0), (4, 0)])
    } else {
        dice.of(&[(2, 0), (1, 4), (3, 0), (4, 0), (4, 1)])
    };
    let mtu = dice.of(&[0u16, 1280, 1400]).to_be_bytes();
    let mut icmp = vec![kind, code, 0, 0, 0, 0, mtu[0], mtu[1]];
    icmp.extend(quoted);
    let len = icmp.len() as u16;
    let mut out = if four {
        let total = (len + 20).to_be_bytes();
        let mut h = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 1, 0, 0];
        h.extend([192, 0, 2, dice.next() as u8]);
        h.extend(&to);
        let sum = !full_sum(&[&icmp]);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        h
    } else {
        let len = len.to_be_bytes();
        let mut h = vec![0x60, 0, 0, 0, len[0], len[1], 58, 64];
        h.extend(vip6(99));
        h.extend(&to);
        let sum = !full_sum(&[&h[8..40], &[0, 0, len[0], len[1], 0, 0, 0, 58], &icmp]);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        h
    };
    set_header_sum(&mut out);
    out.extend(icmp);
    out
}

/// Makes the checksum of a segment or datagram right.
fn set_sum(l3: &mut [u8]) {
    let Some(Plain { l4, end, protocol, .. }) = Plain::of(l3) else { return };
    let at = l4 + if protocol == 6 { 16 } else { 6 };
    l3[at..at + 2].fill(0);
    let addresses = if l4 == 20 { 12..20 } else { 8..40 };
    let len = ((end - l4) as u32).to_be_bytes();
    let sum = !full_sum(&[&l3[addresses], &len, &[0, 0, 0, protocol], &l3[l4..end]]);
    let sum = if sum == 0 && protocol == 17 { 0xffff } else { sum };
    l3[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
