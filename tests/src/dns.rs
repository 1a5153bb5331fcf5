//! A DNS server in a namespace: it answers with what it is told, over UDP.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use simple_dns::{
    CLASS, Name, Packet, QCLASS, QTYPE, Question, ResourceRecord, TYPE,
    rdata::{A, AAAA, RData},
};

use crate::netns::Namespace;

/// How often the server looks whether it should end.
const TICK: Duration = Duration::from_millis(100);

/// Name to addresses, and how many seconds these count.
type Zone = BTreeMap<String, (Vec<IpAddr>, u32)>;

/// A server; it ends with this.
#[derive(Debug)]
pub struct Dns {
    zone: Arc<Mutex<Zone>>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Starts one at port 53 of an address of the namespace.
    ///
    /// # Errors
    ///
    /// The port is taken.
    pub fn start(namespace: &Namespace, address: IpAddr) -> anyhow::Result<Self> {
        let socket = namespace.enter(|| UdpSocket::bind((address, 53)))??;
        socket.set_read_timeout(Some(TICK))?;
        let (zone, done) = (Arc::<Mutex<Zone>>::default(), Arc::<AtomicBool>::default());
        let (own, end) = (Arc::clone(&zone), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while !end.load(Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let zone = own.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(reply) = answer(&zone, &buffer[..length]) {
                    // Who asked may have gone.
                    let _ = socket.send_to(&reply, from);
                }
            }
        });
        Ok(Self { zone, done, thread: Some(thread) })
    }

    /// What a name has from now on, for so many seconds.
    pub fn set(&self, name: &str, addresses: &[IpAddr], ttl: u32) {
        let mut zone = self.zone.lock().unwrap_or_else(PoisonError::into_inner);
        zone.insert(name.to_owned(), (addresses.to_vec(), ttl));
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.done.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(zone: &Zone, query: &[u8]) -> Option<Vec<u8>> {
    let query = Packet::parse(query).ok()?;
    let question = query.questions.first()?;
    let (addresses, ttl) = zone.get(&question.qname.to_string())?;
    let mut reply = Packet::new_reply(query.id());
    reply.questions.push(question.clone());
    for address in addresses {
        let data = match address {
            IpAddr::V4(own) => RData::A(A { address: (*own).into() }),
            IpAddr::V6(own) => RData::AAAA(AAAA { address: (*own).into() }),
        };
        let record = ResourceRecord::new(question.qname.clone(), CLASS::IN, *ttl, data);
        reply.answers.push(record);
    }
    reply.build_bytes_vec_compressed().ok()
}

/// Asks a server, from a namespace, for the addresses of a name. `None`: no answer came in time.
///
/// # Errors
///
/// There is no way to the server.
pub fn ask(from: &Namespace, server: IpAddr, name: &str) -> anyhow::Result<Option<usize>> {
    from.enter(|| {
        let any: IpAddr = if server.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(SocketAddr::from((server, 53)))?;
        socket.set_read_timeout(Some(Duration::from_millis(1300)))?;
        let mut query = Packet::new_query(0x1234);
        let name = Name::new(name).context("a name")?;
        let class = QCLASS::CLASS(CLASS::IN);
        query.questions.push(Question::new(name, QTYPE::TYPE(TYPE::A), class, false));
        socket.send(&query.build_bytes_vec()?)?;
        let mut buffer = [0; 2048];
        let Ok(length) = socket.recv(&mut buffer) else { return Ok(None) };
        let reply = Packet::parse(&buffer[..length])?;
        ensure!(reply.id() == 0x1234, "another answer");
        Ok(Some(reply.answers.len()))
    })?
}
