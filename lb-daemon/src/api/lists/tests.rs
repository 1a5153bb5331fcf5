use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::super::{
    router,
    testing::{live, view},
};
use crate::api::ApiState;

async fn ask(state: &ApiState, method: &str, path: &str, kind: &str, body: &str) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let response = router(state.clone()).oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn json(state: &ApiState, method: &str, path: &str, body: Value) -> (u16, Value) {
    ask(state, method, path, "application/json", &body.to_string()).await
}

async fn get(state: &ApiState, path: &str) -> Value {
    let (status, body) = json(state, "GET", path, Value::Null).await;
    assert_eq!(status, 200, "{body}");
    body
}

const F: &str = "/v1/prefilter/lists/f2b/entries";

#[tokio::test]
async fn one_entry_with_all_it_has() {
    let state = live(view());
    let body = json!({"cidr": "192.0.2.7", "ttl": "1h", "reason": "ssh"});
    let (status, body) = json(&state, "POST", F, body).await;
    assert_eq!((status, &body["added"]), (200, &json!(1)), "{body}");
    let body = get(&state, F).await;
    let entry = &body["items"][0];
    assert_eq!((&entry["cidr"], &entry["reason"]), (&json!("192.0.2.7/32"), &json!("ssh")));
    let left = entry["expires_in_seconds"].as_u64().unwrap();
    assert!((3590..=3600).contains(&left), "{left}");

    let found = get(&state, "/v1/prefilter/lookup?ip=::ffff:192.0.2.7").await;
    assert_eq!((&found["verdict"], &found["list"]), (&json!("drop"), &json!("f2b")));
    assert_eq!(found["hits"][0]["reason"], "ssh");
    let packet = "/v1/prefilter/lookup?ip=192.0.2.7&protocol=tcp&port=22";
    assert_eq!(get(&state, packet).await["verdict"], "drop");
    let other_way = format!("{packet}&destination=true");
    assert_eq!(get(&state, &other_way).await["verdict"], "pass");
    for (wrong, place) in [("protocol=gre", "protocol"), ("port=22", "port"), ("port=x", "port")] {
        let (status, body) =
            json(&state, "GET", &format!("/v1/prefilter/lookup?ip=::1&{wrong}"), Value::Null).await;
        assert!((400..=422).contains(&status), "{wrong}: {status}");
        assert!(body.to_string().contains(place), "{wrong}: {body}");
    }
    let free = get(&state, "/v1/prefilter/lookup?ip=192.0.2.8").await;
    assert_eq!((&free["verdict"], &free["hits"]), (&json!("pass"), &json!([])));

    let gone = format!("{F}?cidr=192.0.2.7/32");
    assert_eq!(json(&state, "DELETE", &gone, Value::Null).await.0, 204);
    assert_eq!(json(&state, "DELETE", &gone, Value::Null).await.0, 404);
    let list = "/v1/prefilter/lists/f2b";
    assert_eq!(json(&state, "PUT", list, json!({"action": "audit"})).await.0, 200);
    assert_eq!(json(&state, "DELETE", list, Value::Null).await.0, 204);
}

#[tokio::test]
async fn a_hundred_thousand_at_once_and_back_in_pages() {
    let state = live(view());
    let text: String =
        (0..100_000u32).map(|n| format!("11.{}.{}.{}\n", n >> 16, n >> 8 & 255, n & 255)).collect();
    let path = format!("{F}?ttl=1d&reason=feed");
    let (status, body) = ask(&state, "POST", &path, "text/plain", &text).await;
    assert_eq!((status, &body["added"]), (200, &json!(100_000)), "{body}");
    let (mut seen, mut after) = (0, String::new());
    loop {
        let page = get(&state, &format!("{F}?limit=30000{after}")).await;
        assert_eq!(page["total"], 100_000);
        seen += page["items"].as_array().unwrap().len();
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(seen, 100_000);
    let plain = get(&state, &format!("{F}?format=plain")).await;
    let lines = plain.as_str().unwrap().lines();
    assert_eq!(lines.clone().count(), 100_000);
    assert_eq!(lines.last(), Some("11.1.134.159/32"));
}

#[tokio::test]
async fn exports_for_nft() {
    let state = live(view());
    let body = json!([{"cidr": "192.0.2.0/24"}, {"cidr": "2001:db8:1::/48"}]);
    assert_eq!(json(&state, "POST", F, body).await.0, 200);
    let text = get(&state, &format!("{F}?format=nft")).await;
    let text = text.as_str().unwrap();
    for part in ["set f2b_ipv4 {", "type ipv6_addr", "      192.0.2.0/24,\n"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_named_and_nothing_is_added() {
    let state = live(view());
    for (body, field) in [
        (json!({"cidr": "192.0.2.7/24"}), "cidr"),
        (json!({"cidr": "::ffff:192.0.2.7"}), "cidr"),
        (json!({"cidr": "192.0.2.7", "ttl": "soon"}), "ttl"),
        (json!([{"cidr": "192.0.2.7"}, {"cidr": "x"}]), "[1].cidr"),
        (json!({"cidr": "192.0.2.7", "reason": "x".repeat(300)}), "reason"),
        (json!({"cidr": "192.0.2.7", "until": 1}), ""),
    ] {
        let (status, answer) = json(&state, "POST", F, body.clone()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}: {answer}");
        assert_eq!(answer["errors"][0]["field"], field, "{body}: {answer}");
    }
    let (status, answer) = ask(&state, "POST", F, "text/plain", "192.0.2.1\nhello\n").await;
    assert_eq!(status, 422);
    assert!(answer["detail"].as_str().unwrap().contains("body:2:1: `hello`"), "{answer}");
    let spaced = "/v1/prefilter/lists/a%20b/entries";
    assert_eq!(json(&state, "POST", spaced, json!({"cidr": "192.0.2.7"})).await.0, 422);
    assert_eq!(json(&state, "GET", F, Value::Null).await.0, 404);
    let format = "/v1/prefilter/lookup?ip=nobody";
    assert_eq!(json(&state, "GET", format, Value::Null).await.0, 422);
}

#[tokio::test]
async fn a_hundred_thousand_bans_arrive_line_by_line() {
    let state = live(view());
    let line = |n: u32| {
        let [_, b, c, d] = n.to_be_bytes();
        format!(
            "{{\"cidr\": \"11.{b}.{c}.{d}\", \"ttl\": \"{}s\", \"reason\": \"r{}\"}}\n",
            60 + n % 9,
            n % 7
        )
    };
    let text: String = (0..100_000).map(line).collect();
    // Pieces that end anywhere, as they come from a network.
    let pieces: Vec<Result<Vec<u8>, std::io::Error>> =
        text.as_bytes().chunks(1013).map(|piece| Ok(piece.to_vec())).collect();
    let began = std::time::Instant::now();
    let body = Body::from_stream(futures::stream::iter(pieces));
    let request = Request::post(F).header("content-type", "application/x-ndjson").body(body);
    let response = router(state.clone()).oneshot(request.unwrap()).await.unwrap();
    let took = began.elapsed();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["added"], 100_000);
    println!(
        "100,000 bans in one request of {} bytes: {took:?}, without the kernel's part",
        text.len()
    );
    let page = get(&state, &format!("{F}?limit=2")).await;
    assert_eq!((&page["total"], &page["items"][1]["reason"]), (&json!(100_000), &json!("r1")));
}

#[tokio::test]
async fn what_is_wrong_refuses_all_or_is_left_out() {
    let state = live(view());
    let lines =
        "{\"cidr\": \"192.0.2.1\"}\n\n{\"cidr\": \"x\"}\nrubbish\n{\"cidr\": \"192.0.2.2\"}";
    for (kind, body) in
        [("application/x-ndjson", lines), ("text/plain", "192.0.2.1\n\nx\ny\n192.0.2.2")]
    {
        let (status, answer) = ask(&state, "POST", F, kind, body).await;
        assert_eq!(status, 422, "{answer}");
        assert_eq!(answer["errors"].as_array().unwrap().len(), 2, "{answer}");
        assert_eq!(json(&state, "GET", F, Value::Null).await.0, 404, "nothing is added");
    }
    let (status, answer) =
        ask(&state, "POST", &format!("{F}?on_error=skip"), "application/x-ndjson", lines).await;
    assert_eq!(
        (status, &answer["added"], &answer["skipped"]),
        (200, &json!(2), &json!(2)),
        "{answer}"
    );
    let errors = answer["errors"].as_array().unwrap();
    assert!(errors[0]["message"].as_str().unwrap().starts_with("line 3: "), "{answer}");
    assert!(errors[1]["message"].as_str().unwrap().starts_with("line 4: "), "{answer}");
    let odd = format!("{F}?on_error=maybe");
    assert_eq!(ask(&state, "POST", &odd, "text/plain", "192.0.2.1").await.0, 422);

    let remove = "/v1/prefilter/lists/f2b/remove";
    let body = json!([{"cidr": "192.0.2.1"}, {"cidr": "192.0.2.9"}]);
    let (status, answer) = json(&state, "POST", remove, body).await;
    let (gone, missing) = (json!(["192.0.2.1/32"]), json!(["192.0.2.9/32"]));
    assert_eq!((status, &answer["removed"], &answer["missing"]), (200, &gone, &missing));
    assert_eq!(get(&state, F).await["total"], 1);
}

#[tokio::test]
async fn a_plan_says_what_would_have_been_dropped() {
    use std::time::Duration;

    use crate::events::Sample;

    let view = view();
    for (source, weight) in [("198.51.100.1", 5), ("198.51.100.2", 30), ("192.0.2.1", 100)] {
        let sample = Sample { weight, ..Sample::passed_from(source) };
        view.samples.add(sample, Duration::from_secs(1));
    }
    let state = live(view);
    let body = json!({"cidr": "198.51.100.0/24"});
    let (status, answer) = json(&state, "POST", "/v1/prefilter/lists/f2b/plan", body).await;
    assert_eq!(status, 200, "{answer}");
    let told = [&answer["passed_packets"], &answer["would_drop_packets"], &answer["samples"]];
    assert_eq!(told, [&json!(135), &json!(35), &json!(3)]);
    let want = json!([
        {"source": "198.51.100.2", "packets": 30},
        {"source": "198.51.100.1", "packets": 5}
    ]);
    assert_eq!(answer["would_drop"], want);
}

#[tokio::test]
async fn a_plan_is_about_the_packets_that_it_is_asked_for() {
    use std::time::Duration;

    use crate::events::{Flow, Sample};

    let view = view();
    for (port, weight) in [(22, 5), (80, 30)] {
        let of = Sample::passed_from("198.51.100.1");
        let flow = of.flow.map(|flow| Flow { ports: Some((1000, port)), ..flow });
        view.samples.add(Sample { weight, flow, ..of }, Duration::from_secs(1));
    }
    let state = live(view);
    let body = json!([{"cidr": "198.51.100.0/24"}, {"cidr": "10.0.0.0/16"}]);
    let plan = |query: &str| format!("/v1/prefilter/lists/f2b/plan?{query}");
    let ask = async |query: &str| json(&state, "POST", &plan(query), body.clone()).await;
    let told = |answer: &Value| {
        let part = |name: &str| answer[name].clone();
        json!([part("action"), part("scope"), part("would_drop_packets"), part("needs_force")])
    };
    let (status, answer) = ask("protocol=tcp&ports=20-30").await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(told(&answer), json!(["drop", "tcp to 20-30", 5, true]));
    assert_eq!(told(&ask("").await.1), json!(["drop", null, 35, true]));
    assert_eq!(told(&ask("action=audit").await.1), json!(["audit", null, 35, false]));
    assert_eq!(told(&ask("protocol=udp").await.1)[2], 0);
    assert_eq!(told(&ask("interfaces=eth1").await.1)[2], 0);
    assert_eq!(ask("ports=80").await.0, 422);
    assert_eq!(json(&state, "GET", F, Value::Null).await.0, 404, "nothing is made");

    // A list that is there is about what it is about, and another scope is refused as for adding.
    let narrow = json!({"cidr": "198.51.100.9"});
    assert_eq!(json(&state, "POST", &format!("{F}?protocol=tcp&ports=80"), narrow).await.0, 200);
    assert_eq!(told(&ask("").await.1), json!(["drop", "tcp to 80", 30, true]));
    let (status, answer) = ask("protocol=tcp&ports=22").await;
    assert!(status == 409 && answer["detail"].as_str().unwrap().contains("tcp to 80"), "{answer}");
}

/// The view has backends at 10.0.1.11 and 2001:db8::12.
#[tokio::test]
async fn what_would_cut_something_off_needs_force() {
    let state = live(view());
    let wide = json!([{"cidr": "10.0.0.0/16"}, {"cidr": "198.51.100.0/24"}]);
    let plan = "/v1/prefilter/lists/f2b/plan";
    let (status, answer) = json(&state, "POST", plan, wide.clone()).await;
    assert_eq!(
        (status, &answer["new"], &answer["addresses_v4"]),
        (200, &json!(2), &json!(65536 + 256))
    );
    assert_eq!(
        (&answer["needs_force"], &answer["covered"][0]["address"]),
        (&json!(true), &json!("10.0.1.11"))
    );
    assert_eq!(answer["covered"][0]["roles"], json!(["a backend of api", "a backend of web"]));

    let (status, answer) = json(&state, "POST", F, wide.clone()).await;
    assert_eq!((status, &answer["type"]), (409, &json!("urn:lb:problem:cuts-off")), "{answer}");
    let detail = answer["detail"].as_str().unwrap();
    assert!(detail.contains("10.0.1.11") && detail.contains("--force"), "{answer}");
    assert_eq!(json(&state, "GET", F, Value::Null).await.0, 404, "nothing is added");
    let narrow = json!({"cidr": "198.51.100.7"});
    assert_eq!(json(&state, "POST", F, narrow.clone()).await.0, 200);

    // From there the caller is logged in.
    let session = |body: &Value| {
        let request = Request::post("/v1/prefilter/lists/other/entries");
        let request = request.header("content-type", "application/json");
        let request = request.header("lb-session", "198.51.100.8");
        request.body(Body::from(body.to_string())).unwrap()
    };
    let net = json!({"cidr": "198.51.100.0/24"});
    let response = router(state.clone()).oneshot(session(&net)).await.unwrap();
    assert_eq!(response.status(), 409);
    let response = router(state.clone()).oneshot(session(&narrow)).await.unwrap();
    assert_eq!(response.status(), 200);

    // A list that only counts cuts nothing off, until it drops.
    let watch = "/v1/prefilter/lists/watch-it";
    assert_eq!(json(&state, "PUT", watch, json!({"action": "audit"})).await.0, 200);
    assert_eq!(json(&state, "POST", &format!("{watch}/entries"), wide.clone()).await.0, 200);
    assert_eq!(json(&state, "PUT", watch, json!({"action": "drop"})).await.0, 409);
    assert_eq!(
        json(&state, "PUT", &format!("{watch}?force=true"), json!({"action": "drop"})).await.0,
        200
    );
    // They are dropped already: it gets no worse.
    assert_eq!(json(&state, "POST", F, wide).await.0, 200);

    for confirm in ["0s", "2h", "soon"] {
        let path = format!("{F}?confirm={confirm}");
        assert_eq!(json(&state, "POST", &path, narrow.clone()).await.0, 422, "{confirm}");
    }
}

#[tokio::test]
async fn rate_limits_with_what_was_beyond_them() {
    let body = get(&live(view()), "/v1/prefilter/rate-limits").await;
    let limit = &body["items"][0];
    assert_eq!((&limit["name"], &limit["port"]), (&json!("per-source"), &json!(53)));
    assert_eq!((&limit["packets"], &limit["key_v6"]), (&json!(4_000_002), &json!(64)));
}

#[tokio::test]
async fn a_list_is_made_for_some_packets() {
    let state = live(view());
    let path = format!("{F}?protocol=tcp&ports=8000-8999,80&interfaces=eth1,eth0&action=audit");
    let entry = json!({"cidr": "192.0.2.7", "ttl": "1h"});
    assert_eq!(json(&state, "POST", &path, entry).await.0, 200);
    let (status, _) = ask(&state, "POST", F, "text/plain", "192.0.2.8\n").await;
    assert_eq!(status, 200);
    let scope = "tcp to 80,8000-8999 on eth0,eth1";
    let page = get(&state, F).await;
    assert_eq!((&page["scope"], &page["action"]), (&json!(scope), &json!("audit")));
    assert_eq!(page["total"], 2);
    let spec = json!({
        "action": "audit", "direction": "source", "protocol": "tcp", "ports": ["80", "8000-8999"],
        "interfaces": ["eth0", "eth1"]
    });
    assert_eq!(page["spec"], spec);
    // What it says makes the same list.
    assert_eq!(json(&state, "PUT", "/v1/prefilter/lists/again", spec.clone()).await.0, 200);
    assert_eq!(get(&state, "/v1/prefilter/lists/again/entries").await["spec"], spec);
    let nft = get(&state, &format!("{F}?format=nft")).await;
    let rule =
        "iifname { \"eth0\", \"eth1\" } ip saddr @f2b_ipv4 tcp dport { 80, 8000-8999 } counter\n";
    assert!(nft.as_str().unwrap().contains(rule), "{nft}");
    let (_, plain) = ask(&state, "GET", &format!("{F}?format=plain"), "", "").await;
    assert_eq!(plain, json!(format!("# only packets {scope}\n192.0.2.7/32\n192.0.2.8/32\n")));
    let found = get(&state, "/v1/prefilter/lookup?ip=192.0.2.8").await;
    assert_eq!(
        (&found["hits"][0]["scope"], &found["hits"][0]["action"]),
        (&json!(scope), &json!("audit"))
    );

    for (wrong, field) in [
        ("ports=80", "ports"),
        ("protocol=gre", "protocol"),
        ("protocol=tcp&ports=90-80", "ports"),
        ("protocol=icmp&ports=8", "ports"),
        ("direction=up", "direction"),
        ("interfaces=eth*", "interfaces"),
        ("action=pass", "action"),
    ] {
        let path = format!("/v1/prefilter/lists/other/entries?{wrong}");
        let (status, body) = json(&state, "POST", &path, json!({"cidr": "192.0.2.7"})).await;
        assert_eq!(status, 422, "{wrong}: {body}");
        let errors = body["errors"][0]["field"].as_str().unwrap_or_default().to_owned();
        assert!(errors.starts_with(field), "{wrong}: {body}");
    }
    let spec =
        json!({"action": "drop", "protocol": "udp", "ports": ["53"], "direction": "destination"});
    assert_eq!(json(&state, "PUT", "/v1/prefilter/lists/made", spec).await.0, 200);
    let page = get(&state, "/v1/prefilter/lists/made/entries").await;
    assert_eq!(page["scope"], "as destination udp to 53");
}
