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

            /// The reason of this index.
            #[must_use]
            #[inline(always)]
            pub const fn from_index(index: u32) -> Option<Self> {
                match index { $($index => Some(Self::$variant),)* _ => None }
            }

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
    /// For a VIP, and neither of a protocol that services have nor an ICMP message that is known.
    VipOtherProtocol = 2, "vip_other_protocol", Drop;
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
    /// A fragment for a VIP whose first fragment has not been seen: only that one has ports.
    Fragment = 10, "fragment", Drop;
    /// A VIP's address, at a port that no service has.
    NoService = 11, "no_service", Drop;
    /// The service has no backend that may take this packet.
    NoBackend = 12, "no_backend", Drop;
    /// The backend's next hop is not resolved.
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
    /// An echo request to a VIP, answered.
    EchoAnswered = 18, "echo_answered", Forward;
    /// Neighbour discovery for a VIP: left to the host's stack.
    NeighbourDiscovery = 19, "neighbour_discovery", Pass;
    /// An ICMP error for a VIP that says nonsense: cut short, or an MTU that cannot be.
    BadIcmp = 20, "bad_icmp", Drop;
    /// Larger than the way to the backend takes: the sender was told so.
    TooBigAnswered = 21, "too_big_answered", Forward;
    /// A VIP's address, at a port that no service has: the sender was told so.
    UnservedRejected = 22, "unserved_rejected", Forward;
    /// A VIP's address, and no service takes it: left to the host's stack, as configured.
    UnservedPassed = 23, "unserved_passed", Pass;
    /// A client that is not in the `source_ranges` of the service.
    SourceRefused = 24, "source_refused", Drop;
    /// An encapsulated packet for this machine, from a sender that is not in `decap.sources`.
    TunnelSourceRefused = 25, "tunnel_source_refused", Drop;
    /// TCP flags that no segment has (`prefilter.filters: [tcp-flags]`).
    BadTcpFlags = 26, "bad_tcp_flags", Drop;
    /// UDP from a port of a service that is misused to amplify (`prefilter.filters: [amplification]`).
    Amplification = 27, "amplification", Drop;
    /// More packets than a rate limit allows.
    RateLimited = 28, "rate_limited", Drop;
    /// On an interface for policy that is no endpoint's (any more).
    NoEndpoint = 29, "no_endpoint", Pass;
    /// No rule is about it, and its endpoint is open in this direction.
    PolicyOpen = 30, "policy_open", Pass;
    /// A rule of policy allows it.
    PolicyAllowed = 31, "policy_allowed", Pass;
    /// Of a connection that was opened the other way, which rules of policy allow.
    PolicyReply = 32, "policy_reply", Pass;
    /// An ICMP error about a packet that rules of policy allow.
    PolicyRelated = 33, "policy_related", Pass;
    /// Neighbour discovery and multicast listeners: not subject to policy.
    PolicyNeighbour = 34, "policy_neighbour", Pass;
    /// Rules of policy would deny it; the endpoint is in audit.
    PolicyAudit = 35, "policy_audit", Pass;
    /// No rule of policy allows it, and its endpoint is closed in this direction.
    PolicyDefaultDeny = 36, "policy_default_deny", Drop;
    /// A rule of policy denies it.
    PolicyDenied = 37, "policy_denied", Drop;
    /// A later fragment, of or to an endpoint with rules, whose first fragment was not seen.
    PolicyFragment = 38, "policy_fragment", Drop;
    /// Headers end before they should, or there are too many, on an endpoint's interface.
    PolicyMalformed = 39, "policy_malformed", Drop;
    /// A fragment (`prefilter.filters: [fragments]`).
    FragmentRefused = 40, "fragment_refused", Drop;
    /// Balanced to a backend that is this machine itself: left to its stack as it came.
    DeliveredLocally = 41, "delivered_locally", Pass;
    /// Of a service with `second_chance`, and the program for it is missing.
    SecondChance = 42, "second_chance", Drop;
    /// A segment that no socket here is for: on to the backend that it names next.
    HandedOn = 43, "handed_on", Forward;
    /// The same, by way of the host's stack, which has to look for the neighbour.
    HandedOnByHost = 44, "handed_on_by_host", Pass;
    /// For a NAT address, and of no connection that is translated: left to the host's stack.
    NatPassed = 45, "nat_passed", Pass;
    /// For a service behind NAT, and neither of a connection that is translated nor opening one.
    NatNoEntry = 46, "nat_no_entry", Drop;
    /// A new connection behind NAT, for which no port is left.
    NatExhausted = 47, "nat_exhausted", Drop;
    /// For a service behind NAT, and not to be translated: an ICMP message that is no error or has no counterpart in
    /// the other family; a fragment, IPv4 options or IPv6 extension headers for a backend of the other family.
    NatRefused = 48, "nat_refused", Drop;
    /// A SYN for a listener of this machine, answered with a cookie in its place (`prefilter.syn_proxy`).
    SynAnswered = 49, "syn_answered", Forward;
    /// A segment for a listener of this machine, of no connection and without a cookie of it
    /// (`prefilter.syn_proxy.stray_acks`).
    StrayAck = 50, "stray_ack", Drop;
    /// On an interface of the host firewall, and neither from nor for an address of this machine.
    PolicyNotHost = 51, "policy_not_host", Pass;
    /// Of a connection that was established while rules allowed it (`policy_established: keep`).
    PolicyHeld = 52, "policy_held", Pass;
    /// To be translated, and the program that writes it is missing.
    NatNotWritten = 53, "nat_not_written", Drop;
    /// A datagram without a checksum for a backend of the other family, which would have to have one.
    NatNoChecksum = 54, "nat_no_checksum", Drop;
    /// A fragment for a VIP that came before its first one: kept for that one, with which it comes again.
    FragmentKept = 55, "fragment_kept", Drop;
    /// For a service behind NAT that wants more than its ring, and the program for it is missing.
    NatNotChosen = 56, "nat_not_chosen", Drop;
    /// For a service behind NAT or a NAT address, with VLAN tags, and the program that takes them off is missing.
    NatTagged = 57, "nat_tagged", Drop;
    /// The same, a fragment or with options or extension headers, and the program for these is missing.
    NatNotPlain = 58, "nat_not_plain", Drop;
}

impl Reason {
    /// Whether the program for NAT has the last word about such a packet.
    #[must_use]
    #[inline(always)]
    pub const fn is_nat(self) -> bool {
        matches!(self, Self::NatPassed | Self::NatNoEntry)
    }

    /// Whether such a packet is worth a second look: it may have to be answered, its ports may be
    /// further inside, or its source may be one of those that are allowed.
    #[must_use]
    #[inline(always)]
    pub const fn is_exceptional(self) -> bool {
        matches!(
            self,
            Self::VipOtherProtocol
                | Self::Fragment
                | Self::NoService
                | Self::TooBig
                | Self::TunnelSourceRefused
                | Self::SourceRefused
                | Self::SecondChance
                | Self::NatPassed
                | Self::NatNoEntry
        )
    }
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
