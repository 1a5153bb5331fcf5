//! Why a program let a packet go the way it went: one reason for every exit of every program.
//!
//! A reason is a counter index, a label in metrics and a name in the API. Adding one is an ABI
//! change.

/// What happens to the packet of a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on to the kernel's stack.
    Pass,
    /// Is dropped.
    Drop,
    /// Is sent by us.
    Forward,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $index:literal, $name:literal, $verdict:ident;)*) => {
        /// Why a packet was passed, dropped or sent; the index of its counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $index,)*
        }

        impl Reason {
            /// Every reason, in the order of its index.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Name in metrics and in the API.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What happens to the packet.
            #[must_use]
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)* }
            }

            /// For people: what the reason means.
            #[must_use]
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)* }
            }
        }
    };
}

reasons! {
    /// Not for a VIP: untouched.
    NotOurs = 0, "not_ours", Pass;
    /// Neither IPv4 nor IPv6 (ARP, LLDP, ...): untouched.
    NotIp = 1, "not_ip", Pass;
    /// Not TCP or UDP, for a VIP (ICMP and others): left to the host's stack.
    VipOtherProtocol = 2, "vip_other_protocol", Pass;
    /// Decapsulated and handed to the host's stack.
    Decapsulated = 3, "decapsulated", Pass;
    /// Sent to a backend on the link it came from.
    ForwardedTx = 4, "forwarded_tx", Forward;
    /// Sent to a backend through another interface.
    ForwardedRedirect = 5, "forwarded_redirect", Forward;
    /// Source is in a blocklist.
    Blocked = 6, "blocked", Drop;
    /// Headers end before they should, in a packet for a VIP.
    Truncated = 7, "truncated", Drop;
    /// A length field contradicts the frame, in a packet for a VIP.
    BadLength = 8, "bad_length", Drop;
    /// TTL or hop limit is used up.
    TtlExpired = 9, "ttl_expired", Drop;
    /// A fragment for a VIP: its ports are elsewhere.
    Fragment = 10, "fragment", Drop;
    /// A VIP's address, at a port that no service has.
    NoService = 11, "no_service", Drop;
    /// The service has no backend that may take this packet.
    NoBackend = 12, "no_backend", Drop;
    /// The backend's next hop is not resolved, and the kernel's tables do not know it either.
    NoNextHop = 13, "no_next_hop", Drop;
    /// Larger than the way to the backend takes.
    TooBig = 14, "too_big", Drop;
    /// The frame could not be grown or shrunk.
    AdjustFailed = 15, "adjust_failed", Drop;
    /// An encapsulated packet for this machine, whose inside is no IP packet.
    BadInner = 16, "bad_inner", Drop;
    /// An encapsulated packet that met congestion on its way, whose inside does not take part in ECN
    /// (RFC 6040, section 4.2).
    CongestedInner = 17, "congested_inner", Drop;
}

/// Number of reasons, and of counters.
pub const REASONS: usize = Reason::ALL.len();

const _: () = {
    let mut i = 0;
    while i < REASONS {
        assert!(Reason::ALL[i] as usize == i, "indexes are dense and in order");
        i += 1;
    }
};
