//! Two kinds of rtnetlink sockets: [`Requests`] asks the kernel and reads its answer, [`Notices`]
//! hears what changes.
//!
//! Owns the sockets and the framing. Keeps no state and gives messages no meaning. Both read straight
//! from the socket: the only queue is the kernel's receive buffer, whose overflow the kernel reports and
//! [`Notice::Lost`] passes on.

#[cfg(test)]
pub(crate) mod testing;

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{
    MulticastGroup,
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
        NetlinkMessage, NetlinkPayload,
    },
    sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tokio::time::timeout;

/// Longer than any message of the kernel, whose dumps come in pieces of at most 32 KiB.
const DATAGRAM: usize = 256 * 1024;

/// Notifications that may wait in the kernel: about 20,000.
const RECEIVE_BUFFER: usize = 16 * 1024 * 1024;

/// The kernel answers at once; this much silence means that the answer was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a dump is made that changes have interrupted or that failed.
const DUMP_ATTEMPTS: usize = 5;

/// A failure to talk with the kernel about its network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error("opening a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The socket broke.
    #[error("reading netlink notifications: {0}")]
    Listen(#[source] io::Error),
    /// The kernel refused, or the socket broke.
    #[error("netlink, {what}: {source}")]
    Request {
        /// What was asked.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Notice {
    /// A change, with the `NLM_F_*` flags of its message.
    Message { flags: u16, message: RouteNetlinkMessage },
    /// A message of this type, which the parser does not know.
    Unknown(u16),
    /// Changes came faster than they were read; some are lost.
    Lost,
}

/// Asks, one request at a time.
pub(crate) struct Requests {
    socket: TokioSocket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Requests {
    pub(crate) fn open() -> Result<Self, Error> {
        let mut socket = <TokioSocket as AsyncSocket>::new(NETLINK_ROUTE).map_err(Error::Open)?;
        socket.socket_mut().bind_auto().map_err(Error::Open)?;
        enlarge_receive_buffer(&socket);

        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM), sequence: 0 })
    }

    /// Reads a whole table, giving each message to `each`, and `None` when the reading begins, which it
    /// may more than once.
    pub(crate) async fn dump(
        &mut self,
        what: &'static str,
        request: RouteNetlinkMessage,
        mut each: impl FnMut(Option<RouteNetlinkMessage>),
    ) -> Result<(), Error> {
        let mut last = Ok(());
        for _ in 0..DUMP_ATTEMPTS {
            each(None);
            match self.dump_once(request.clone(), &mut each).await {
                Ok(true) => return Ok(()),
                Ok(false) => last = Ok(()),
                Err(source) => {
                    last = Err(Error::Request { what, source });
                    // The rest of a dump that was not read to its end would be in the way.
                    *self = Self::open()?;
                }
            }
        }
        // A table that never rests is taken as last read: notifications of what changed meanwhile follow.
        last
    }

    async fn dump_once(
        &mut self,
        request: RouteNetlinkMessage,
        each: &mut impl FnMut(Option<RouteNetlinkMessage>),
    ) -> io::Result<bool> {
        self.send(request, NLM_F_REQUEST | NLM_F_DUMP).await?;

        let mut consistent = true;
        loop {
            self.receive().await?;
            for bytes in messages(&self.buffer) {
                let Some(header) = header(bytes, self.sequence) else { continue };
                consistent &= header.flags() & NLM_F_DUMP_INTR == 0;
                match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
                    Ok(NetlinkMessage {
                        payload: NetlinkPayload::InnerMessage(message), ..
                    }) => {
                        each(Some(message));
                    }
                    Ok(NetlinkMessage { payload: NetlinkPayload::Error(error), .. }) => {
                        return Err(error.to_io());
                    }
                    Ok(NetlinkMessage { payload: NetlinkPayload::Done(_), .. }) => {
                        return Ok(consistent);
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "a netlink message was not understood"),
                }
            }
        }
    }

    /// Sends a request that has one answer and returns it.
    pub(crate) async fn get(
        &mut self,
        what: &'static str,
        request: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, Error> {
        let answer = self.exchange(request, NLM_F_REQUEST).await;
        let answer = answer.and_then(|answer| {
            answer.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an empty answer"))
        });
        answer.map_err(|source| Error::Request { what, source })
    }

    /// Sends a request to change something; `flags` are added to those that every request has.
    pub(crate) async fn change(
        &mut self,
        what: &'static str,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), Error> {
        match self.exchange(request, NLM_F_REQUEST | NLM_F_ACK | flags).await {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::Request { what, source }),
        }
    }

    async fn exchange(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        self.send(request, flags).await?;
        loop {
            self.receive().await?;
            for bytes in messages(&self.buffer) {
                if header(bytes, self.sequence).is_none() {
                    continue;
                }
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => return Ok(Some(message)),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(None),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    async fn send(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();

        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0)).await?;
        Ok(())
    }

    async fn receive(&mut self) -> io::Result<()> {
        self.buffer.clear();
        match timeout(ANSWER_TIMEOUT, self.socket.recv_from(&mut self.buffer)).await {
            Ok(received) => received.map(|_| ()),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer")),
        }
    }
}

/// Listens to changes.
pub(crate) struct Notices {
    socket: TokioSocket,
    buffer: Vec<u8>,
    pending: VecDeque<Notice>,
}

impl Notices {
    pub(crate) fn subscribe(groups: &[MulticastGroup]) -> Result<Self, Error> {
        let mut socket = <TokioSocket as AsyncSocket>::new(NETLINK_ROUTE).map_err(Error::Open)?;
        enlarge_receive_buffer(&socket);
        socket.socket_mut().bind(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        for &group in groups {
            socket.socket_mut().add_membership(group as u32).map_err(Error::Open)?;
        }

        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM), pending: VecDeque::new() })
    }

    /// The next notice. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Notice, Error> {
        loop {
            if let Some(notice) = self.pending.pop_front() {
                return Ok(notice);
            }
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer).await {
                Ok(sender) if sender.port_number() != 0 => {}
                Ok(_) => self.parse(),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(Notice::Lost);
                }
                Err(error) => return Err(Error::Listen(error)),
            }
        }
    }

    fn parse(&mut self) {
        for bytes in messages(&self.buffer) {
            let Ok(header) = NetlinkBuffer::new_checked(bytes) else { continue };
            let (flags, kind) = (header.flags(), header.message_type());
            self.pending.push_back(match NetlinkMessage::deserialize(bytes) {
                Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) => {
                    Notice::Message { flags, message }
                }
                Ok(NetlinkMessage { payload: NetlinkPayload::Overrun(_), .. }) => Notice::Lost,
                Ok(_) | Err(_) => Notice::Unknown(kind),
            });
        }
    }
}

/// The header of a message, if it belongs to the request with this number.
fn header(bytes: &[u8], sequence: u32) -> Option<NetlinkBuffer<&[u8]>> {
    NetlinkBuffer::new_checked(bytes).ok().filter(|header| header.sequence_number() == sequence)
}

/// The messages of a datagram.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = NetlinkBuffer::new_checked(datagram).ok()?.length() as usize;
        let (message, _) = datagram.split_at_checked(length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// A small buffer costs nothing but more frequent rereading, so that failure is no error.
fn enlarge_receive_buffer(socket: &TokioSocket) {
    use nix::sys::socket::{setsockopt, sockopt};

    // SAFETY: the descriptor belongs to `socket`, which outlives this function's use of it.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER);
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{setsockopt, sockopt};

    use super::{testing::Namespace, *};

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn an_overflow_is_told() {
        let here = Namespace::new("here");
        let here = &here;
        here.run(async {
            let mut notices = Notices::subscribe(&[MulticastGroup::Ipv4Ifaddr]).unwrap();
            // SAFETY: the descriptor belongs to `notices`, which outlives this use of it.
            let fd = unsafe { BorrowedFd::borrow_raw(notices.socket.as_raw_fd()) };
            setsockopt(&fd, sockopt::RcvBuf, &1).unwrap();
            for host in 1..40 {
                here.ip(&format!("address add 192.0.2.{host}/32 dev lo"));
            }
            let lost = async { while !matches!(notices.next().await.unwrap(), Notice::Lost) {} };
            timeout(PATIENCE, lost).await.expect("the kernel tells of the overflow");
        });
    }

    #[test]
    fn refusals_carry_the_kernels_reason() {
        Namespace::new("here").run(async {
            let mut request = netlink_packet_route::route::RouteMessage::default();
            request.header.address_family = netlink_packet_route::AddressFamily::Inet;
            request.header.destination_prefix_length = 32;
            let to = std::net::Ipv4Addr::new(192, 0, 2, 1);
            let to = netlink_packet_route::route::RouteAddress::Inet(to);
            request.attributes.push(netlink_packet_route::route::RouteAttribute::Destination(to));
            let mut requests = Requests::open().unwrap();
            let request = RouteNetlinkMessage::GetRoute(request);
            let error = requests.get("asking", request).await.unwrap_err();
            assert_eq!(error.to_string(), "netlink, asking: Network is unreachable (os error 101)");
        });
    }

    #[test]
    fn datagrams_are_cut_into_messages() {
        let message = |length: u8, total: usize| {
            let mut bytes = vec![0; total];
            bytes[0] = length;
            bytes
        };
        let lengths = |datagram: &[u8]| messages(datagram).map(<[u8]>::len).collect::<Vec<_>>();
        assert_eq!(lengths(&[]), [0usize; 0]);
        assert_eq!(lengths(&message(16, 16)), [16]);
        assert_eq!(lengths(&[message(18, 20), message(16, 16)].concat()), [18, 16]);
        assert_eq!(lengths(&[message(18, 18)].concat()), [18], "no padding at the end");
        assert_eq!(lengths(&message(40, 20)), [0usize; 0], "cut off");
        assert_eq!(lengths(&message(0, 20)), [0usize; 0], "no length");
    }
}
