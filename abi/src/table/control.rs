//! What holds for a set of tables as a whole.

use super::{live, shared};

/// The only row of the `CONTROL` table.
///
/// Live words: `generation`, `flags`, `unserved`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    magic: u64,
    generation: u64,
    flags: u64,
    abi: u32,
    instance: u32,
    salt: u64,
    seed: u64,
    cpus: u32,
    nat_ports: u32,
    unserved: u64,
}

shared!(Control, 64, { magic @ 0, generation @ 8, flags @ 16, abi @ 24, instance @ 28, salt @ 32, seed @ 40, cpus @ 48, nat_ports @ 52, unserved @ 56 });

/// What happens to packets for a VIP that no service of it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum Unserved {
    /// Dropped.
    #[default]
    Drop = 0,
    /// Answered: TCP with a reset, UDP with port unreachable; the rest is dropped.
    Reject = 1,
    /// Left to the host's stack.
    Pass = 2,
}

impl Control {
    /// Set in `flags` while the IPv6 prefix table holds anything.
    pub const PREFIXES_V6: u64 = 1;
    /// Half of the prefix sets that is in force.
    pub const HALF: u64 = 2;
    /// Byte offset of `generation`, for the daemon's store.
    pub const GENERATION: usize = core::mem::offset_of!(Self, generation);
    /// Byte offset of `flags`, for the daemon's store.
    pub const FLAGS: usize = core::mem::offset_of!(Self, flags);
    /// Byte offset of `unserved`, for the daemon's store.
    pub const UNSERVED: usize = core::mem::offset_of!(Self, unserved);

    /// A control row of this version.
    #[must_use]
    pub const fn new(instance: u32, salt: u64, seed: u64, cpus: u32) -> Self {
        Self {
            magic: crate::limits::MAGIC,
            generation: 0,
            flags: 0,
            abi: crate::limits::ABI_VERSION,
            instance,
            salt,
            seed,
            cpus,
            nat_ports: 0,
            unserved: Unserved::Drop as u64,
        }
    }

    /// Whether it is ours and of this version.
    #[must_use]
    pub const fn is_current(&self) -> bool {
        self.magic == crate::limits::MAGIC && self.abi == crate::limits::ABI_VERSION
    }

    /// Which set of tables of this machine it is.
    #[must_use]
    pub const fn instance(&self) -> u32 {
        self.instance
    }

    /// Salt of the frontend table.
    #[must_use]
    pub const fn salt(&self) -> u64 {
        self.salt
    }

    /// Seed of the flow hash.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// The same with this range of NAT ports: [`crate::nat::Ports`] in one word.
    #[must_use]
    pub const fn with_nat_ports(mut self, word: u32) -> Self {
        self.nat_ports = word;
        self
    }

    /// The range of NAT ports: [`crate::nat::Ports`] in one word.
    #[must_use]
    pub const fn nat_ports(&self) -> u32 {
        self.nat_ports
    }

    /// CPUs that counters are laid out for.
    #[must_use]
    pub const fn cpus(&self) -> u32 {
        self.cpus
    }

    /// Changes put in force.
    #[must_use]
    pub fn generation(&self) -> u64 {
        live(&self.generation)
    }

    /// Segments with TCP flags that cannot be are dropped.
    pub const FILTER_TCP_FLAGS: u64 = 4;
    /// UDP from ports of services that are misused to amplify is dropped.
    pub const FILTER_AMPLIFICATION: u64 = 8;
    /// There are limits.
    pub const LIMITS: u64 = 16;
    /// Fragments are dropped.
    pub const FILTER_FRAGMENTS: u64 = 32;
    /// A list is about destinations.
    pub const DESTINATIONS: u64 = 64;
    /// Any of these four.
    pub const GUARD: u64 =
        Self::FILTER_TCP_FLAGS | Self::FILTER_AMPLIFICATION | Self::FILTER_FRAGMENTS | Self::LIMITS;

    /// The flags for lengths of IPv6 prefixes below [`crate::prefix::SHORTEST6`] that are in use.
    #[must_use]
    pub const fn shorts(bits: u32) -> u64 {
        (bits as u64) << 32
    }

    /// Sets the flags of a row that no program reads.
    pub const fn set_flags(&mut self, flags: u64) {
        self.flags = flags;
    }

    /// Sets what happens to unserved packets, in a row that no program reads.
    pub const fn set_unserved(&mut self, unserved: Unserved) {
        self.unserved = unserved as u64;
    }

    /// What happens to unserved packets, now.
    #[inline(always)]
    #[must_use]
    pub fn unserved(&self) -> Unserved {
        match live(&self.unserved) {
            1 => Unserved::Reject,
            2 => Unserved::Pass,
            _ => Unserved::Drop,
        }
    }

    /// Live flags.
    #[inline(always)]
    #[must_use]
    pub fn flags(&self) -> u64 {
        live(&self.flags)
    }
}
