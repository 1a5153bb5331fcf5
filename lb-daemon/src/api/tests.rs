use std::collections::BTreeSet;

use axum::{
    body::Body,
    http::{Request, Response, StatusCode, header},
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{
    openapi, problem, router,
    testing::{live, read_only, view},
};

struct Answer {
    status: StatusCode,
    etag: Option<String>,
    allow: Option<String>,
    body: Value,
}

async fn send(state: &super::ApiState, request: Request<Body>) -> Answer {
    let response: Response<Body> = router(state.clone()).oneshot(request).await.unwrap();
    let status = response.status();
    let header = |name| {
        response.headers().get(name).map(|v: &header::HeaderValue| v.to_str().unwrap().to_owned())
    };
    let (etag, allow) = (header(header::ETAG), header(header::ALLOW));
    let media_type = header(header::CONTENT_TYPE).unwrap_or_default();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    if status.as_u16() >= 400 {
        assert_eq!(media_type, problem::MEDIA_TYPE);
        let problem: problem::Problem = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(problem.status, status.as_u16());
        assert!(problem.kind.starts_with("urn:lb:problem:"));
        assert!(!problem.title.is_empty() && !problem.detail.is_empty());
    }
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8(bytes.to_vec()).unwrap()));
    Answer { status, etag, allow, body }
}

async fn get(state: &super::ApiState, path: &str) -> Answer {
    send(state, Request::get(path).body(Body::empty()).unwrap()).await
}

fn request(method: &str, path: &str, if_match: Option<&str>, body: &Value) -> Request<Body> {
    let mut request =
        Request::builder().method(method).uri(path).header("content-type", "application/json");
    if let Some(tag) = if_match {
        request = request.header("if-match", tag);
    }
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    request.body(body).unwrap()
}

#[tokio::test]
async fn health_and_readiness() {
    let state = read_only(view());
    assert_eq!(get(&state, "/healthz").await.status, 200);
    let answer = get(&state, "/readyz").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.body["field"], "interfaces.eth1");
    assert!(answer.body["detail"].as_str().unwrap().contains("xdp_mode: generic"));

    let mut good = view();
    good.interfaces.truncate(1);
    assert_eq!(get(&read_only(good.clone()), "/readyz").await.status, 200);

    good.config.last_success = None;
    let answer = get(&read_only(good.clone()), "/readyz").await;
    assert_eq!((answer.status.as_u16(), &answer.body["field"]), (503, &json!("config")));
    good.adopted = true;
    assert_eq!(get(&read_only(good), "/readyz").await.status, 200, "adopted tables forward");
}

#[tokio::test]
async fn connections_by_what_they_are() {
    let state = read_only(view());
    let all = get(&state, "/v1/conntrack").await.body;
    assert_eq!(all["total"], 2);
    let first = &all["items"][0];
    assert_eq!(
        [&first["service"], &first["client"], &first["nat"], &first["state"]],
        ["web", "[2001:db8:9::7]:40000", "[2001:db8:f::1]:2000", "established"]
    );
    assert_eq!(all["items"][1]["backend_name"], "web-1");
    for (query, found) in [
        ("service=web", 1),
        ("service=api&protocol=udp", 1),
        ("service=api&protocol=tcp", 0),
        ("address=2001:db8:f::1", 1),
        ("address=10.0.1.11&port=50000", 1),
        ("port=443", 2),
        ("port=8443", 1),
        ("family=ipv4", 1),
        ("state=moved&table=flows", 1),
        ("state=moved&table=nat", 0),
    ] {
        let body = get(&state, &format!("/v1/conntrack?{query}")).await.body;
        assert_eq!(body["total"], found, "{query}");
        assert_eq!(body["items"].as_array().unwrap().len(), found, "{query}");
    }
    let bounded = get(&state, "/v1/conntrack?limit=1").await.body;
    assert_eq!((&bounded["total"], bounded["items"].as_array().unwrap().len()), (&json!(2), 1));
    for (query, status) in [
        ("service=none", 404),
        ("state=bored", 422),
        ("family=5", 422),
        ("protocol=icmp", 422),
        ("limit=100001", 422),
        ("port=x", 400),
        ("colour=red", 400),
    ] {
        let answer = get(&state, &format!("/v1/conntrack?{query}")).await;
        assert_eq!(answer.status.as_u16(), status, "{query}");
    }
}

#[tokio::test]
async fn a_connection_by_either_side_and_direction() {
    let state = read_only(view());
    let (client, vip) = ("[2001:db8:9::7]:40000", "[2001:db8::10]:443");
    let (nat, web) = ("[2001:db8:f::1]:2000", "[2001:db8::12]:8443");
    for (source, destination) in [(client, vip), (vip, client), (nat, web), (web, nat)] {
        let query = |protocol| {
            format!(
                "/v1/conntrack/entry?protocol={protocol}&source={source}&destination={destination}"
            )
        };
        assert_eq!(get(&state, &query("tcp")).await.body["client"], client);
        assert_eq!(get(&state, &query("udp")).await.status, 404);
    }
    let mixed = format!("/v1/conntrack/entry?protocol=tcp&source={client}&destination={web}");
    assert_eq!(get(&state, &mixed).await.status, 404);
}

#[tokio::test]
async fn removing_connections_wants_a_condition() {
    let state = read_only(view());
    for (query, status, removed) in [
        ("", 422, None),
        ("?all=true", 200, Some(2)),
        ("?service=web", 200, Some(1)),
        ("?service=web&all=true", 422, None),
        ("?service=web&limit=1", 422, None),
    ] {
        let path = format!("/v1/conntrack{query}");
        let answer = send(&state, request("DELETE", &path, None, &Value::Null)).await;
        assert_eq!(answer.status.as_u16(), status, "{query}");
        assert_eq!(answer.body["removed"].as_u64(), removed, "{query}");
    }
}

#[tokio::test]
async fn ports_that_run_out_are_a_warning() {
    let body = get(&read_only(view()), "/v1/status").await.body;
    let warning = body["warnings"][0].as_str().unwrap();
    assert!(warning.contains("2 packets") && warning.contains("4 of 8"), "{warning}");
    let metrics = get(&read_only(view()), "/metrics").await.body;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("\nlb_nat_entries 4\n"), "{metrics}");
    assert!(metrics.contains("\nlb_nat_capacity_entries 8\n"));
}

#[tokio::test]
async fn status_is_one_page() {
    let body = get(&read_only(view()), "/v1/status").await.body;
    assert_eq!(body["node"], "edge-1");
    assert_eq!(body["ready"], false);
    assert_eq!(body["config"]["generation"], 42);
    assert_eq!(body["config"]["last_success"], "1970-01-01T01:00:00Z");
    assert_eq!(body["services"]["total"], 2);
    let backends = &body["services"]["backends"];
    assert_eq!(
        backends,
        &json!({"total": 4, "serving": 2, "down": 0, "draining": 2, "maintenance": 0,
            "unresolved": 2})
    );
    assert_eq!(body["services"]["traffic"]["packets"], 2_000_010);
    assert_eq!(body["prefilter"]["prefixes_v4"], 1_500_002);
    let drops: Vec<_> = body["drops"].as_array().unwrap().iter().map(|d| &d["name"]).collect();
    assert_eq!(drops, ["blocked", "no_backend"]);
    assert_eq!(body["interfaces"][1]["attached"], "none");
}

#[tokio::test]
async fn lists() {
    let state = read_only(view());
    let services = get(&state, "/v1/services").await.body;
    assert_eq!(services["items"][0]["name"], "api");
    assert_eq!(services["items"][0]["source"], "api");
    assert_eq!(services["items"][0]["origin"], Value::Null);
    assert_eq!(services["items"][1]["source"], "file");
    assert_eq!(services["items"][1]["origin"], "/etc/lb/edge.yaml:12:5");
    assert_eq!(services["items"][1]["frontends"][0]["traffic"]["packets"], 1_000_010);

    let backends = get(&state, "/v1/backends").await.body;
    assert_eq!(backends["items"].as_array().unwrap().len(), 4);
    let web = get(&state, "/v1/backends?service=web").await.body;
    assert_eq!(web["items"].as_array().unwrap().len(), 2);
    assert_eq!(
        web["items"][1],
        json!({
            "service": "web", "name": "web-2", "source": "file", "address": "2001:db8::12",
            "weight": 50, "active_connections": 0, "state": "draining", "health": "down",
            "health_reason": "connection refused", "slots": 0, "share": 0.0,
            "next_hop": {"resolved": false, "reason": "no neighbour answers for 2001:db8::12"},
            "traffic": {"packets": 2_000_011, "bytes": 200_001_100, "new_connections": 200_001},
        })
    );
    assert_eq!(web["items"][0]["share"], 1.0);
    assert_eq!(web["items"][0]["next_hop"]["mac"], "02:00:00:00:00:11");

    let lists = get(&state, "/v1/prefilter/lists").await.body;
    assert_eq!(lists["items"][1]["hits"], 3_000_001);
    assert_eq!(lists["items"][1]["action"], "audit");
    let reasons = get(&state, "/v1/reasons").await.body;
    assert_eq!(reasons["items"].as_array().unwrap().len(), abi::reason::REASONS);
    assert_eq!(get(&state, "/v1/maps").await.body["items"][2]["entries"], Value::Null);
    assert_eq!(
        get(&state, "/v1/interfaces").await.body["items"][0]["roles"],
        json!(["prefilter", "balance"])
    );
}

#[tokio::test]
async fn a_service_has_its_version_as_tag() {
    let state = read_only(view());
    let answer = get(&state, "/v1/services/api").await;
    assert_eq!(answer.etag.as_deref(), Some("\"7\""));
    assert_eq!(answer.body["version"], 7);
    assert_eq!(answer.body["backends"][0]["name"], "web-1");
    let missing = get(&state, "/v1/services/nope").await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.body["type"], "urn:lb:problem:not-found");
    assert_eq!(get(&state, "/v1/backends?service=nope").await.status, 404);
}

#[tokio::test]
async fn every_error_is_a_problem() {
    let state = live(view());
    for (request, status) in [
        (request("GET", "/nope", None, &Value::Null), 404),
        (request("GET", "/v1/services/", None, &Value::Null), 404),
        (request("POST", "/v1/services", None, &Value::Null), 405),
        (request("PUT", "/healthz", None, &Value::Null), 405),
        (request("GET", "/v1/backends?servise=web", None, &Value::Null), 400),
        (request("GET", "/v1/services/%ff", None, &Value::Null), 400),
        (request("DELETE", "/v1/services/api", Some("7"), &Value::Null), 400),
    ] {
        let what = format!("{} {}", request.method(), request.uri());
        let answer = send(&state, request).await;
        assert_eq!(answer.status, status, "{what}");
        assert_eq!(answer.allow.is_some(), status == 405, "{what}");
    }

    let path = "/v1/services/api/backends/web-1";
    for (body, media_type, status) in [
        ("{", "application/json", 400),
        ("", "application/json", 400),
        ("{}", "text/plain", 415),
        ("{}", "application/json; charset=utf-8", 422),
        ("[]", "application/json", 422),
    ] {
        let request = Request::patch(path).header("content-type", media_type);
        let answer = send(&state, request.body(Body::from(body)).unwrap()).await;
        assert_eq!(answer.status, status, "{body}");
    }
    let big = format!("\"{}\"", "x".repeat(super::limits::BODY_BYTES));
    let request = Request::patch(path).header("content-type", "application/json");
    assert_eq!(send(&state, request.body(Body::from(big)).unwrap()).await.status, 413);
}

#[tokio::test]
async fn patching_a_backend() {
    let state = live(view());
    let path = "/v1/services/api/backends/web-1";
    let patch = json!({"weight": 10, "state": "maintenance"});
    let answer = send(&state, request("PATCH", path, None, &patch)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.etag.as_deref(), Some("\"101\""));
    let backends = get(&state, "/v1/backends?service=api").await.body;
    assert_eq!(backends["items"][0]["weight"], 10);
    assert_eq!(backends["items"][0]["state"], "maintenance");
    assert_eq!(backends["items"][1]["weight"], 50, "others stay");

    let patch = json!({"weight": 70_000, "state": "sleepy", "address": "10.0.0.1"});
    let answer = send(&state, request("PATCH", path, None, &patch)).await;
    assert_eq!(answer.status, 422);
    let fields: BTreeSet<_> = answer.body["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["field"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(fields, ["address", "state", "weight"].map(String::from).into());

    let patch = json!({"weight": 1});
    for (path, tag, status) in [
        ("/v1/services/api/backends/nope", None, 404),
        ("/v1/services/nope/backends/web-1", None, 404),
        ("/v1/services/web/backends/web-1", None, 409),
        (path, Some("\"7\""), 412),
        (path, Some("\"101\""), 200),
    ] {
        let answer = send(&state, request("PATCH", path, tag, &patch)).await;
        assert_eq!(answer.status, status, "{path} {}", answer.body);
    }
    let answer =
        send(&state, request("PATCH", "/v1/services/web/backends/web-1", None, &patch)).await;
    assert_eq!(answer.body["type"], "urn:lb:problem:read-only");
    assert!(answer.body["detail"].as_str().unwrap().contains("file /etc/lb/edge.yaml:12:5"));
}

#[tokio::test]
async fn putting_a_service() {
    let state = live(view());
    let path = "/v1/services/new";
    let body = |address: &str| {
        json!({
            "address": address,
            "ports": [{"name": "http", "port": 80, "protocol": "tcp"}],
            "forwarding": "l2",
            "backends": [{"name": "a", "address": "10.0.1.1"}],
        })
    };
    let put = |path: &str, tag: Option<&str>, body: &Value| request("PUT", path, tag, body);
    let answer = send(&state, put(path, Some("\"1\""), &body("203.0.113.30"))).await;
    assert_eq!(answer.status, 412, "there is no version yet");
    let answer = send(&state, put(path, None, &body("203.0.113.30"))).await;
    assert_eq!((answer.status.as_u16(), answer.etag.as_deref()), (201, Some("\"101\"")));
    let answer = get(&state, path).await;
    assert_eq!(answer.body["spec"]["backends"][0]["weight"], 100, "{}", answer.body);

    let spec = answer.body["spec"].clone();
    let answer = send(&state, put(path, Some("\"101\""), &spec)).await;
    assert_eq!(answer.status, 200, "what GET shows, PUT takes: {}", answer.body);
    let mut only_new = put(path, None, &spec);
    only_new.headers_mut().insert("if-none-match", "*".parse().unwrap());
    assert_eq!(send(&state, only_new).await.status, 412);

    let answer = send(&state, put(path, None, &body("203.0.113.20"))).await;
    assert_eq!((answer.status.as_u16(), &answer.body["field"]), (409, &json!("addresses[0]")));
    let answer = send(&state, put("/v1/services/web", None, &body("203.0.113.30"))).await;
    assert_eq!(answer.body["type"], "urn:lb:problem:read-only");
    let mut bad = body("203.0.113.30");
    bad["backends"][0]["adress"] = json!("10.0.0.1");
    bad["forwarding"] = json!("l3");
    let answer = send(&state, put(path, None, &bad)).await;
    assert_eq!(answer.status, 422);
    let detail = answer.body["detail"].as_str().unwrap();
    assert!(detail.contains("did you mean `address`"), "{detail}");
}

#[tokio::test]
async fn deleting_a_service() {
    let state = live(view());
    for (name, tag, status) in [
        ("nope", None, 404),
        ("web", None, 409),
        ("api", Some("\"6\""), 412),
        ("api", Some("\"6\", \"7\""), 204),
        ("api", None, 404),
    ] {
        let path = format!("/v1/services/{name}");
        let answer = send(&state, request("DELETE", &path, tag, &Value::Null)).await;
        assert_eq!(answer.status, status, "{name} {}", answer.body);
    }
}

#[tokio::test]
async fn without_an_owner_changes_are_refused() {
    let state = read_only(view());
    let answer = send(&state, request("DELETE", "/v1/services/api", None, &Value::Null)).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.body["detail"], "the daemon is shutting down");
}

#[tokio::test]
async fn the_description_is_of_this_api() {
    let state = read_only(view());
    let served = get(&state, "/v1/openapi.json").await.body;
    assert_eq!(served, serde_json::to_value(openapi()).unwrap());
    assert!(served["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(served["info"]["version"], env!("CARGO_PKG_VERSION"));
    let service = &served["paths"]["/v1/services/{name}"];
    assert!(service["get"].is_object() && service["delete"].is_object());

    // Whatever it refers to, it also defines.
    let text = served.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(served["components"]["schemas"][name].is_object(), "{name} is not defined");
    }
    // Every path without parameters answers; the stream of events ends at once.
    state.view.borrow().samples.ended().cancel();
    for (path, methods) in served["paths"].as_object().unwrap() {
        if methods.get("get").is_some() && !path.contains('{') {
            let lookup = format!("{path}?ip=192.0.2.1");
            let trace = format!("{path}?from=host&to=id%3Da&dport=80/tcp");
            let entry = format!(
                "{path}?protocol=tcp&source=[2001:db8:9::7]:40000&destination=[2001:db8::10]:443"
            );
            let full = match path.as_str() {
                path if path.ends_with("/conntrack/entry") => &entry,
                path if path.ends_with("/lookup") => &lookup,
                path if path.ends_with("/policy-trace") => &trace,
                _ => path,
            };
            let status = get(&state, full).await.status;
            assert!(status == 200 || path == "/readyz", "{path} {status}");
        }
    }
}
