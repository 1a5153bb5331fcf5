//! An address of either family in two machine words.

use core::net::{IpAddr, Ipv6Addr};

/// An IPv6 address, or an IPv4 address in its IPv4-mapped form (RFC 4291 section 2.5.5.2), as the
/// two halves of its 16 network-order bytes loaded in the machine's order.
///
/// Words compare in two instructions; for IPv4 the first is a constant that the compiler folds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr {
    hi: u64,
    lo: u64,
}

const _: () = {
    assert!(size_of::<Addr>() == 16);
    assert!(align_of::<Addr>() == 8);
    assert!(
        cfg!(target_endian = "little"),
        "words are hashed: tables are little-endian by definition"
    );
};

impl Addr {
    /// From the four bytes of an IPv4 header, loaded as they stand.
    #[inline(always)]
    #[must_use]
    pub const fn v4(raw: u32) -> Self {
        Self { hi: 0, lo: (raw as u64) << 32 | 0xffff_0000 }
    }

    /// From two halves, which need not be an address: for keys that hold something else in its place.
    #[inline(always)]
    #[must_use]
    pub const fn from_halves(hi: u64, lo: u64) -> Self {
        Self { hi, lo }
    }

    /// From 16 network-order bytes.
    #[inline(always)]
    #[must_use]
    pub const fn from_bytes(b: [u8; 16]) -> Self {
        Self {
            hi: u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            lo: u64::from_ne_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        }
    }

    /// From the four words of an IPv6 address, each loaded as it stands.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(a: u32, b: u32, c: u32, d: u32) -> Self {
        Self { hi: a as u64 | (b as u64) << 32, lo: c as u64 | (d as u64) << 32 }
    }

    /// The 16 network-order bytes.
    #[inline(always)]
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        let (h, l) = (self.hi.to_ne_bytes(), self.lo.to_ne_bytes());
        [
            h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], l[0], l[1], l[2], l[3], l[4], l[5],
            l[6], l[7],
        ]
    }

    /// The four bytes of an IPv4 address as they stand in a header. Meaningless for IPv6.
    #[inline(always)]
    #[must_use]
    pub const fn as_v4_raw(self) -> u32 {
        (self.lo >> 32) as u32
    }

    /// First eight bytes in the machine's order.
    #[inline(always)]
    #[must_use]
    pub const fn hi(self) -> u64 {
        self.hi
    }

    /// Last eight bytes in the machine's order.
    #[inline(always)]
    #[must_use]
    pub const fn lo(self) -> u64 {
        self.lo
    }

    /// Whether it is IPv4-mapped.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(self) -> bool {
        self.hi == 0 && self.lo as u32 == 0xffff_0000
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        Self::from_bytes(match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        })
    }
}

impl From<Addr> for IpAddr {
    fn from(a: Addr) -> Self {
        Ipv6Addr::from(a.to_bytes()).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_round_trip() {
        for text in ["192.0.2.1", "2001:db8::1", "::", "255.255.255.255"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(ip)), ip);
        }
        let a = Addr::from("192.0.2.1".parse::<IpAddr>().unwrap());
        assert!(a.is_v4());
        assert_eq!(a, Addr::v4(u32::from_ne_bytes([192, 0, 2, 1])));
        assert_eq!(a.as_v4_raw().to_ne_bytes(), [192, 0, 2, 1]);
        assert_eq!(a, Addr::from_words(0, 0, 0xffff_0000, a.as_v4_raw()));
        assert!(!Addr::from("2001:db8::1".parse::<IpAddr>().unwrap()).is_v4());
    }
}
