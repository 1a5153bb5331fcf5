//! What stands in the NAT table, and how long it lives.

use crate::{
    addr::Addr,
    table::{live, shared},
    wire::tcp_flags::{ACK, FIN, RST, SYN},
};

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Nothing has ever stood here.
    Never = 0,
    /// A program is writing.
    Claimed = 1,
    /// Removed; may be claimed.
    Removed = 2,
    /// The client has sent a SYN, or datagrams, and the backend nothing.
    Opening = 3,
    /// The backend has answered: with SYN and ACK, or with a datagram.
    Answered = 4,
    /// TCP: the handshake is complete.
    Established = 5,
    /// TCP: one side has sent FIN.
    Closing = 6,
    /// TCP: both have.
    Closed = 7,
    /// TCP: one side has sent RST.
    Reset = 8,
}

impl Phase {
    const fn of(bits: u64) -> Self {
        match bits {
            1 => Self::Claimed,
            2 => Self::Removed,
            3 => Self::Opening,
            4 => Self::Answered,
            5 => Self::Established,
            6 => Self::Closing,
            7 => Self::Closed,
            8 => Self::Reset,
            _ => Self::Never,
        }
    }

    /// Name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Never | Self::Claimed | Self::Removed => "none",
            Self::Opening => "opening",
            Self::Answered => "answered",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }
}

/// Who sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// The client.
    Client = 0,
    /// The backend.
    Backend = 1,
}

/// The state word of an entry: all that changes while it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp(u64);

impl Stamp {
    /// A packet that comes within this part of a lifetime after one that was noted is not noted itself: the
    /// entry's line stays clean, and both directions can read it on CPUs of their own.
    pub const UNSEEN: u32 = 32;

    const PHASE: u32 = 32;
    const FIN: u32 = 36;
    const UDP: u64 = 1 << 38;
    const COUNTED: u64 = 1 << 39;
    const ADDRESS: u32 = 40;
    const TURN: u32 = 48;

    /// From a word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// One word.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// Of a new connection in the place of whatever stood there; `address`: row of the NAT address.
    #[inline(always)]
    #[must_use]
    pub const fn renew(self, phase: Phase, udp: bool, address: u8, now: u32) -> Self {
        let turn = (self.0 >> Self::TURN).wrapping_add(1) << Self::TURN;
        let udp = if udp { Self::UDP } else { 0 };
        Self(
            turn | (address as u64) << Self::ADDRESS
                | udp
                | (phase as u64) << Self::PHASE
                | now as u64,
        )
    }

    /// The same of a service that counts the connections of its backends, or of one that does not.
    #[inline(always)]
    #[must_use]
    pub const fn with_counted(self, counted: bool) -> Self {
        Self(self.0 & !Self::COUNTED | if counted { Self::COUNTED } else { 0 })
    }

    /// Whether its service counts the connections of its backends.
    #[inline(always)]
    #[must_use]
    pub const fn is_counted(self) -> bool {
        self.0 & Self::COUNTED != 0
    }

    /// What its backend's count changes by when it becomes `after`.
    #[inline(always)]
    pub(super) const fn more(self, after: Self) -> i64 {
        if self.is_counted() { self.is_over() as i64 - after.is_over() as i64 } else { 0 }
    }

    /// The same entry in another phase.
    #[inline(always)]
    #[must_use]
    pub const fn with_phase(self, phase: Phase) -> Self {
        Self(self.0 & !(15 << Self::PHASE) | (phase as u64) << Self::PHASE)
    }

    /// When it was last seen, in seconds of the programs' clock.
    #[inline(always)]
    #[must_use]
    pub const fn seen(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    const fn phase_bits(self) -> u64 {
        self.0 >> Self::PHASE & 15
    }

    /// Where the connection is in its life.
    #[must_use]
    pub const fn phase(self) -> Phase {
        Phase::of(self.phase_bits())
    }

    /// Whether a connection stands there, expired or not.
    #[inline(always)]
    #[must_use]
    pub const fn stands(self) -> bool {
        self.phase_bits() >= Phase::Opening as u64
    }

    /// Whether a program is writing it.
    #[inline(always)]
    #[must_use]
    pub const fn is_claimed(self) -> bool {
        self.phase_bits() == Phase::Claimed as u64
    }

    /// Whether nothing has ever stood there: then nothing stands at the same connection's later candidates.
    #[inline(always)]
    #[must_use]
    pub const fn is_untouched(self) -> bool {
        self.phase_bits() == Phase::Never as u64
    }

    /// Whether both sides have spoken, and neither has begun to end the connection.
    #[inline(always)]
    #[must_use]
    pub const fn is_steady(self) -> bool {
        self.phase_bits() == Self::steady(self.is_udp())
    }

    #[inline(always)]
    const fn steady(udp: bool) -> u64 {
        if udp { Phase::Answered as u64 } else { Phase::Established as u64 }
    }

    /// Whether it is of the same connection in the same phase.
    #[inline(always)]
    #[must_use]
    pub const fn is_same(self, other: Self) -> bool {
        (self.0 ^ other.0) >> Self::PHASE == 0
    }

    /// Whether it is UDP's.
    #[inline(always)]
    #[must_use]
    pub const fn is_udp(self) -> bool {
        self.0 & Self::UDP != 0
    }

    /// Row of the NAT address.
    #[inline(always)]
    #[must_use]
    pub const fn address(self) -> u8 {
        (self.0 >> Self::ADDRESS) as u8
    }

    /// Protocol and NAT address in one number.
    #[inline(always)]
    pub(super) const fn identity(self) -> u64 {
        self.0 & (0xff << Self::ADDRESS | Self::UDP)
    }

    /// Which user of the place it is.
    #[inline(always)]
    #[must_use]
    pub const fn turn(self) -> u16 {
        (self.0 >> Self::TURN) as u16
    }

    /// Seconds that it lives without a packet. RFC 5382 asks for 2 hours and 4 minutes for a connection that
    /// is established, and for 4 minutes while it opens or closes; a SYN that nobody answered gets less, so that
    /// a flood of them does not fill the table. RFC 4787 asks for 2 minutes for UDP. All these are met also by an
    /// entry that lives a [`Stamp::UNSEEN`]th less, or a unit of [`super::quick`].
    #[inline(always)]
    #[must_use]
    pub const fn lifetime(self) -> u32 {
        match (self.phase_bits(), self.is_udp()) {
            (0 | 2, _) => 0,
            (1, _) => 2,
            (3, true) => 30,
            (4, true) => 128,
            (3 | 8, _) => 10,
            (4 | 6, _) => 248,
            (5, _) => 8_000,
            _ => 120,
        }
    }

    /// Whether another connection may have the place.
    #[inline(always)]
    #[must_use]
    pub const fn is_free(self, now: u32) -> bool {
        let lifetime = self.lifetime();
        lifetime == 0 || now.wrapping_sub(self.seen()) as i32 >= lifetime as i32
    }

    /// Whether another connection may have the place when there is no other: both sides have said that
    /// they are done.
    #[inline(always)]
    #[must_use]
    pub const fn is_over(self) -> bool {
        self.phase_bits() >= Phase::Closed as u64
    }

    /// Whether a packet need not be noted.
    #[inline(always)]
    #[must_use]
    pub const fn stays(self, side: Side, flags: u8, now: u32) -> bool {
        let after = self.after(side, flags, now);
        after.is_same(self) && self.is_fresh(self.lifetime(), now)
    }

    #[inline(always)]
    const fn is_fresh(self, lifetime: u32, now: u32) -> bool {
        // Another CPU's clock may be a little ahead.
        now.wrapping_sub(self.seen()) as i32 <= (lifetime / Self::UNSEEN) as i32
    }

    /// The usual case of [`Self::stays`], in fewer steps: both sides have spoken, and neither begins or ends
    /// anything. `udp`: what the entry is known to be.
    #[inline(always)]
    #[must_use]
    pub const fn goes_on(self, udp: bool, flags: u8, now: u32) -> bool {
        let (phase, lifetime) = if udp {
            (Phase::Answered as u64, Self::of(Phase::Answered, true).lifetime())
        } else {
            (Phase::Established as u64, Self::of(Phase::Established, false).lifetime())
        };
        self.phase_bits() == phase
            && (udp || flags & (SYN | FIN | RST) == 0)
            && self.is_fresh(lifetime, now)
    }

    const fn of(phase: Phase, udp: bool) -> Self {
        Self(0).renew(phase, udp, 0, 0)
    }

    /// After a packet from `side`; `flags` are TCP's, and not looked at for UDP.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, side: Side, flags: u8, now: u32) -> Self {
        let seen = Self(self.0 & !0xffff_ffff | now as u64);
        let phase = self.phase_bits();
        let backend = matches!(side, Side::Backend);
        if self.is_udp() {
            return if backend { seen.with_phase(Phase::Answered) } else { seen };
        }
        if flags & RST != 0 {
            return seen.with_phase(Phase::Reset);
        }
        if flags & SYN != 0 {
            let opens = !backend && flags & ACK == 0;
            return if opens && phase >= Phase::Closed as u64 {
                Self(seen.0 & !(3 << Self::FIN)).with_phase(Phase::Opening)
            } else if backend && phase == Phase::Opening as u64 {
                seen.with_phase(Phase::Answered)
            } else {
                seen
            };
        }
        let fin = if flags & FIN != 0 { 1 << (Self::FIN + side as u32) } else { 0 };
        let seen = Self(seen.0 | fin);
        match seen.0 >> Self::FIN & 3 {
            3 => seen.with_phase(Phase::Closed),
            0 if phase == Phase::Opening as u64 || (phase == Phase::Answered as u64 && backend) => {
                seen
            }
            0 => seen.with_phase(Phase::Established),
            _ => seen.with_phase(Phase::Closing),
        }
    }
}

/// A connection: the client's side, the backend's, and the way back to the client.
///
/// Live words: `state`, `link`; the rest is written between a claim and its publication.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    state: u64,
    link: u64,
    client: Addr,
    vip: Addr,
    ports: u64,
    backend: u32,
    epoch: u32,
}

shared!(Entry, 64, { state @ 0, link @ 8, client @ 16, vip @ 32, ports @ 48, backend @ 56, epoch @ 60 });

impl Entry {
    /// Byte offset of `state`.
    pub const STATE: usize = core::mem::offset_of!(Self, state);
    /// Byte offset of `link`.
    pub const LINK: usize = core::mem::offset_of!(Self, link);

    /// `ports`: those of client, VIP, NAT address and backend, from the lowest, each as it stands in a header.
    #[inline(always)]
    #[must_use]
    pub const fn new(
        stamp: Stamp,
        link: u64,
        [client, vip]: [Addr; 2],
        ports: u64,
        backend: u32,
        epoch: u32,
    ) -> Self {
        Self { state: stamp.to_word(), link, client, vip, ports, backend, epoch }
    }

    /// Its state, now.
    #[inline(always)]
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp::from_word(live(&self.state))
    }

    /// The way back to the client, now: [`crate::table::Way`].
    #[inline(always)]
    #[must_use]
    pub fn link(&self) -> u64 {
        live(&self.link)
    }

    /// The client.
    #[inline(always)]
    #[must_use]
    pub const fn client(&self) -> Addr {
        self.client
    }

    /// The address that the client uses.
    #[inline(always)]
    #[must_use]
    pub const fn vip(&self) -> Addr {
        self.vip
    }

    /// Ports of client, VIP, NAT address and backend, from the lowest, each as it stands in a header.
    #[inline(always)]
    #[must_use]
    pub const fn ports(&self) -> u64 {
        self.ports
    }

    /// Row of the backend.
    #[inline(always)]
    #[must_use]
    pub const fn backend(&self) -> u32 {
        self.backend
    }

    /// The use of that row that is meant.
    #[inline(always)]
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frozen_image() {
        let stamp = Stamp(0x0005_0000_0000_0000).renew(Phase::Opening, true, 7, 0x0102_0304);
        let addrs = [Addr::v4(0x0403_0201), Addr::v4(0x0807_0605)];
        let entry = Entry::new(stamp, 0x1122, addrs, 0x0807_0605_0403_0201, 9, 10);
        // SAFETY: equal sizes, and no padding (`shared!`).
        let b: [u8; 64] = unsafe { core::mem::transmute(entry) };
        assert_eq!(b[..10], [4, 3, 2, 1, 0x43, 7, 6, 0, 0x22, 0x11]);
        assert_eq!(b[24..32], [0, 0, 0xff, 0xff, 1, 2, 3, 4]);
        assert_eq!(
            b[40..],
            [0, 0, 0xff, 0xff, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 10, 0, 0, 0]
        );
        assert_eq!(
            (entry.stamp().address(), entry.stamp().turn(), entry.stamp().is_udp()),
            (7, 6, true)
        );
    }

    #[test]
    fn the_life_of_a_connection() {
        use Side::{Backend, Client};
        let mut stamp = Stamp::default().renew(Phase::Opening, false, 0, 100);
        for (side, flags, phase, lifetime) in [
            (Client, SYN, Phase::Opening, 10),
            (Client, ACK, Phase::Opening, 10),
            (Backend, SYN | ACK, Phase::Answered, 248),
            (Backend, ACK, Phase::Answered, 248),
            (Client, ACK, Phase::Established, 8_000),
            (Client, SYN, Phase::Established, 8_000),
            (Backend, ACK, Phase::Established, 8_000),
            (Client, FIN | ACK, Phase::Closing, 248),
            (Backend, ACK, Phase::Closing, 248),
            (Backend, FIN | ACK, Phase::Closed, 120),
            (Client, ACK, Phase::Closed, 120),
            (Client, SYN, Phase::Opening, 10),
            (Backend, RST | ACK, Phase::Reset, 10),
            // A reset that nobody believed.
            (Client, ACK, Phase::Established, 8_000),
        ] {
            stamp = stamp.after(side, flags, 100);
            assert_eq!((stamp.phase(), stamp.lifetime()), (phase, lifetime), "{side:?} {flags:#x}");
            assert!(!stamp.is_free(100 + lifetime - 1) && stamp.is_free(100 + lifetime));
        }
        let udp = Stamp::default().renew(Phase::Opening, true, 0, 5);
        assert_eq!(udp.after(Client, 0xff, 6).phase(), Phase::Opening);
        assert_eq!(udp.after(Backend, 0xff, 6).phase(), Phase::Answered);
        assert_eq!(udp.after(Backend, 0xff, 6).seen(), 6);
    }

    #[test]
    fn what_is_not_noted() {
        use Side::{Backend, Client};
        // What the RFCs ask for is met by those that were seen last and not noted.
        for (phase, udp, asked) in [
            (Phase::Established, false, 2 * 3600 + 4 * 60),
            (Phase::Answered, false, 240),
            (Phase::Closing, false, 240),
            (Phase::Answered, true, 120),
        ] {
            let stamp = Stamp::of(phase, udp).after(Backend, ACK, 1000).with_phase(phase);
            let unseen = stamp.lifetime() / Stamp::UNSEEN;
            assert!(stamp.lifetime() - unseen >= asked, "{phase:?} {udp}");
            for (now, stays) in [(999, true), (1000 + unseen, true), (1001 + unseen, false)] {
                let side = if phase == Phase::Answered && !udp { Backend } else { Client };
                let stamp = if phase == Phase::Closing {
                    Stamp::of(Phase::Established, false).after(Client, FIN, 1000)
                } else {
                    stamp
                };
                assert_eq!(stamp.stays(side, ACK, now), stays, "{phase:?} {udp} {now}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn what_goes_on_stays(
            phase in 3u64..=8, udp: bool, backend: bool, flags: u8, fins in 0u64..4, seen in 0u32..400, now in 0u32..400,
        ) {
            let side = if backend { Side::Backend } else { Side::Client };
            let stamp = Stamp::of(Phase::of(phase), udp);
            // Of those that have sent FIN none is established.
            let fins = if phase <= Phase::Established as u64 { 0 } else { fins };
            let stamp = Stamp(stamp.0 | fins << Stamp::FIN | u64::from(seen));
            let after = stamp.after(side, flags, now);
            if stamp.stays(side, flags, now) {
                proptest::prop_assert_eq!(Stamp(after.0 & !0xffff_ffff | u64::from(seen)), stamp);
            }
            if stamp.goes_on(udp, flags, now) {
                proptest::prop_assert!(stamp.stays(side, flags, now));
            }
        }
    }

    #[test]
    fn what_is_free() {
        let stamp = Stamp::default();
        assert!(stamp.is_free(0) && stamp.is_free(u32::MAX) && stamp.is_untouched());
        let removed = stamp.renew(Phase::Established, false, 0, 50).with_phase(Phase::Removed);
        assert!(removed.is_free(50) && !removed.is_untouched() && !removed.stands());
        // A clock of another CPU that is a little behind.
        let opening = stamp.renew(Phase::Opening, false, 0, 50);
        assert!(!opening.is_free(49));
    }

    #[test]
    fn what_a_backend_counts() {
        use Phase::{Closed, Closing, Established, Opening, Reset};
        let stamp = Stamp::default().renew(Opening, false, 3, 50);
        let counted = stamp.with_counted(true);
        assert!(counted.is_counted() && !counted.is_udp() && counted.address() == 3);
        assert_eq!((counted.with_counted(false), counted.identity()), (stamp, stamp.identity()));
        assert!(counted.after(Side::Backend, SYN | ACK, 51).is_counted());
        for (from, to, more) in [
            (Opening, Established, 0),
            (Established, Closing, 0),
            (Closing, Closed, -1),
            (Established, Reset, -1),
            (Closed, Reset, 0),
            (Closed, Opening, 1),
        ] {
            let more_of = |stamp: Stamp| stamp.with_phase(from).more(stamp.with_phase(to));
            assert_eq!((more_of(counted), more_of(stamp)), (more, 0), "{from:?} {to:?}");
        }
    }
}
