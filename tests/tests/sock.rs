//! The programs at the socket: a process in a cgroup reaches services through its `connect()`.
//!
//! ```text
//!   process in a cgroup ---- veth ---- servers at the backends' addresses
//! ```
//!
//! Nobody has a service's address and there is no route to it: without translation no word arrives.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsFd as _,
    process::Command,
};

use abi::table::State;
use config::model::{Forwarding, Port, Protocol, Service, SourceRoute};
use lb_daemon::datapath::{Op, bpf::Sock};
use lb_tests::{
    cgroup::Cgroup,
    lab::{BpfDirectory, unique},
    netns::Namespace,
    rig::{Rig, need_root, service},
};

const VIP4: &str = "203.0.113.10";
const VIP6: &str = "2001:db8:1::10";
const BACKENDS4: [&str; 2] = ["10.77.0.11", "10.77.0.12"];
const BACKENDS6: [&str; 2] = ["2001:db8:77::11", "2001:db8:77::12"];
/// Port of the services.
const FRONT: u16 = 80;
/// Port of the servers.
const TARGET: u16 = 8080;

struct Scene {
    // Dropped in this order: what is attached, where it is attached, what it reads.
    sock: Option<Sock>,
    cgroup: Cgroup,
    rig: Rig,
    pins: BpfDirectory,
    here: Namespace,
    _there: Namespace,
}

impl Scene {
    fn new() -> Self {
        need_root();
        let id = unique();
        let here = Namespace::create(&format!("{id}-here")).unwrap();
        let there = Namespace::create(&format!("{id}-there")).unwrap();
        here.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}\nlink set eth0 up\n\
             addr add 10.77.0.1/24 dev eth0\naddr add 2001:db8:77::1/64 dev eth0 nodad",
            there.name()
        ))
        .unwrap();
        there.ip("link set eth0 up").unwrap();
        for address in BACKENDS4 {
            there.ip(&format!("addr add {address}/24 dev eth0")).unwrap();
        }
        for address in BACKENDS6 {
            // Without nodad an address can be bound to only a moment later.
            there.ip(&format!("addr add {address}/64 dev eth0 nodad")).unwrap();
        }
        there.enter(|| BACKENDS4.iter().chain(&BACKENDS6).for_each(|a| serve(a))).unwrap();

        let pins = BpfDirectory::create(&id).unwrap();
        let tables = pins.path().join("v0-0");
        std::fs::create_dir(&tables).unwrap();
        let mut rig = Rig::pinned(&tables);
        rig.fill(vec![front("four", VIP4, &BACKENDS4), front("six", VIP6, &BACKENDS6)], 1, 1500);

        let cgroup = Cgroup::create(&id).unwrap();
        let mut sock = rig.bpf.sock().unwrap();
        sock.attach(cgroup.as_fd()).unwrap();
        Self { sock: Some(sock), cgroup, rig, pins, here, _there: there }
    }

    /// What a process inside the cgroup prints, by line: whom it talks to, and who answers.
    fn inside(&self, kind: &str, to: &str) -> Result<Vec<(SocketAddr, SocketAddr)>, String> {
        let mut command = client(kind, to);
        self.cgroup.put(&mut command);
        self.run(command)
    }

    /// The same for one that binds its socket to an address.
    fn bound(&self, kind: &str, to: &str, source: &str) -> Vec<(SocketAddr, SocketAddr)> {
        let mut command = client(kind, to);
        command.arg(source);
        self.cgroup.put(&mut command);
        self.run(command).unwrap_or_else(|e| panic!("{kind} {to} from {source}: {e}"))
    }

    /// The same for a process that is not in the cgroup.
    fn outside(&self, kind: &str, to: &str) -> Result<Vec<(SocketAddr, SocketAddr)>, String> {
        self.run(client(kind, to))
    }

    fn run(&self, mut command: Command) -> Result<Vec<(SocketAddr, SocketAddr)>, String> {
        self.here.put(&mut command);
        let done = command.output().unwrap();
        if !done.status.success() {
            return Err(String::from_utf8(done.stderr).unwrap());
        }
        let text = String::from_utf8(done.stdout).unwrap();
        let pair = |line: &str| {
            let (peer, answer) = line.split_once(' ').unwrap();
            (peer.parse().unwrap(), answer.parse().unwrap())
        };
        Ok(text.lines().map(pair).collect())
    }

    fn set_down(&mut self, service: &str, backend: &str, down: bool) {
        let address: IpAddr = backend.parse().unwrap();
        let row = self.rig.planner.services()[service].members[&address].row;
        self.rig.apply(&[Op::State(row, State { down, ..State::default() })]);
    }
}

/// TCP and UDP at port 80 for servers at port 8080, and any other UDP port as it is.
fn front(name: &str, vip: &str, backends: &[&str]) -> Service {
    let port = |name: &str, port, protocol, target_port| Port {
        name: name.to_owned(),
        port,
        protocol,
        last: port,
        target_port,
        quic: false,
    };
    let mut service = service(name, &[vip], Forwarding::Ipip, backends);
    service.ports = vec![
        port("tcp", FRONT, Protocol::Tcp, TARGET),
        port("udp", FRONT, Protocol::Udp, TARGET),
        port("any", 0, Protocol::Udp, 0),
    ];
    service
}

fn client(kind: &str, to: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sock-client"));
    command.args([kind, to]);
    command
}

/// Answers with its own address and port, to which the client's words were addressed.
fn serve(address: &str) {
    let at: SocketAddr = SocketAddr::new(address.parse().unwrap(), TARGET);
    let listener = TcpListener::bind(at).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(at.to_string().as_bytes());
        }
    });
    let socket = UdpSocket::bind(at).unwrap();
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(at.to_string().as_bytes(), from);
        }
    });
}

fn addresses(list: &[&str]) -> BTreeSet<SocketAddr> {
    list.iter().map(|a| SocketAddr::new(a.parse().unwrap(), TARGET)).collect()
}

#[test]
fn a_process_reaches_services_and_does_not_notice() {
    let scene = Scene::new();
    let four = format!("{VIP4}:{FRONT}");
    let mapped = format!("[::ffff:{VIP4}]:{FRONT}");
    let six = format!("[{VIP6}]:{FRONT}");
    for kind in ["tcp", "udp", "datagrams"] {
        for (to, backends) in [(&four, BACKENDS4), (&mapped, BACKENDS4), (&six, BACKENDS6)] {
            let mut answered = BTreeSet::new();
            for _ in 0..60 {
                let said = scene.inside(kind, to).unwrap_or_else(|e| panic!("{kind} {to}: {e}"));
                for (peer, answer) in &said {
                    assert_eq!(
                        peer.to_string(),
                        *to,
                        "{kind}: whom the process believes to talk to"
                    );
                    answered.insert(*answer);
                }
                let from: BTreeSet<SocketAddr> = said.iter().map(|(_, answer)| *answer).collect();
                assert_eq!(from.len(), 1, "{kind} {to}: one socket, one backend");
                if answered.len() == backends.len() {
                    break;
                }
            }
            assert_eq!(answered, addresses(&backends), "{kind} {to}: all of them");
        }
    }
    // A service of every port keeps the port.
    let said = scene.inside("udp", &format!("{VIP4}:{TARGET}")).unwrap();
    assert_eq!(said[0].0.to_string(), format!("{VIP4}:{TARGET}"));
}

#[test]
fn backends_that_are_down_are_passed_over() {
    let mut scene = Scene::new();
    let to = format!("{VIP4}:{FRONT}");
    for (down, up) in [(0, 1), (1, 0)] {
        scene.set_down("four", BACKENDS4[down], true);
        scene.set_down("four", BACKENDS4[up], false);
        for _ in 0..8 {
            let said = scene.inside("tcp", &to).unwrap();
            assert_eq!(said[0].1.ip().to_string(), BACKENDS4[up]);
        }
    }
    scene.set_down("four", BACKENDS4[0], true);
    scene.set_down("four", BACKENDS4[1], true);
    let error = scene.inside("tcp", &to).unwrap_err();
    assert!(error.contains("unreachable"), "untouched, and there is no route: {error}");
}

#[test]
fn everything_else_is_left_alone() {
    let mut scene = Scene::new();
    let to = format!("{VIP4}:{FRONT}");
    let unreachable = |result: Result<_, String>, what: &str| match result {
        Err(error) => assert!(error.contains("unreachable"), "{what}: {error}"),
        Ok(said) => panic!("{what}: {said:?}"),
    };
    unreachable(scene.inside("tcp", &format!("{VIP4}:81")), "a port without service");
    unreachable(scene.inside("tcp", &format!("203.0.113.11:{FRONT}")), "another address");
    unreachable(scene.outside("tcp", &to), "a process elsewhere");
    let direct = format!("{}:{TARGET}", BACKENDS4[0]);
    let said = scene.inside("datagrams", &direct).unwrap();
    assert!(said.iter().all(|(peer, answer)| peer == answer && peer.to_string() == direct));

    assert!(scene.inside("tcp", &to).is_ok());
    scene.sock = None;
    unreachable(scene.inside("tcp", &to), "detached");
}

/// A socket that is bound to an address of a route's prefix has the backends of its group; any other socket has the
/// service's own. Who may use a service is asked in the same way.
#[test]
fn sockets_that_are_bound_are_routed() {
    const OURS: [&str; 2] = ["10.77.0.1", "2001:db8:77::1"];
    let mut scene = Scene::new();
    for other in ["10.77.0.2/24 dev eth0", "2001:db8:77::2/64 dev eth0 nodad"] {
        scene.here.ip(&format!("addr add {other}")).unwrap();
    }
    let with = |name: &str, vip: &str, backends: &[&str], ours: &str, only: bool| {
        let mut service = front(name, vip, backends);
        service.backends[1].group = Some("canary".to_owned());
        let prefixes = vec![ours.parse::<IpAddr>().unwrap().into()];
        if only {
            service.source_ranges.clone_from(&prefixes);
        }
        service.source_routes = vec![SourceRoute { prefixes, group: "canary".to_owned() }];
        service
    };
    for only in [false, true] {
        let four = with("four", VIP4, &BACKENDS4, OURS[0], only);
        let six = with("six", VIP6, &BACKENDS6, OURS[1], only);
        scene.rig.fill(vec![four, six], 1, 1500);
        for kind in ["tcp", "udp", "datagrams"] {
            for (to, ours, other, backends) in [
                (format!("{VIP4}:{FRONT}"), OURS[0], "10.77.0.2", BACKENDS4),
                (
                    format!("[::ffff:{VIP4}]:{FRONT}"),
                    "::ffff:10.77.0.1",
                    "::ffff:10.77.0.2",
                    BACKENDS4,
                ),
                (format!("[{VIP6}]:{FRONT}"), OURS[1], "2001:db8:77::2", BACKENDS6),
            ] {
                let answers = |said: Vec<(SocketAddr, SocketAddr)>, backend: &str| {
                    assert!(!said.is_empty());
                    for (peer, answer) in said {
                        assert_eq!(peer.to_string(), to);
                        assert_eq!(answer.ip().to_string(), backend, "{kind} {to}");
                    }
                };
                for _ in 0..4 {
                    answers(scene.bound(kind, &to, ours), backends[1]);
                    if only {
                        let error = scene.inside(kind, &to).unwrap_err();
                        assert!(error.contains("unreachable"), "{kind} {to}: {error}");
                        continue;
                    }
                    answers(scene.bound(kind, &to, other), backends[0]);
                    answers(scene.inside(kind, &to).unwrap(), backends[0]);
                }
            }
        }
    }
}

#[test]
fn nothing_is_left_behind_by_a_panic() {
    let mut paths = Vec::new();
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let scene = Scene::new();
        paths.extend([scene.cgroup.path().to_owned(), scene.pins.path().to_owned()]);
        panic!("on purpose");
    }));
    assert!(panic.is_err());
    assert_eq!(paths.len(), 2);
    for path in paths {
        assert!(!path.exists(), "{} is still there", path.display());
    }
}
