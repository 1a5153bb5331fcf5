//! The lab itself, without any daemon: what the other tests rely on.

use anyhow::ensure;
use lb_tests::{
    capture::{Capture, Checksums},
    http,
    lab::{Lab, WEBS, at, web_v4, web_v6},
    web,
};

/// Servers answer clients directly, on both families, with right checksums.
#[test]
fn servers_answer_directly() -> anyhow::Result<()> {
    let lab = Lab::start()?;
    let client = lab.host("client")?;
    let capture = Capture::start(client, "eth0", "tcp", &lab.directory().join("client.pcap"))?;
    for (n, name) in (1..).zip(WEBS) {
        for address in [web_v4(n), web_v6(n)] {
            let tally = http::requests(client, at(&address, web::PORT), 3)?;
            assert_eq!(tally.failures, Vec::<String>::new());
            assert_eq!(tally.answers.get(name), Some(&3), "{address}: {tally:?}");
        }
    }
    capture.until(|packets| {
        let sums = Checksums::of(packets);
        ensure!(sums.right > 100, "{sums:?}");
        Ok(())
    })?;
    assert_eq!(Checksums::of(&capture.packets()?).wrong, Vec::<String>::new());
    Ok(())
}

/// `/healthz` can be made to fail, and a killed server comes back.
#[test]
fn servers_fail_when_told() -> anyhow::Result<()> {
    let mut lab = Lab::start()?;
    let health = at(&web_v4(1), web::HEALTH_PORT);
    let client = lab.host("client")?.clone();
    let get = || client.enter(|| http::get(health, "/healthz"));

    assert_eq!(get()??, b"ok\n");
    lab.web("web-1")?.set_healthy(false)?;
    assert!(format!("{:#}", get()?.unwrap_err()).contains("503"));
    lab.web("web-1")?.set_healthy(true)?;
    assert_eq!(get()??, b"ok\n");

    lab.web("web-1")?.kill()?;
    assert!(get()?.is_err());
    lab.web("web-1")?.resume()?;
    assert_eq!(get()??, b"ok\n");
    Ok(())
}
