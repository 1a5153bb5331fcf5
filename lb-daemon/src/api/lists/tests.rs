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
        (0..100_000u32).map(|n| format!("10.{}.{}.{}\n", n >> 16, n >> 8 & 255, n & 255)).collect();
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
    assert_eq!(lines.last(), Some("10.1.134.159/32"));
}

#[tokio::test]
async fn exports_for_nft() {
    let state = live(view());
    let body = json!([{"cidr": "192.0.2.0/24"}, {"cidr": "2001:db8::/48"}]);
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
async fn rate_limits_with_what_was_beyond_them() {
    let body = get(&live(view()), "/v1/prefilter/rate-limits").await;
    let limit = &body["items"][0];
    assert_eq!((&limit["name"], &limit["port"]), (&json!("per-source"), &json!(53)));
    assert_eq!((&limit["packets"], &limit["key_v6"]), (&json!(4_000_002), &json!(64)));
}
