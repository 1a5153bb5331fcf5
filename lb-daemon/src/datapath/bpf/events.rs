//! Samples of packets out of the kernel's ring buffer, and the grants for more.

use std::os::fd::{AsRawFd, RawFd};

use abi::event::{Event, Sampler, Stream};
use aya::maps::{Map, MapData, RingBuf};

use super::{BpfError, Mapped};

/// The ring buffer, and the samplers of all CPUs.
pub struct Events {
    ring: RingBuf<MapData>,
    samplers: Mapped<Sampler>,
    cpus: u32,
}

impl Events {
    pub(super) fn new(
        ring: MapData,
        samplers: Mapped<Sampler>,
        cpus: u32,
    ) -> Result<Self, BpfError> {
        let ring = RingBuf::try_from(Map::RingBuf(ring)).map_err(|_| BpfError::Map("EVENTS"))?;
        Ok(Self { ring, samplers, cpus })
    }

    /// The next sample, if there is one; what is not one of this version is passed over.
    pub fn take(&mut self) -> Option<Event> {
        while let Some(record) = self.ring.next() {
            if let Some(event) = Event::from_bytes(&record) {
                return Some(event);
            }
        }
        None
    }

    /// CPUs, each with a sampler for each stream.
    #[must_use]
    pub const fn cpus(&self) -> u32 {
        self.cpus
    }

    /// A sampler as it is now.
    #[must_use]
    pub fn sampler(&self, cpu: u32, stream: Stream) -> Sampler {
        self.samplers.read(stream.row(cpu))
    }

    /// Lets a CPU take `more` samples, with gaps of `stride` packets, and a reserve beyond them.
    pub fn grant(&self, cpu: u32, stream: Stream, more: u64, stride: u64) {
        let row = stream.row(cpu);
        let granted = self.samplers.read(row).granting(more);
        self.samplers.store(row, Sampler::WINDOW, Sampler::window_of(stride));
        self.samplers.store(row, Sampler::GRANTED, granted);
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}
