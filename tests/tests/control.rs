//! What operators do: `lbctl`, the API's own objects, and faults of every kind in what is given.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::ensure;
use lb_tests::{
    daemon::binary,
    edge::{self, Edge, L2, PATIENCE, expect_all_answer, expect_answered},
    eventually,
    lab::{L2_V4, SPARE_V4},
};

/// Arguments for a service at the spare address.
const SET: &str = "service set spare --address 203.0.113.30 --port 80/tcp --forwarding l2 \
                   --backend web-1=192.0.2.11 --backend web-2=192.0.2.12 --backend web-3=192.0.2.13";

fn lbctl(edge: &Edge, line: &str) -> anyhow::Result<String> {
    edge.lb.lbctl(&line.split_whitespace().collect::<Vec<_>>())
}

/// `lbctl` refuses, with status 1 and these words.
#[track_caller]
fn refused(edge: &Edge, line: &str, words: &[&str]) {
    let error = format!("{:#}", lbctl(edge, line).expect_err("it is refused"));
    assert!(error.contains("exit status: 1"), "{error}");
    for word in words {
        assert!(error.contains(word), "{word} is not in: {error}");
    }
}

/// A service made with `lbctl` serves, is listed, can be changed, and is there after a crash.
#[test]
fn a_service_of_the_api_survives_a_crash() -> anyhow::Result<()> {
    let mut edge = Edge::start(L2)?;
    lbctl(&edge, SET)?;
    eventually(PATIENCE, || edge.lb.ways_known())?;
    expect_all_answer(&edge.requests(SPARE_V4, 60)?);
    assert!(lbctl(&edge, "service list")?.contains(SPARE_V4));

    lbctl(&edge, "backend maintenance spare web-3")?;
    lbctl(&edge, "backend set-weight spare web-2 0")?;
    edge.lb.kill9()?;
    edge.lb.resume()?;
    let spare = edge.lb.get("/v1/services/spare")?;
    assert_eq!(spare["source"], "api");
    assert_eq!(spare["spec"]["backends"][1]["weight"], 0);
    assert_eq!(spare["spec"]["backends"][2]["state"], "maintenance");
    let tally = edge.requests(SPARE_V4, 30)?;
    expect_answered(&tally);
    assert_eq!(tally.answers.keys().collect::<Vec<_>>(), ["web-1"]);

    // A file that takes its name or its address is refused as a whole; what is in force stays.
    let mut specs = L2();
    specs.push(edge::spec("other", SPARE_V4, "l2", false));
    edge.lb.write_config(&edge::yaml(&specs))?;
    eventually(PATIENCE, || {
        let faults = edge.lb.status()?["config"]["faults"].to_string();
        ensure!(faults.contains("spare") && faults.contains("other"), "{faults}");
        Ok(())
    })?;
    expect_answered(&edge.requests(SPARE_V4, 10)?);

    // As soon as nothing contradicts the file any more, it is in force.
    lbctl(&edge, "service delete spare")?;
    eventually(PATIENCE, || edge.lb.get("/v1/services/other").map(drop))?;
    assert_eq!(edge.lb.status()?["config"]["faults"], serde_json::json!([]));
    refused(&edge, "service get spare", &["there is no service named \"spare\""]);
    edge.lb.kill9()?;
    edge.lb.resume()?;
    refused(&edge, "service get spare", &["there is no service named \"spare\""]);
    Ok(())
}

/// A file that took the name of a service of the API while no daemon ran wins at the start; the one of
/// the API is named, and can be deleted.
#[test]
fn files_win_at_a_start() -> anyhow::Result<()> {
    let mut edge = Edge::start(L2)?;
    lbctl(&edge, SET)?;
    edge.lb.stop()?;
    let mut specs = L2();
    specs.push(edge::Spec { webs: vec![2], ..edge::spec("spare", SPARE_V4, "l2", false) });
    edge.lb.write_config(&edge::yaml(&specs))?;
    edge.lb.resume()?;
    let spare = edge.lb.get("/v1/services/spare")?;
    assert_eq!(
        (&spare["source"], spare["backends"].as_array().map(Vec::len)),
        (&"file".into(), Some(1))
    );
    let faults = edge.lb.status()?["config"]["faults"].to_string();
    assert!(faults.contains("spare"), "{faults}");
    expect_answered(&edge.requests(SPARE_V4, 10)?);

    lbctl(&edge, "service delete spare")?;
    eventually(PATIENCE, || {
        let faults = edge.lb.status()?["config"]["faults"].clone();
        ensure!(faults.as_array().is_some_and(Vec::is_empty), "{faults}");
        Ok(())
    })?;
    refused(&edge, "service delete spare", &["read-only"]);
    expect_answered(&edge.requests(SPARE_V4, 10)?);
    Ok(())
}

/// Every refusal says what is wrong, and changes nothing.
#[test]
fn lbctl_refuses_with_status_1() -> anyhow::Result<()> {
    let edge = Edge::start(L2)?;
    let before = edge.lb.get("/v1/services")?["items"].as_array().map(Vec::len);
    refused(&edge, "backend drain l2-v4 web-1", &["l2-v4", "lb.yaml:", "read-only"]);
    refused(&edge, "service delete l2-v4", &["read-only"]);
    refused(&edge, "service delete nope", &["nope"]);
    let taken = SET.replace("203.0.113.30", L2_V4);
    refused(&edge, &taken, &["addresses[0]", "l2-v4", "spare"]);
    refused(&edge, &SET.replace("forwarding l2", "forwarding l3"), &["forwarding", "l2, ipip"]);
    refused(&edge, &SET.replace("80/tcp", "80/dccp"), &["protocol"]);
    refused(&edge, &format!("{SET} --if-version 7"), &["version"]);
    assert_eq!(edge.lb.get("/v1/services")?["items"].as_array().map(Vec::len), before);

    lbctl(&edge, SET)?;
    refused(&edge, &format!("{SET} --create"), &["exists already"]);
    lbctl(&edge, "service delete spare")?;
    Ok(())
}

/// `lbctl config diff`: its status and what it prints, of a configuration in a file of its own.
fn diff(edge: &Edge, text: &str, more: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let place = tempfile::tempdir()?;
    fs::write(place.path().join("list.txt"), "198.51.100.0/24\n198.51.101.0/24\n")?;
    let file = place.path().join("new.yaml");
    fs::write(&file, text)?;
    let mut command = Command::new(binary("lbctl")?);
    command.args(["--api", &edge.lb.api(), "config", "diff"]).arg(&file).args(more);
    let done = command.output()?;
    let said = [done.stdout, done.stderr].map(|t| String::from_utf8_lossy(&t).into_owned());
    Ok((done.status.code(), said.concat()))
}

/// `lbctl config diff` says what a file would change, and the daemon goes on with what it has.
#[test]
fn a_file_is_compared_with_what_is_in_force() -> anyhow::Result<()> {
    let edge = Edge::start(L2)?;
    let text = fs::read_to_string(edge.lb.config())?;
    let generation = |edge: &Edge| anyhow::Ok(edge.lb.status()?["config"]["generation"].clone());
    // What the API has set is in force too, and stays.
    lbctl(&edge, SET)?;
    let before = generation(&edge)?;
    let (status, said) = diff(&edge, &format!("# only a comment\n{text}"), &[])?;
    assert_eq!((status, said.as_str()), (Some(0), "no difference\n"));

    let new = text.replacen("address: \"192.0.2.13\"", "address: \"192.0.2.13\", weight: 0", 1);
    let new = new.replacen("  lists:\n", "  lists:\n    - {name: of-file, file: list.txt}\n", 1);
    let (status, said) = diff(&edge, &new, &[])?;
    assert_eq!(status, Some(1), "{said}");
    for line in [
        "~ service l2-v4\n    ~ ring: ",
        "~ backend web-3 of l2-v4\n    ~ weight: 100 -> 0\n",
        "+ list of-file\n",
        "    ~ prefixes: 2 come, 0 go\n        + 198.51.100.0/24\n",
    ] {
        assert!(said.contains(line), "no {line:?} in {said}");
    }
    assert!(!said.contains('\x1b') && !said.contains("spare"), "{said}");
    let (status, said) = diff(&edge, &new, &["-o", "json"])?;
    let json: serde_json::Value = serde_json::from_str(&said)?;
    assert_eq!((status, &json["differs"]), (Some(1), &true.into()));
    let backend = &json["changes"][1];
    assert_eq!((&backend["kind"], &backend["service"]), (&"backend".into(), &"l2-v4".into()));
    assert_eq!(
        (&backend["fields"][0]["before"], &backend["fields"][0]["after"]),
        (&100.into(), &0.into())
    );

    // None of that is in force.
    assert_eq!(generation(&edge)?, before);

    // The order of lists, and what is not fetched yet.
    let lists = "  lists:\n    - {name: a, cidrs: [198.51.100.0/24]}\n    - {name: b, cidrs: [198.51.100.1]}\n";
    let two = text.replacen("  lists:\n", lists, 1);
    edge.lb.change_config(&two)?;
    let fetched = "\n    - {name: c, url: \"http://192.0.2.254/c\"}\n";
    let lines: Vec<&str> = lists.lines().collect();
    let turned = format!("{}\n{}\n{}{fetched}", lines[0], lines[2], lines[1]);
    let (status, said) = diff(&edge, &two.replacen(lists, &turned, 1), &[])?;
    ensure!(
        status == Some(1) && said.contains("~ list a\n    ~ order: first -> after b\n"),
        "{said}"
    );
    ensure!(said.contains("+ prefixes: not known until the list is fetched\n"), "{said}");
    edge.lb.change_config(&text)?;
    let before = generation(&edge)?;

    // Faults with their place, and what would be refused: neither is a difference.
    let (status, said) = diff(&edge, &text.replacen("forwarding:", "forwardign:", 1), &[])?;
    assert!(status == Some(2) && said.contains("new.yaml:"), "{status:?} {said}");
    let taken = text.replacen(L2_V4, SPARE_V4, 1);
    let (status, said) = diff(&edge, &taken, &[])?;
    assert!(status == Some(2) && said.contains("would refuse") && said.contains("spare"), "{said}");
    assert_eq!(generation(&edge)?, before);
    expect_all_answer(&edge.requests(L2_V4, 60)?);
    Ok(())
}

/// `lbctl cleanup` keeps its hands off what a running daemon uses.
#[test]
fn cleanup_refuses_while_a_daemon_runs() -> anyhow::Result<()> {
    let edge = Edge::start(L2)?;
    let before = edge.lb.loaded()?;
    let pins = edge.lb.bpffs().to_string_lossy().into_owned();
    refused(&edge, &format!("cleanup --bpffs {pins}"), &["a daemon uses", "stop it first"]);
    assert_eq!(edge.lb.loaded()?, before);
    let other = edge.lab.directory().to_string_lossy().into_owned();
    refused(&edge, &format!("cleanup --bpffs {other}"), &["not on a BPF file system"]);
    Ok(())
}

/// Runs `lb-daemon --check` and gives its status and what it says.
fn check(path: &Path, wrapper: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let program = binary("lb-daemon")?;
    let mut words = wrapper.iter().map(std::ffi::OsStr::new).chain([program.as_os_str()]);
    let mut command = Command::new(words.next().unwrap_or(program.as_os_str()));
    let done = command.args(words).arg("--check").arg("--config").arg(path).output()?;
    let text = [done.stdout, done.stderr].map(|t| String::from_utf8_lossy(&t).into_owned());
    Ok((done.status.code(), text.concat()))
}

/// Each kind of bad input: where it is, what is wrong, what is allowed.
#[test]
fn bad_input_is_named_with_its_place() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("lb.yaml");
    let good = edge::yaml(&L2());
    fs::write(&file, &good)?;
    assert_eq!(check(&file, &[])?.0, Some(0));
    assert_eq!(check(directory.path(), &[])?.0, Some(0));

    let line = |text: &str, words: &str| {
        1 + text.lines().position(|line| line.contains(words)).expect("it is there")
    };
    let twice = good.replace("l2-v6", "l2-v4");
    let same_vip = good.replace("2001:db8:113::20", L2_V4).replace("2001:db8:2::1", "192.0.2.1");
    let families = good.replace("address: \"192.0.2.11\"", "address: \"2001:db8:2::11\"");
    for (name, text, place, words) in [
        (
            "an unknown field",
            good.replacen("forwarding:", "forwardign:", 1),
            "forwardign",
            &["forwardign", "did you mean `forwarding`"][..],
        ),
        (
            "a bad CIDR",
            good.replace("192.0.2.66/32", "192.0.2.66/33"),
            "/33",
            &["192.0.2.66/33", "0 to 32"],
        ),
        ("a name twice", twice.clone(), "", &["l2-v4", "twice"]),
        ("a VIP and port twice", same_vip.clone(), "", &[L2_V4, "80"]),
        (
            "a backend of the other family",
            families.clone(),
            "2001:db8:2::11",
            &["2001:db8:2::11", "l2"],
        ),
        (
            "what is not there yet",
            format!("{good}kubernetes: {{enabled: true}}\n"),
            "kubernetes:",
            &["kubernetes", "not"],
        ),
    ] {
        fs::write(&file, &text)?;
        let (status, said) = check(&file, &[])?;
        assert_eq!(status, Some(1), "{name}: {said}");
        let place =
            if place.is_empty() { String::new() } else { format!("{}:", line(&text, place)) };
        assert!(said.contains(&format!("lb.yaml:{place}")), "{name}: no {place} in {said}");
        for word in words {
            assert!(said.contains(word), "{name}: {word} is not in {said}");
        }
    }

    let (status, said) = check(&directory.path().join("nothing.yaml"), &[])?;
    assert!(status == Some(1) && said.contains("nothing.yaml"), "{said}");
    // Root without the capability to read everything is a user like any other.
    fs::write(&file, &good)?;
    let closed = directory.path().join("closed");
    fs::create_dir(&closed)?;
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000))?;
    let plain = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"];
    let (status, said) = check(&closed, &plain)?;
    assert!(status == Some(1) && said.contains("closed") && said.contains("ermission"), "{said}");
    Ok(())
}

/// A configuration that vanishes leaves the last good state, and the fault stands in the status.
#[test]
fn a_file_that_vanishes_changes_nothing() -> anyhow::Result<()> {
    let edge = Edge::start(L2)?;
    let text = fs::read_to_string(edge.lb.config())?;
    fs::remove_file(edge.lb.config())?;
    eventually(PATIENCE, || {
        let faults = edge.lb.status()?["config"]["faults"].to_string();
        ensure!(faults.contains("lb.yaml"), "{faults}");
        Ok(())
    })?;
    assert!(edge.lb.metric("lb_config_faults")? >= 1.0);
    expect_all_answer(&edge.requests(L2_V4, 60)?);
    edge.lb.write_config(&text)?;
    eventually(PATIENCE, || {
        let faults = edge.lb.status()?["config"]["faults"].clone();
        ensure!(faults.as_array().is_some_and(Vec::is_empty), "{faults}");
        Ok(())
    })
}

/// The examples are good as they stand, beside the directory of lists that one of them wants.
#[test]
fn the_examples_are_good() -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    fs::create_dir(place.path().join("lists"))?;
    let copy = place.path().join("lb.yaml");
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    let mut seen = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            fs::copy(&path, &copy)?;
            let (status, said) = check(&copy, &[])?;
            assert_eq!(status, Some(0), "{}: {said}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 3, "{seen}");
    Ok(())
}
