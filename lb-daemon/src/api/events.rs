//! Sampled packets: as a stream, and the top of the last minute.

use std::{collections::BTreeMap, convert::Infallible, net::IpAddr, sync::Arc, time::UNIX_EPOCH};

use abi::{
    event::{Hook, Outcome},
    reason::Reason,
};
use axum::{
    Json,
    extract::State,
    response::sse::{self, KeepAlive, Sse},
};
use futures::Stream;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use utoipa::{IntoParams, ToSchema};

use super::{
    ApiState,
    extract::QueryOf,
    model::rfc3339_millis,
    problem::{Kind, Problem},
};
use crate::{
    events::{LISTENERS, Sample, Samples, Share, Top, WINDOW},
    plan::prefixes,
};

/// A sampled packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When, in UTC.
    pub time: String,
    /// The same in microseconds of Unix time.
    pub timestamp: u64,
    /// `xdp`, or `ingress` and `egress` of an endpoint.
    pub hook: String,
    /// `passed`, `dropped`, `forwarded`, or `audited`: it passed, and would have been dropped.
    pub outcome: String,
    /// Why; absent for a packet that passed the prefilter and whose way went on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The blocklist that its source is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// The rate limit that it is beyond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// The rule of policy that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Where that rule stands: file with line and column, `api`, or the Kubernetes object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Labels of source and destination, of verdicts of policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<[BTreeMap<String, String>; 2]>,
    /// Identities of source and destination, of verdicts of policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identities: Option<[u32; 2]>,
    /// Where it came in.
    pub interface: String,
    /// Source address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub source: Option<IpAddr>,
    /// Destination address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub destination: Option<IpAddr>,
    /// IP protocol number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// Source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// Bytes of the frame.
    pub length: u32,
    /// Packets that this one stands for.
    pub weight: u32,
    /// The first bytes of the frame, at most 128, in hexadecimal.
    pub data: String,
}

impl Event {
    fn of(sample: &Sample) -> Self {
        let flow = sample.flow;
        let known = sample.outcome != Outcome::Passed || sample.hook != Hook::Xdp;
        Self {
            time: rfc3339_millis(sample.time),
            timestamp: sample.time.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()
                as u64,
            hook: match sample.hook {
                Hook::Xdp => "xdp",
                Hook::Ingress => "ingress",
                Hook::Egress => "egress",
            }
            .to_owned(),
            outcome: outcome(sample.outcome).to_owned(),
            reason: known.then(|| sample.reason.name().to_owned()),
            list: sample.list.as_deref().map(str::to_owned),
            limit: sample.limit.as_deref().map(str::to_owned),
            rule: sample.rule.as_deref().map(str::to_owned),
            origin: sample.origin.as_deref().map(str::to_owned),
            labels: sample.labels.clone(),
            identities: sample.identities,
            interface: sample.interface.to_string(),
            source: flow.map(|flow| flow.source),
            destination: flow.map(|flow| flow.destination),
            protocol: flow.map(|flow| flow.protocol),
            source_port: flow.and_then(|flow| flow.ports).map(|ports| ports.0),
            destination_port: flow.and_then(|flow| flow.ports).map(|ports| ports.1),
            length: sample.length,
            weight: sample.weight,
            data: sample.bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

const fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Dropped => "dropped",
        Outcome::Forwarded => "forwarded",
        Outcome::Audited => "audited",
    }
}

/// Programs that sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Programs {
    /// Of the prefilter and the balancer.
    Drop,
    /// Of identity policy.
    Policy,
}

/// Which events are wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only what these programs say.
    #[serde(rename = "type")]
    #[param(inline)]
    kind: Option<Programs>,
    /// Only those with this reason.
    reason: Option<String>,
    /// Only those on this blocklist.
    list: Option<String>,
    /// Only those from sources in this prefix.
    #[param(value_type = Option<String>)]
    source: Option<String>,
    /// Also packets that passed.
    #[serde(default)]
    passed: bool,
}

/// The same, checked.
struct Filter {
    kind: Option<Programs>,
    reason: Option<Reason>,
    list: Option<String>,
    source: Option<IpNet>,
    passed: bool,
}

impl Filter {
    fn of(wanted: Wanted) -> Result<Self, Problem> {
        let refuse = |field: &str, detail: String| Problem::invalid(field, detail);
        let reason = |name: String| {
            let found = Reason::ALL.iter().copied().find(|reason| reason.name() == name);
            found.ok_or_else(|| {
                refuse("reason", format!("\"{name}\" is none; /v1/reasons has them all"))
            })
        };
        let source = |text: String| {
            let net = text.parse::<IpNet>().ok();
            net.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
                .ok_or_else(|| refuse("source", format!("\"{text}\" is no address or prefix")))
        };
        Ok(Self {
            kind: wanted.kind,
            reason: wanted.reason.map(reason).transpose()?,
            list: wanted.list,
            source: wanted.source.map(source).transpose()?,
            passed: wanted.passed,
        })
    }

    fn takes(&self, sample: &Sample) -> bool {
        let of = if sample.hook == Hook::Xdp { Programs::Drop } else { Programs::Policy };
        let let_pass = matches!(sample.outcome, Outcome::Passed | Outcome::Forwarded);
        (self.passed || !let_pass)
            && self.kind.is_none_or(|kind| kind == of)
            && self.reason.is_none_or(|reason| reason == sample.reason)
            && self.list.as_deref().is_none_or(|list| sample.list.as_deref() == Some(list))
            && self
                .source
                .is_none_or(|net| sample.flow.is_some_and(|flow| net.contains(&flow.source)))
    }
}

/// Packets that are dropped, or would be if it were not for an audit, as they are sampled: server-sent
/// events. `event: packet` has an Event; `event: lost` the number of those that the client was too slow for.
#[utoipa::path(
    get, path = "/v1/events", tag = "node", params(Wanted),
    responses(
        (status = 200, description = "A stream of events", body = Event,
            content_type = "text/event-stream"),
        (status = 422, description = "No such reason, or no prefix", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "Too many listen already", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn events(
    State(state): State<ApiState>,
    QueryOf(wanted): QueryOf<Wanted>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Problem> {
    let filter = Filter::of(wanted)?;
    let samples = state.view().samples.clone();
    let Some(receiver) = samples.subscribe() else {
        let detail = format!("{LISTENERS} listen already; end one of them");
        return Err(Problem::new(Kind::Unavailable, detail));
    };
    let ended = samples.ended();
    let stream = futures::stream::unfold((receiver, samples, filter), next);
    let stream = futures::StreamExt::take_until(stream, async move { ended.cancelled().await });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

type Listening = (Receiver<Arc<Sample>>, Samples, Filter);

async fn next(
    (mut receiver, samples, filter): Listening,
) -> Option<(Result<sse::Event, Infallible>, Listening)> {
    let event = loop {
        match receiver.recv().await {
            Ok(sample) if !filter.takes(&sample) => {}
            Ok(sample) => {
                let made = sse::Event::default().event("packet").json_data(Event::of(&sample));
                // Strings and numbers: there is nothing that JSON has not.
                if let Ok(event) = made {
                    break event;
                }
            }
            Err(RecvError::Lagged(lost)) => {
                samples.not_heard(lost);
                break sse::Event::default().event("lost").data(lost.to_string());
            }
            Err(RecvError::Closed) => return None,
        }
    };
    Some((Ok(event), (receiver, samples, filter)))
}

/// How many of each kind are wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Most {
    /// Default: 10; at most 1000.
    limit: Option<usize>,
}

/// Somebody's packets in the last minute, estimated from samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ranked {
    /// An address, or the name of a list or reason.
    pub name: String,
    /// The list that decides about an address now, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Samples that say so.
    pub samples: u64,
}

/// Who was dropped most in the last minute. Packets that an audit let pass count too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TopList {
    /// What was looked at, in seconds.
    pub seconds: u64,
    /// Packets in all.
    pub packets: u64,
    /// Samples that say so.
    pub samples: u64,
    /// Sources.
    pub sources: Vec<Ranked>,
    /// Blocklists.
    pub lists: Vec<Ranked>,
    /// Reasons.
    pub reasons: Vec<Ranked>,
}

/// Top sources, lists and reasons of what was dropped in the last minute.
#[utoipa::path(
    get, path = "/v1/top", tag = "node", params(Most), responses((status = 200, body = TopList))
)]
pub(super) async fn top(
    State(state): State<ApiState>,
    QueryOf(most): QueryOf<Most>,
) -> Result<Json<TopList>, Problem> {
    let most = most.limit.unwrap_or(10).min(1000);
    let rank = |share: &Share<()>, name: String| Ranked {
        name,
        list: None,
        packets: share.packets,
        bytes: share.bytes,
        samples: share.samples,
    };
    state
        .read(move |view, _| {
            let Top { total, sources, lists, reasons } = view.samples.top(most);
            let source = |share: &Share<IpAddr>| {
                let verdict = prefixes::lookup(&view.prefilter, share.of);
                let list = verdict.decides.map(str::to_owned);
                Ranked { list, ..rank(&without(share), share.of.to_string()) }
            };
            TopList {
                seconds: WINDOW.as_secs(),
                packets: total.packets,
                samples: total.samples,
                sources: sources.iter().map(source).collect(),
                lists: lists.iter().map(|s| rank(&without(s), s.of.to_string())).collect(),
                reasons: reasons
                    .iter()
                    .map(|s| rank(&without(s), s.of.name().to_owned()))
                    .collect(),
            }
        })
        .await
        .map(Json)
}

const fn without<T>(share: &Share<T>) -> Share<()> {
    let Share { packets, bytes, samples, .. } = *share;
    Share { of: (), packets, bytes, samples }
}
