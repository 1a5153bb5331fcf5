//! Fragments that came before their first one: out of the kernel's ring buffer, and to the program again.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    path::Path,
};

use abi::{
    early,
    flow::{FragmentEntry, FragmentKey},
};
use aya::{
    maps::{HashMap, Map, MapData, MapError, RingBuf},
    programs::{
        TestRun as _, TestRunAttrs, TestRunOptions, Xdp,
        links::{FdLink, PinnedLink},
    },
};

use super::{BpfError, HoldsRing, load};

/// The ring buffer, and where first fragments went.
pub struct Early {
    ring: RingBuf<MapData>,
    first: HashMap<MapData, FragmentKey, FragmentEntry>,
}

/// The programs that frames are given to: the one that was asked for last is at hand.
#[derive(Default)]
pub struct Programs {
    last: Option<(u32, Xdp)>,
}

/// A frame that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The interface that it came in by.
    pub ifindex: u32,
    /// Its bytes, from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// The datagram that it is a part of.
    pub datagram: FragmentKey,
    /// It may be this machine's own.
    pub host: bool,
}

impl Early {
    pub(super) fn new(ring: MapData, first: MapData) -> Result<Self, BpfError> {
        let ring = RingBuf::try_from(Map::RingBuf(ring)).map_err(|_| BpfError::Map("EARLY"))?;
        let first = Map::LruHashMap(first);
        let first = HashMap::try_from(first).map_err(|_| BpfError::Map("FRAGMENTS"))?;
        Ok(Self { ring, first })
    }

    /// The next one, if there is one; what is none is passed over.
    pub fn take(&mut self) -> Option<Frame> {
        while let Some(record) = self.ring.next() {
            let Some((ifindex, bytes, host)) = early::from_record(&record) else { continue };
            let Some(datagram) = early::datagram(bytes) else { continue };
            return Some(Frame { ifindex, bytes: bytes.to_vec(), datagram, host });
        }
        None
    }

    /// Whether the first fragment of a datagram has come, and others follow it. As the program says: what it would
    /// not forward would come back to us.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_known(&self, datagram: &FragmentKey) -> io::Result<bool> {
        match self.first.get(datagram, 0) {
            Ok(entry) => Ok(entry.is_fresh(now()?)),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Notes that a datagram is this machine's own: the program passes its fragments on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn note_own(&mut self, datagram: &FragmentKey) -> io::Result<()> {
        let entry = FragmentEntry::host(now()?);
        self.first.insert(datagram, entry, 0).map_err(io::Error::other)
    }
}

impl Programs {
    /// Gives a frame to the program of its interface, as if it had just come in: the kernel does what the program
    /// says (`BPF_F_TEST_XDP_LIVE_FRAMES`, Documentation/bpf/bpf_prog_run.rst). `link` is the pinned link there, and
    /// its program is pinned below `root`.
    ///
    /// # Errors
    /// No program is attached there by now, or the kernel's.
    pub fn again(&mut self, frame: &Frame, link: &Path, root: &Path) -> io::Result<()> {
        let program = self.program_of(link, root)?;
        let mut context = [0u8; 24];
        let length = (frame.bytes.len() as u32).to_ne_bytes();
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        context[4..8].copy_from_slice(&length);
        context[12..16].copy_from_slice(&frame.ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&frame.bytes),
            ctx_in: Some(&context),
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::new()
        };
        program.test_run(options).map(drop).map_err(io::Error::other)
    }

    /// The program of a pinned link, as it is now: there may be another one than the last time. To find it takes as many
    /// calls as programs are pinned.
    fn program_of(&mut self, link: &Path, root: &Path) -> io::Result<&mut Xdp> {
        let pinned = PinnedLink::from_pin(link).map_err(io::Error::other)?;
        let id = FdLink::from(pinned).info().map_err(io::Error::other)?.program_id();
        let at_hand = self.last.take().filter(|(last, _)| *last == id);
        let found = at_hand.or_else(|| Some((id, load::pinned_program(root, id)?)));
        let found = found.ok_or_else(|| {
            let (root, link) = (root.display(), link.display());
            io::Error::other(format!("the program {id} of {link} is not pinned below {root}"))
        })?;
        Ok(&mut self.last.insert(found).1)
    }
}

/// Nanoseconds since boot, as the program counts them.
fn now() -> io::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(std::time::Duration::from(now).as_nanos() as u64)
}

impl AsRawFd for Early {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl HoldsRing for Early {}
