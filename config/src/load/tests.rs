use std::fs;

use super::*;

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    directory
}

const WEB: &str = "\
services:
  - name: web
    address: 203.0.113.10
    ports: [{port: 443}]
    forwarding: ipip
    backends:
      - {name: web-1, address: 10.0.1.11}
      - {address: \"2001:db8::12\", weight: 0, state: draining}
";

/// In the order of the files; what is next to a range, of another protocol or address, and port 0 are none of it.
#[test]
fn ranges_of_ports_overlap_over_files() {
    let service = |name: &str, address: &str, port: &str| {
        format!(
            "services:\n  - {{name: {name}, address: {address}, ports: [{port}], forwarding: ipip, \
             backends: [{{address: 10.0.1.11}}]}}\n"
        )
    };
    let range = service("range", "203.0.113.10", "{port: 8000-8999}");
    let faults = |address: &str, port: &str| {
        let other = service("other", address, port);
        let files = directory(&[("a.yaml", &range), ("b.yaml", &other)]);
        match Loader::new(files.path()).load() {
            Ok(_) => Vec::new(),
            Err(faults) => faults.iter().map(ToString::to_string).collect(),
        }
    };
    for port in ["8000", "8999", "8500-9500", "1-8000", "1-65535"] {
        let found = faults("203.0.113.10", &format!("{{port: {port}}}"));
        assert_eq!(found.len(), 1, "{port}: {found:?}");
        let words =
            ["b.yaml:2:", "ports 8000-8999/tcp of the service `range` at ", "a.yaml:2:", "divide"];
        assert!(words.iter().all(|word| found[0].contains(word)), "{port}: {found:?}");
    }
    let behind_nat = range.replace("ipip", "nat");
    let behind_nat = directory(&[("a.yaml", &behind_nat)]);
    assert!(Loader::new(behind_nat.path()).load().is_ok());
    for (address, port) in [
        ("203.0.113.10", "{port: 7999}"),
        ("203.0.113.10", "{port: 9000-9999}"),
        ("203.0.113.10", "{port: 0}"),
        ("203.0.113.10", "{port: 8000-8999, protocol: udp}"),
        ("203.0.113.11", "{port: 8000-8999}"),
    ] {
        assert_eq!(faults(address, port), [""; 0], "{address} {port}");
    }
}

#[test]
fn nat_addresses_whose_ports_a_service_takes() {
    let node = "node: {nat: {addresses: [192.0.2.1, 203.0.113.10]}}\n";
    let service = |forwarding: &str, port: &str| {
        format!(
            "services:\n  - {{name: web, address: 203.0.113.10, ports: [{port}], forwarding: {forwarding}, \
             backends: [{{address: 10.0.1.11}}]}}\n"
        )
    };
    for (forwarding, port, refused) in [
        ("ipip", "{port: 0}", true),
        ("nat", "{port: 0, protocol: udp}", true),
        ("ipip", "{port: 8000-8999}", true),
        ("nat", "{port: 443}", false),
    ] {
        let service = service(forwarding, port);
        let files = directory(&[("a.yaml", node), ("b.yaml", &service)]);
        let mut loader = Loader::new(files.path());
        match loader.load() {
            Ok(state) => assert!(!refused && state.node.nat.addresses.len() == 2, "{port}"),
            Err(faults) => {
                let fault = faults[0].to_string();
                assert!(refused && faults.len() == 1, "{port}: {faults:?}");
                assert!(fault.contains("b.yaml:2:") && fault.contains("a.yaml:1:"), "{fault}");
            }
        }
        // One of the two gives way.
        std::fs::write(files.path().join("a.yaml"), node.replace(", 203.0.113.10", "")).unwrap();
        assert_eq!(loader.load().unwrap().services.len(), 1, "{port}");
    }
}

/// Packets to and from a link-local address go no further than the link.
#[test]
fn addresses_of_the_node_lead_somewhere() {
    for (field, wrong, message) in [
        (
            "nat: {addresses: [",
            "fe80::1",
            "fe80::1 is a link-local address and cannot be a NAT address",
        ),
        (
            "nat: {addresses: [",
            "ff02::1",
            "ff02::1 is a multicast address and cannot be a NAT address",
        ),
        ("tunnel_source: {ipv6: [", "fe80::/112", "fe80::/112 is a link-local address"),
    ] {
        let load = |address: &str| {
            let text = format!("node: {{{field}\"{address}\"]}}}}\n");
            // A source is one prefix, NAT addresses are a list.
            let text = if field.starts_with("nat") { text } else { text.replace(['[', ']'], "") };
            Loader::new(directory(&[("lb.yaml", &text)]).path()).load()
        };
        load(&wrong.replace("fe80:", "2001:db8:").replace("ff02:", "2001:db8:")).unwrap();
        let faults = load(wrong).unwrap_err();
        assert!(faults[0].to_string().contains(message), "{faults:?}");
    }
}

/// The only mode that goes on in the backend's family.
#[test]
fn nat_between_families() {
    let text = "services:\n  - {name: web, addresses: [203.0.113.10, \"2001:db8::10\"], ports: [{port: 80}], \
                forwarding: nat, backends: [{address: 10.0.1.11}, {address: \"2001:db8::11\"}]}\n";
    let files = directory(&[("a.yaml", text)]);
    assert_eq!(Loader::new(files.path()).load().unwrap().services["web"].backends.len(), 2);
}

#[test]
fn what_becomes_of_established_connections() {
    use crate::policy::Established;
    for (text, wanted) in [
        ("node: {name: a}\n", Some(Established::Reevaluate)),
        ("policy_established: reevaluate\n", Some(Established::Reevaluate)),
        ("policy_established: keep\n", Some(Established::Keep)),
        ("policy_established: forget\n", None),
    ] {
        let files = directory(&[("a.yaml", text)]);
        match Loader::new(files.path()).load() {
            Ok(state) => assert_eq!(Some(state.policy_established), wanted, "{text}"),
            Err(faults) => {
                let fault = faults[0].to_string();
                assert!(wanted.is_none() && fault.contains("a.yaml:1:"), "{text}: {fault}");
                assert!(fault.contains("keep"), "{fault}");
            }
        }
    }
}

#[test]
fn loads_a_service() {
    let directory = directory(&[("web.yaml", WEB)]);
    let state = Loader::new(directory.path()).load().unwrap();
    let service = &state.services["web"];
    assert_eq!(service.backends.len(), 2);
    assert_eq!(service.backends[1].name, "2001:db8::12");
    assert_eq!(service.ports[0].name, "tcp-443");
    assert_eq!(
        service.source,
        model::Source::File {
            path: Arc::new(directory.path().join("web.yaml")),
            line: 2,
            column: 5
        }
    );
}

fn lists(yaml: &str) -> String {
    format!("prefilter:\n  lists:\n    - {yaml}\n")
}

fn texts(state: &model::DesiredState) -> Vec<(String, Vec<String>)> {
    let lists = state.prefilter.lists.iter();
    lists
        .map(|l| (l.name.clone(), l.prefixes.iter().map(|net| net.to_string()).collect()))
        .collect()
}

#[test]
fn a_broken_line_rejects_or_is_left_out() {
    let text = "192.0.2.0/24\nno prefix\n198.51.100.7\n";
    let directory = directory(&[
        ("lb.yaml", &lists("{name: drop, file: lists/drop.txt}")),
        ("lists/drop.txt", "192.0.2.0/24\n"),
    ]);
    let mut loader = Loader::new(directory.path());
    let before = loader.load().unwrap();
    fs::write(directory.path().join("lists/drop.txt"), text).unwrap();
    let faults = loader.load().unwrap_err();
    assert!(
        faults[0].to_string().contains("lists/drop.txt:2:1: `no` is not a prefix"),
        "{faults:?}"
    );

    let skip = lists("{name: drop, file: lists/drop.txt, on_error: skip}");
    fs::write(directory.path().join("lb.yaml"), skip).unwrap();
    let state = loader.load().unwrap();
    let list = &state.prefilter.lists[0];
    assert_eq!((list.prefixes.len(), list.skipped.len(), list.skipped_lines), (2, 1, 1));
    assert_eq!(list.skipped[0].line, 2);
    assert!(!Arc::ptr_eq(&before.prefilter, &state.prefilter));
    let again = loader.load().unwrap();
    assert!(Arc::ptr_eq(&again.prefilter, &state.prefilter), "nothing changed");
}

/// A single file is configured: its directory is watched for what else is in it, and for nothing if nothing is.
#[test]
fn lists_beside_a_single_file_are_watched() {
    for (list, watched) in [
        ("{name: a, cidrs: [192.0.2.0/24]}", false),
        ("{name: a, file: a.txt}", true),
        ("{name: a, file: sub/a.txt}", false),
        ("{name: a, directory: .}", true),
    ] {
        let files = [("lb.yaml", &*lists(list)), ("a.txt", "192.0.2.1\n"), ("sub/a.txt", "")];
        let directory = directory(&files);
        let mut loader = Loader::new(directory.path().join("lb.yaml"));
        // A list for `lb.yaml` too, in the last case: no matter what comes of that.
        let _ = loader.load();
        assert_eq!(loader.watch_dirs().iter().any(|d| d == directory.path()), watched, "{list}");
        let mut loader = Loader::new(directory.path());
        let _ = loader.load();
        assert!(!loader.watch_dirs().iter().any(|d| d == directory.path()), "{list}");
    }
}

#[test]
fn a_directory_is_a_list_for_each_file() {
    let directory = directory(&[
        ("lb.yaml", &lists("{name: feed, directory: lists, action: audit}")),
        ("lists/b.netset", "# two\n192.0.2.0/24\n"),
        ("lists/a.txt", "198.51.100.7\n"),
        ("lists/.hidden", "x\n"),
        ("lists/a.txt~", "x\n"),
    ]);
    let mut loader = Loader::new(directory.path());
    let state = loader.load().unwrap();
    let (a, b) = ("198.51.100.7/32".to_owned(), "192.0.2.0/24".to_owned());
    let all = [("feed:a".to_owned(), vec![a.clone()]), ("feed:b".to_owned(), vec![b])];
    assert_eq!(texts(&state), all);
    assert_eq!(state.prefilter.lists[0].action, model::ListAction::Audit);
    assert!(loader.watch_dirs().contains(&directory.path().join("lists")));

    fs::write(directory.path().join("lists/c.txt"), "203.0.113.0/24\n").unwrap();
    fs::remove_file(directory.path().join("lists/b.netset")).unwrap();
    let names: Vec<_> = texts(&loader.load().unwrap()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["feed:a", "feed:c"]);

    fs::write(directory.path().join("lists/a.json"), "").unwrap();
    let faults = loader.load().unwrap_err();
    assert!(faults[0].message.contains("two lists have the name `feed:a`"), "{faults:?}");
    fs::rename(directory.path().join("lists/a.json"), directory.path().join("lists/a b")).unwrap();
    let faults = loader.load().unwrap_err();
    assert!(faults[0].message.contains("would be a list of the name `feed:a b`"), "{faults:?}");
}

#[test]
fn a_list_is_in_one_place() {
    for (list, message) in [
        ("{name: a, file: x, directory: y}", "a list has two of"),
        ("{name: a, cidrs: [192.0.2.0/24], on_error: skip}", "`on_error` says how a file"),
        ("{name: a}", "`cidrs` is missing"),
        ("{name: a, directory: not-there}", "cannot read"),
        ("{name: a, cidrs: [192.0.2.0/24], url: \"http://a/\"}", "a list has two of"),
        ("{name: a, url: \"ftp://a/\"}", "is not the URL of a list"),
        ("{name: a, url: \"http://a/\", refresh: 10s}", "`refresh` is 10s"),
        ("{name: a, url: \"http://a/\", timeout: 1h}", "`timeout` is 1h"),
        ("{name: a, url: \"http://a/\", max_bytes: 0}", "`max_bytes` is 0"),
        ("{name: a, cidrs: [192.0.2.0/24], refresh: 1h}", "`refresh` says how a list is fetched"),
    ] {
        let directory = directory(&[("lb.yaml", &lists(list))]);
        let faults = Loader::new(directory.path()).load().unwrap_err();
        assert!(faults[0].to_string().contains(message), "{list}: {faults:?}");
    }
}

#[test]
fn a_fetched_list_is_its_copy_and_empty_without_one() {
    let yaml = lists("{name: feed, url: \"https://example.org/feed.txt?key=secret\", timeout: 5s}");
    let directory = directory(&[("conf/lb.yaml", &yaml)]);
    let copies = directory.path().join("copies");
    fs::create_dir(&copies).unwrap();
    let mut loader = Loader::new(directory.path().join("conf")).with_copies(&copies);
    let state = loader.load().unwrap();
    let list = &state.prefilter.lists[0];
    let remote = list.remote.as_ref().unwrap();
    assert!(list.prefixes.is_empty());
    assert_eq!(remote.shown_url(), "https://example.org/feed.txt?...");
    assert_eq!((remote.timeout.as_secs(), remote.refresh.as_secs()), (5, 3600));
    let again = loader.load().unwrap();
    assert!(Arc::ptr_eq(&again.prefilter, &state.prefilter), "nothing changed");
    assert!(loader.watch_dirs().is_empty());

    // Checked when it came; what became of it since is no fault of the configuration.
    let copy = copies.join(remote.copy_name("feed"));
    fs::write(&copy, "192.0.2.0/24\nrubbish\n").unwrap();
    let state = loader.load().unwrap();
    assert_eq!(texts(&state), [("feed".to_owned(), vec!["192.0.2.0/24".to_owned()])]);
    assert_eq!(state.prefilter.lists[0].skipped_lines, 1);
    let again = loader.load().unwrap();
    assert!(Arc::ptr_eq(&again.prefilter, &state.prefilter), "nothing changed");
    assert!(loader.watch_dirs().is_empty());

    fs::remove_file(copy).unwrap();
    assert!(loader.load().unwrap().prefilter.lists[0].prefixes.is_empty());
    let other = yaml.replace("feed.txt", "other.txt");
    fs::write(directory.path().join("conf/lb.yaml"), other).unwrap();
    let of_other = Loader::new(directory.path().join("conf")).with_copies(&copies).load().unwrap();
    let other = of_other.prefilter.lists[0].remote.clone().unwrap();
    assert_ne!(other.copy_name("feed"), remote.copy_name("feed"));
}

#[test]
fn lists_by_country_and_network() {
    let yaml = "prefilter:\n  tables: {country: [geo/c.csv, geo/more.csv], asn: [geo/a.csv]}\n  lists:\n    \
                - {name: xx, match: {country: [\"xx\"]}}\n    \
                - {name: both, match: {country: [\"YY\"], asn: [64496]}, action: audit}\n";
    let directory = directory(&[
        ("lb.yaml", yaml),
        ("geo/c.csv", "192.0.2.0/25,XX\n192.0.2.128/25,YY\n"),
        ("geo/more.csv", "2001:db8::,2001:db8:ffff:ffff:ffff:ffff:ffff:ffff,XX\n"),
        ("geo/a.csv", "198.51.100.0/24,AS64496,Us\n"),
    ]);
    let mut loader = Loader::new(directory.path());
    let state = loader.load().unwrap();
    let of = |name: &str, nets: &[&str]| {
        (name.to_owned(), nets.iter().map(|net| (*net).to_owned()).collect::<Vec<_>>())
    };
    let (xx, both) = (
        of("xx", &["192.0.2.0/25", "2001:db8::/32"]),
        of("both", &["192.0.2.128/25", "198.51.100.0/24"]),
    );
    assert_eq!(texts(&state), [xx, both]);
    assert_eq!(state.prefilter.lists[1].action, model::ListAction::Audit);
    let ip = "198.51.100.7".parse().unwrap();
    assert_eq!(state.prefilter.geo.asn(ip).map(|(number, _)| number), Some(64496));
    assert!(loader.watch_dirs().contains(&directory.path().join("geo")));
    let again = loader.load().unwrap();
    assert!(Arc::ptr_eq(&again.prefilter, &state.prefilter), "nothing changed");

    // One of the files changes: the others are not lost, and lists that stay the same are the same.
    fs::write(directory.path().join("geo/c.csv"), "192.0.2.128/25,YY\n").unwrap();
    let state = loader.load().unwrap();
    assert_eq!(texts(&state)[0], of("xx", &["2001:db8::/32"]));
    assert_eq!(texts(&state)[1].1.len(), 2);

    fs::write(directory.path().join("geo/a.csv"), "198.51.100.0/24,AS64496\nx,1\n").unwrap();
    for _ in 0..2 {
        let faults = loader.load().unwrap_err();
        assert!(faults[0].to_string().contains("geo/a.csv:2:1: `x` is not a prefix"), "{faults:?}");
    }
    fs::remove_file(directory.path().join("geo/a.csv")).unwrap();
    assert!(loader.load().unwrap_err()[0].to_string().contains("cannot read"));
    fs::write(directory.path().join("geo/a.csv"), "198.51.100.0/25,64496\n").unwrap();
    assert!(texts(&loader.load().unwrap())[1].1.contains(&"198.51.100.0/25".to_owned()));

    for (yaml, message) in [
        ("lists: [{name: a, match: {country: [\"XX\"]}}]", "there is no table of that"),
        ("lists: [{name: a, match: {country: [Norway]}}]", "`Norway` is not a country code"),
        ("lists: [{name: a, match: {}}]", "`match` matches nothing"),
        ("lists: [{name: a, match: {asn: [1]}, cidrs: [192.0.2.1]}]", "a list has two of"),
        ("crowdsec: [{url: \"http://a\"}]", "`api_key_file` is missing"),
        ("crowdsec: [{url: \"a\", api_key_file: k}]", "is not the URL"),
        (
            "{crowdsec: [{url: \"http://a\", api_key_file: k, list: b}], lists: [{name: b, cidrs: [192.0.2.1]}]}",
            "b",
        ),
    ] {
        let directory = self::directory(&[("lb.yaml", &format!("prefilter:\n  {yaml}\n"))]);
        let faults = Loader::new(directory.path()).load().unwrap_err();
        assert!(faults[0].to_string().contains(message), "{yaml}: {faults:?}");
    }
    let yaml = "crowdsec: [{url: \"http://127.0.0.1:8080\", api_key_file: k}]";
    let bouncer = &prefilter(yaml).unwrap().prefilter.crowdsec[0];
    assert_eq!((bouncer.list.as_str(), bouncer.interval.as_secs()), ("crowdsec", 10));
}

/// Files that users copy are good, with the lists that the pages about them have.
#[test]
fn examples_are_good() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for entry in fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|suffix| suffix != "yaml") {
            continue;
        }
        let directory = directory(&[("lists/million.txt", "192.0.2.0/24\n")]);
        fs::copy(&path, directory.path().join("lb.yaml")).unwrap();
        let loaded = Loader::new(directory.path()).load();
        assert!(loaded.is_ok(), "{}: {:?}", path.display(), loaded.err());
        let bouncers = loaded.unwrap().prefilter.crowdsec.len();
        assert_eq!(bouncers, usize::from(path.ends_with("crowdsec.yaml")), "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 7, "{seen}");
}

fn prefilter(yaml: &str) -> Result<model::DesiredState, Vec<Fault>> {
    let directory = directory(&[("lb.yaml", &format!("prefilter:\n  {yaml}\n"))]);
    Loader::new(directory.path()).load()
}

#[test]
fn filters_and_rate_limits() {
    let state = prefilter(
        "{filters: [bogons, tcp-flags, fragments], rate_limits: [\
         {name: dns, match: {protocol: udp, port: 53}, packets_per_second: 100, key: source/24},\
         {name: all, packets_per_second: 9, burst: 20, key: source/56, action: audit},\
         {name: syn, match: {protocol: tcp, tcp_flags: [syn, \"!ack\"]}, bytes_per_second: 4000}]}",
    )
    .unwrap();
    let model::Prefilter { lists, filters, rate_limits, .. } = &*state.prefilter;
    assert_eq!(*filters, model::Filters { tcp_flags: true, amplification: false, fragments: true });
    assert_eq!((lists[0].name.as_str(), lists[0].prefixes.len()), ("bogons", 23));
    let all = &rate_limits[0];
    assert_eq!((all.burst, all.key, all.protocol, all.port), (20, (32, 56), None, 0));
    assert_eq!(all.action, model::ListAction::Audit);
    let dns = &rate_limits[1];
    assert_eq!((dns.burst, dns.key, dns.port), (100, (24, 64), 53));
    assert_eq!((dns.protocol, dns.rate), (Some(model::Protocol::Udp), model::Rate::Packets(100)));
    let syn = &rate_limits[2];
    assert_eq!((syn.tcp_flags, syn.rate), ((0x12, 2), model::Rate::Bytes(4000)));
    assert_eq!(syn.burst, 4000);
}

#[test]
fn scopes_of_lists() {
    let state = prefilter(
        "{lists: [{name: all, cidrs: [192.0.2.0/24]},\
         {name: some, cidrs: [192.0.2.0/24], interfaces: [eth0, eth1.5], direction: destination,\
          protocol: udp, ports: [53, 8000-8999]}]}",
    )
    .unwrap();
    let [all, some] = &state.prefilter.lists[..] else { panic!() };
    assert!(all.scope.is_all());
    let want = model::Scope {
        interfaces: vec!["eth0".to_owned(), "eth1.5".to_owned()],
        destination: true,
        protocol: Some(model::ScopeProtocol::Udp),
        ports: vec![(53, 53), (8000, 8999)],
    };
    assert_eq!(some.scope, want);
    assert_eq!(some.scope.to_string(), "as destination udp to 53,8000-8999 on eth0,eth1.5");

    for (bounds, message) in [
        ("ports: [53]", "needs a `protocol`"),
        ("ports: [53], protocol: icmp", "needs a `protocol`"),
        ("ports: [0], protocol: tcp", "neither a port nor a range"),
        ("ports: [9-8], protocol: tcp", "neither a port nor a range"),
        ("ports: [65536], protocol: tcp", "neither a port nor a range"),
        ("ports: [1, 2, 3, 4, 5, 6, 7, 8, 9], protocol: tcp", "more ranges of ports"),
        ("interfaces: [\"eth*\"]", "not the name of an interface"),
        ("direction: both", "destination"),
        ("protocol: esp", "icmp"),
    ] {
        let faults =
            prefilter(&format!("{{lists: [{{name: a, cidrs: [192.0.2.0/24], {bounds}}}]}}"));
        let faults = faults.unwrap_err();
        assert!(faults[0].to_string().contains(message), "{bounds}: {faults:?}");
    }
}

#[test]
fn the_syn_proxy_and_what_is_wrong_with_it() {
    let ports = |yaml: &str| prefilter(yaml).map(|state| state.prefilter.syn_proxy.clone());
    let proxy = ports("{syn_proxy: {ports: [443, 8000-8999], stray_acks: drop}}").unwrap();
    assert_eq!((proxy.ports, proxy.drop_stray_acks), (vec![(443, 443), (8000, 8999)], true));
    let proxy = ports("{syn_proxy: {ports: [443]}}").unwrap();
    assert_eq!((proxy.ports, proxy.drop_stray_acks), (vec![(443, 443)], false));
    assert!(ports("{filters: [bogons]}").unwrap().ports.is_empty());
    for (yaml, message) in [
        ("{syn_proxy: {}}", "`ports` is missing"),
        ("{syn_proxy: {ports: []}}", "`ports` is missing"),
        ("{syn_proxy: {ports: [0]}}", "neither a port nor a range"),
        ("{syn_proxy: {ports: [9-8]}}", "neither a port nor a range"),
        ("{syn_proxy: {ports: [80], stray_acks: reset}}", "not a known value of `stray_acks`"),
        ("{syn_proxy: {port: 80}}", "port"),
    ] {
        let faults = prefilter(yaml).unwrap_err();
        assert!(faults[0].to_string().contains(message), "{yaml}: {faults:?}");
    }
}

#[test]
fn what_is_wrong_with_a_rate_limit_is_named() {
    let nine: Vec<String> =
        (0..9).map(|n| format!("{{name: n{n}, packets_per_second: 1}}")).collect();
    let nine = format!("{{rate_limits: [{}]}}", nine.join(", "));
    for (yaml, message) in [
        ("{rate_limits: [{name: a}]}", "`packets_per_second` is missing"),
        ("{rate_limits: [{name: a, packets_per_second: 0}]}", "`packets_per_second` is 0"),
        ("{rate_limits: [{name: a, packets_per_second: 2000000}]}", "is 2000000"),
        ("{rate_limits: [{name: a, packets_per_second: 1, burst: 0}]}", "`burst` is 0"),
        (
            "{rate_limits: [{name: a, packets_per_second: 1, match: {port: 1}}]}",
            "needs a `protocol`",
        ),
        ("{rate_limits: [{name: a, packets_per_second: 1, key: dest/1}]}", "not a key"),
        ("{rate_limits: [{name: a, bytes_per_second: 1}]}", "`bytes_per_second` is 1"),
        ("{rate_limits: [{name: a, packets_per_second: 1, bytes_per_second: 1000}]}", "both"),
        (
            "{rate_limits: [{name: a, packets_per_second: 1, match: {tcp_flags: [syn]}}]}",
            "needs `protocol: tcp`",
        ),
        (
            "{rate_limits: [{name: a, packets_per_second: 1, match: {protocol: tcp, tcp_flags: [x]}}]}",
            "not a TCP flag",
        ),
        (&nine, "there are 9 rate limits"),
        ("{filters: [bogus]}", "bogons"),
        ("{filters: [bogons], lists: [{name: bogons, cidrs: [192.0.2.0/24]}]}", "defined twice"),
    ] {
        let faults = prefilter(yaml).unwrap_err();
        assert!(faults[0].to_string().contains(message), "{yaml}: {faults:?}");
    }
}

#[test]
fn rates_of_samples() {
    let load = |yaml: &str| {
        let directory = directory(&[("lb.yaml", yaml)]);
        Loader::new(directory.path()).load()
    };
    let state = load("node: {samples: {dropped: 0}}\n").unwrap();
    assert_eq!(state.node.samples, model::Samples { dropped: 0, passed: 200 });
    let state = load("node: {samples: {passed: 10000}}\n").unwrap();
    assert_eq!(state.node.samples, model::Samples { dropped: 1000, passed: 10_000 });
    let faults = load("node: {samples: {passed: 10001}}\n").unwrap_err();
    assert!(faults[0].to_string().contains("`node.samples.passed` is 10001"), "{faults:?}");
}
