//! The measuring frame: runs a program on one packet after another inside the kernel.
//!
//! See `bench/ebpf`. A pass is: undo the last one, write the next flow's headers, call the program.
//! What a pass costs without a program is measured with an empty one, in the same rounds.

use std::{os::fd::AsFd as _, time::Duration};

use abi::policy::Way;
use anyhow::{Context as _, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Map, ProgramArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use config::Net4;
use lb_daemon::policy::kernel::Kernel;
use memmap2::{MmapOptions, MmapRaw};
use nix::time::{ClockId, clock_gettime};

use crate::{
    packet::{Flow, PORT, Shape},
    policy::{ACK, tcp},
};

pub(crate) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench-ebpf.o"));

/// Offsets in `State` of the program, in 64-bit words.
const NEXT: usize = 0;
const PASSES: usize = 1;
const SALT: usize = 2;
const LINK: usize = 3;
const WORDS: usize = 5;
const STATE_WORDS: usize = 12;
const ETH: usize = 14;

/// Frames of a number of flows, ready to be sent through programs.
pub struct Frame {
    ebpf: Ebpf,
    state: MmapRaw,
    flows: Vec<Flow>,
    shape: Shape,
}

/// What came of some passes.
#[derive(Debug)]
pub struct Run {
    /// CPU time of the thread, for each pass.
    pub nanos: f64,
    /// Verdict of the last pass.
    pub verdict: u32,
    /// The frame as the last pass left it.
    pub out: Vec<u8>,
    /// The frame that the last pass was given.
    pub sent: Vec<u8>,
}

impl Frame {
    /// Loads the frame for these flows, whose number is a power of two. All have one family; the
    /// destination may differ with IPv4 only.
    ///
    /// # Errors
    /// The kernel refuses a program or a map.
    pub fn load(flows: Vec<Flow>, shape: Shape) -> anyhow::Result<Self> {
        ensure!(flows.len().is_power_of_two(), "{} flows", flows.len());
        let count = u32::try_from(flows.len())?;
        let template = flows[0].frame(shape);
        let long = u32::from(flows[0].src.is_ipv6());
        let (length, mask) = (u32::try_from(template.len())?, count - 1);
        let mut ebpf = EbpfLoader::new()
            .override_global("LENGTH", &length, true)
            .override_global("LONG", &long, true)
            .override_global("FLOW_MASK", &mask, true)
            .map_max_entries("FLOWS", count)
            .load(OBJECT)?;
        for name in ["frame", "empty", "floor"] {
            program(&mut ebpf, name)?.load().with_context(|| format!("program {name}"))?;
        }
        let state = mapped(&ebpf, "STATE", STATE_WORDS * 8)?;
        let table = mapped(&ebpf, "FLOWS", flows.len() * 16)?;
        for (i, flow) in flows.iter().enumerate() {
            let frame = flow.frame(shape);
            store(&table, i * 2, word(&frame, ETH + 8));
            store(&table, i * 2 + 1, word(&frame, ETH + 16));
        }
        store(&state, LINK, word(&template, 0));
        store(&state, LINK + 1, word(&template, 8) & 0xffff_ffff_ffff);
        for i in 0..if long == 0 { 5 } else { 7 } {
            store(&state, WORDS + i, word(&template, ETH + i * 8));
        }
        Ok(Self { ebpf, state, flows, shape })
    }

    /// Bytes of a frame.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.flows[0].frame(self.shape).len()
    }

    /// Number of flows.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Other clients' ports (or, for IPv6, addresses) from now on: every flow is a new one.
    pub fn renew(&mut self, round: u16) {
        let salt = if self.flows[0].src.is_ipv6() {
            u64::from(round) << 16
        } else {
            // The high byte of the port.
            u64::from(round & 0xff) << 32
        };
        store(&self.state, SALT, salt);
    }

    /// A program of the frame's own: `empty` or `floor`.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn own(&mut self, name: &str) -> anyhow::Result<ProgramFd> {
        Ok(program(&mut self.ebpf, name)?.fd()?.try_clone()?)
    }

    /// Sends `passes` packets through `target`, beginning with the first flow.
    ///
    /// # Errors
    /// The kernel refuses, or fewer passes took place.
    pub fn run(&mut self, target: &ProgramFd, passes: u32) -> anyhow::Result<Run> {
        let map = self.ebpf.map_mut("TARGET").context("no map TARGET")?;
        ProgramArray::try_from(map)?.set(0, target, 0).context("the program cannot be called")?;
        store(&self.state, NEXT, 0);
        store(&self.state, PASSES, 0);
        let first = self.flows[0].frame(self.shape);
        let mut out = vec![0; first.len() + 256];
        let frame = program(&mut self.ebpf, "frame")?;
        let options = TestRunOptions {
            data_in: Some(&first),
            data_out: Some(&mut out),
            repeat: passes,
            ..TestRunOptions::default()
        };
        let before = thread_time()?;
        let result = frame.test_run(options)?;
        let spent = thread_time()? - before;
        let done = load(&self.state, PASSES);
        ensure!(done == u64::from(passes), "{done} passes, not {passes}");
        out.truncate(result.data_size_out as usize);
        Ok(Run {
            nanos: spent.as_nanos() as f64 / f64::from(passes),
            verdict: result.return_value,
            out,
            sent: self.sent(passes - 1),
        })
    }

    /// The frame of a pass.
    fn sent(&self, pass: u32) -> Vec<u8> {
        let flow = pass as usize & (self.flows.len() - 1);
        let mut frame = self.flows[flow].frame(self.shape);
        let salted = word(&frame, ETH + 16) ^ load(&self.state, SALT);
        frame[ETH + 16..ETH + 24].copy_from_slice(&salted.to_ne_bytes());
        frame
    }
}

/// An IPv4 TCP segment from one source after another, for a TC program.
pub struct TcFrame {
    ebpf: Ebpf,
    state: MmapRaw,
    frame: Vec<u8>,
    target: ProgramFd,
    nothing: ProgramFd,
    /// What the target reads lives as long.
    _kernel: Option<Kernel>,
}

impl TcFrame {
    /// For what comes in to `dst` through the policy program; the number of sources is a power of two.
    ///
    /// # Errors
    /// The kernel refuses a program or a map.
    pub fn load(sources: &[[u8; 4]], dst: [u8; 4], mut kernel: Kernel) -> anyhow::Result<Self> {
        let target = kernel.program(Way::In)?.fd()?.try_clone()?;
        Ok(Self { _kernel: Some(kernel), ..Self::new(sources, dst, &[], Some(target))? })
    }

    /// The same sources through the kernel's trie of these prefixes.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn trie(sources: &[[u8; 4]], dst: [u8; 4], nets: &[Net4]) -> anyhow::Result<Self> {
        Self::new(sources, dst, nets, None)
    }

    fn new(
        sources: &[[u8; 4]],
        dst: [u8; 4],
        nets: &[Net4],
        target: Option<ProgramFd>,
    ) -> anyhow::Result<Self> {
        ensure!(sources.len().is_power_of_two(), "{} sources", sources.len());
        let count = u32::try_from(sources.len())?;
        let mut ebpf = EbpfLoader::new()
            .override_global("FLOW_MASK", &(count - 1), true)
            .map_max_entries("FLOWS", count)
            .map_max_entries("TRIE", u32::try_from(nets.len())?.max(1))
            .load(OBJECT)?;
        fill(&mut ebpf, nets.iter())?;
        let mut of = |name: &str| -> anyhow::Result<ProgramFd> {
            let program: &mut SchedClassifier =
                ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
            program.load().with_context(|| format!("program {name}"))?;
            Ok(program.fd()?.try_clone()?)
        };
        let (nothing, trie) = (of("nothing")?, of("tc_trie")?);
        of("tc_frame")?;
        let state = mapped(&ebpf, "STATE", STATE_WORDS * 8)?;
        let table = mapped(&ebpf, "FLOWS", sources.len() * 16)?;
        for (n, source) in sources.iter().enumerate() {
            store(&table, n * 2, u32::from_ne_bytes(*source).into());
        }
        let frame = tcp(sources[0], dst, 4000, PORT, ACK);
        Ok(Self { ebpf, state, frame, target: target.unwrap_or(trie), nothing, _kernel: None })
    }

    /// Nanoseconds of CPU time for each of `packets`, through the program or one that does nothing.
    ///
    /// # Errors
    /// The kernel refuses, or the last packet got another verdict than `action`.
    pub fn run(&mut self, own: bool, packets: u32, action: u32) -> anyhow::Result<f64> {
        let target = if own { &self.target } else { &self.nothing };
        let map = self.ebpf.map_mut("TC_TARGET").context("no map TC_TARGET")?;
        ProgramArray::try_from(map)?.set(0, target, 0).context("the program cannot be called")?;
        store(&self.state, NEXT, 0);
        let frame: &mut SchedClassifier =
            self.ebpf.program_mut("tc_frame").context("no program tc_frame")?.try_into()?;
        crate::policy::one(frame, &self.frame, action, packets)
    }
}

/// A program that reads one word of a table of so many, a power of two, at random by its source.
///
/// # Errors
/// The kernel refuses it.
pub fn one_load(words: u32) -> anyhow::Result<ProgramFd> {
    let mask = words - 1;
    let mut ebpf = EbpfLoader::new()
        .map_max_entries("WORDS", words)
        .override_global("WORD_MASK", &mask, true)
        .load(OBJECT)?;
    let program = program(&mut ebpf, "load")?;
    program.load().context("program load")?;
    Ok(program.fd()?.try_clone()?)
}

/// A program that drops what the kernel's trie has and lets pass the rest, with a trie of these IPv4
/// prefixes.
///
/// # Errors
/// The kernel refuses a program, a map or a prefix.
pub fn trie(list: &config::PrefixSet) -> anyhow::Result<ProgramFd> {
    let entries = u32::try_from(list.len())?.max(1);
    let mut ebpf = EbpfLoader::new().map_max_entries("TRIE", entries).load(OBJECT)?;
    fill(&mut ebpf, list.v4().iter())?;
    let program = program(&mut ebpf, "trie")?;
    program.load().context("program trie")?;
    // The program keeps the map.
    Ok(program.fd()?.try_clone()?)
}

fn fill<'n>(ebpf: &mut Ebpf, nets: impl Iterator<Item = &'n Net4>) -> anyhow::Result<()> {
    let map = ebpf.map_mut("TRIE").context("no map TRIE")?;
    let mut trie = LpmTrie::<_, [u8; 4], u32>::try_from(map)?;
    for net in nets {
        let key = Key::new(net.bits().into(), net.first().to_be_bytes());
        trie.insert(&key, 1, 0)?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

fn mapped(ebpf: &Ebpf, name: &str, bytes: usize) -> anyhow::Result<MmapRaw> {
    let Some(Map::Array(map)) = ebpf.map(name) else { anyhow::bail!("no array {name}") };
    Ok(MmapOptions::new().len(bytes).map_raw(&map.fd().as_fd())?)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(std::array::from_fn(|i| bytes.get(at + i).copied().unwrap_or_default()))
}

fn store(map: &MmapRaw, index: usize, word: u64) {
    assert!(index * 8 + 8 <= map.len());
    // SAFETY: inside the mapping and aligned, as it begins on a page; no program runs meanwhile.
    unsafe { map.as_mut_ptr().cast::<u64>().add(index).write_volatile(word) };
}

fn load(map: &MmapRaw, index: usize) -> u64 {
    assert!(index * 8 + 8 <= map.len());
    // SAFETY: as in `store`.
    unsafe { map.as_ptr().cast::<u64>().add(index).read_volatile() }
}

/// CPU time of this thread.
///
/// # Errors
/// The kernel has no such clock.
pub fn thread_time() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
