use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, ResourceRecord, TYPE,
    rdata::{A, CNAME, RData},
};

use super::{asked::Asked, dns::Message, *};

fn pattern(text: &str) -> NamePattern {
    NamePattern::new(text, text.contains('*')).unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const BOUNDS: Fqdn =
    Fqdn { min_ttl: Duration::from_secs(10), addresses_per_name: 3, names_per_pattern: 2 };

fn learn(names: &mut Names, name: &str, all: &[(&str, u32)], now: u64) -> bool {
    let all: Vec<_> = all.iter().map(|(text, ttl)| (address(text), *ttl)).collect();
    names.learn(name, &all, &[&pattern("*.example.org"), &pattern("other.net")], BOUNDS, now)
}

#[test]
fn only_what_a_rule_selects_and_until_its_time_is_over() {
    let mut names = Names::default();
    assert!(!learn(&mut names, "www.example.com", &[("192.0.2.1", 60)], 0));
    assert!(learn(&mut names, "www.example.org", &[("192.0.2.1", 60), ("192.0.2.2", 1)], 0));
    assert!(!learn(&mut names, "www.example.org", &[("192.0.2.1", 30)], 1), "known");
    assert!(learn(&mut names, "other.net", &[("192.0.2.3", 60)], 0));
    let own = names.addresses(&pattern("*.example.org"));
    assert_eq!(own, [address("192.0.2.1"), address("192.0.2.2")].into());
    assert_eq!(names.next_end(), Some(10_000), "not before the least time");
    assert!(!names.expire(9_999, &BTreeMap::new()));
    assert!(names.expire(10_000, &BTreeMap::new()));
    assert_eq!(names.addresses(&pattern("www.example.org")), [address("192.0.2.1")].into());
    assert!(names.expire(60_000, &BTreeMap::new()));
    assert_eq!(names, Names::default());
}

#[test]
fn an_address_in_use_stays_until_nothing_was_seen_for_a_while() {
    let mut names = Names::default();
    learn(&mut names, "www.example.org", &[("192.0.2.1", 10)], 0);
    let at = |last: u64| BTreeMap::from([(address("192.0.2.1"), last)]);
    let hold = HOLD.as_millis() as u64;
    assert!(!names.expire(10_000, &at(5)));
    assert!(names.holds_any() && names.next_end().is_none());
    assert!(!names.expire(10_000 + hold - 1, &at(6)), "it was seen again");
    assert!(!names.expire(10_000 + hold + hold - 2, &at(6)));
    assert!(names.expire(10_000 + hold + hold - 1, &at(6)), "and then not any more");
    learn(&mut names, "www.example.org", &[("192.0.2.1", 10)], 0);
    names.expire(10_000, &at(5));
    assert!(names.expire(10_001, &BTreeMap::new()), "its connections are forgotten");
    assert!(!names.holds_any());
}

#[test]
fn bounds_hold_and_the_first_to_end_make_room() {
    let mut names = Names::default();
    let many: Vec<(String, u32)> = (1..=9).map(|n| (format!("192.0.2.{n}"), 100 - n)).collect();
    let many: Vec<(&str, u32)> = many.iter().map(|(text, ttl)| (text.as_str(), *ttl)).collect();
    learn(&mut names, "a.example.org", &many, 0);
    let kept: BTreeSet<_> = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(address).into();
    assert_eq!(names.addresses(&pattern("*")), kept);
    learn(&mut names, "b.example.org", &[("192.0.2.20", 20)], 0);
    learn(&mut names, "c.example.org", &[("192.0.2.30", 300)], 0);
    let known: Vec<_> = names.iter().map(|one| one.name).collect();
    assert_eq!(known, ["a.example.org", "c.example.org"]);
}

#[test]
fn what_is_kept_is_read_again() {
    let state = tempfile::tempdir().unwrap();
    let (kept, none) = Kept::open(state.path()).unwrap();
    assert_eq!(none, Names::default());
    let mut names = Names::default();
    learn(&mut names, "a.example.org", &[("192.0.2.1", 60), ("2001:db8::1", 60)], 7);
    kept.put(&names).unwrap();
    assert_eq!(Kept::open(state.path()).unwrap().1, names);
    std::fs::write(state.path().join("names/learned.json"), "{").unwrap();
    let error = Kept::open(state.path()).unwrap_err().to_string();
    assert!(error.contains("names/learned.json"), "{error}");
}

/// An Ethernet frame with an IPv4 UDP datagram, without checksums.
fn frame(from: (&str, u16), to: (&str, u16), payload: &[u8]) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let udp = (8 + payload.len()) as u16;
    let mut frame = vec![0; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((20 + udp).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(octets(from.0));
    frame.extend(octets(to.0));
    for word in [from.1, to.1, udp, 0] {
        frame.extend(word.to_be_bytes());
    }
    frame.extend(payload);
    frame
}

fn answer(name: &'static str, records: Vec<(&'static str, RData<'static>)>) -> Vec<u8> {
    let mut packet = Packet::new_reply(7);
    let name = Name::new_unchecked(name);
    packet.questions.push(Question::new(
        name,
        QTYPE::TYPE(TYPE::A),
        QCLASS::CLASS(CLASS::IN),
        false,
    ));
    for (name, data) in records {
        packet.answers.push(ResourceRecord::new(Name::new_unchecked(name), CLASS::IN, 60, data));
    }
    packet.build_bytes_vec_compressed().unwrap()
}

fn a(text: &str) -> RData<'static> {
    RData::A(A { address: text.parse::<std::net::Ipv4Addr>().unwrap().into() })
}

#[test]
fn an_answer_is_about_its_question_and_its_aliases() {
    let alias = |to| RData::CNAME(CNAME(Name::new_unchecked(to)));
    let records = vec![
        ("WWW.example.org", alias("web.cdn.net")),
        ("web.cdn.net", alias("edge.cdn.net")),
        ("edge.cdn.net", a("192.0.2.1")),
        ("edge.cdn.net", a("127.0.0.1")),
        ("bank.example", a("192.0.2.66")),
    ];
    let whole = frame(("10.0.0.53", 53), ("10.0.0.2", 4000), &answer("www.Example.org", records));
    let read = dns::read(&whole, true).unwrap();
    assert_eq!(read.name, "www.example.org");
    assert_eq!(read.addresses, [(address("192.0.2.1"), 60)]);
    assert_eq!((read.local, read.server), ((address("10.0.0.2"), 4000), address("10.0.0.53")));
    assert_eq!(dns::read(&whole, false), None, "an answer is no question");
    let around = vec![("a.org", alias("b.org")), ("b.org", alias("a.org"))];
    let around = frame(("10.0.0.53", 53), ("10.0.0.2", 4000), &answer("a.org", around));
    assert_eq!(dns::read(&around, true).unwrap().addresses, []);
    for cut in 0..whole.len() {
        assert_eq!(dns::read(&whole[..cut], true), None, "{cut}");
    }
}

#[test]
fn an_answer_that_says_no_has_no_addresses() {
    let good = answer("a.org", vec![("a.org", a("192.0.2.1"))]);
    let truncated = |packet: &mut Packet<'_>| packet.set_flags(PacketFlag::TRUNCATION);
    let unknown = |packet: &mut Packet<'_>| *packet.rcode_mut() = simple_dns::RCODE::NameError;
    let spoilers: [fn(&mut Packet<'_>); 2] = [truncated, unknown];
    for spoil in spoilers {
        let mut packet = Packet::parse(&good).unwrap();
        spoil(&mut packet);
        let bytes = packet.build_bytes_vec().unwrap();
        let frame = frame(("10.0.0.53", 53), ("10.0.0.2", 4000), &bytes);
        assert_eq!(dns::read(&frame, true).unwrap().addresses, []);
    }
}

#[test]
fn an_answer_counts_once_and_only_if_somebody_asked() {
    let message = Message {
        local: (address("10.0.0.2"), 4000),
        server: address("10.0.0.53"),
        id: 7,
        name: "a.org".to_owned(),
        addresses: Vec::new(),
    };
    let mut asked = Asked::default();
    assert!(!asked.answers(1, &message, 0));
    asked.ask(1, &message, 0);
    for forged in [
        Message { local: (message.local.0, 4001), ..message.clone() },
        Message { server: address("10.0.0.54"), ..message.clone() },
        Message { id: 8, ..message.clone() },
        Message { name: "b.org".to_owned(), ..message.clone() },
    ] {
        assert!(!asked.answers(1, &forged, 1), "{forged:?}");
    }
    assert!(!asked.answers(2, &message, 1), "another endpoint");
    assert!(asked.answers(1, &message, 1) && !asked.answers(1, &message, 1));
    asked.ask(1, &message, 0);
    assert!(!asked.answers(1, &message, 30_001), "too late");
}
