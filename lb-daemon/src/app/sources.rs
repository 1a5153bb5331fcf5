//! The sources of the desired state: files that are watched, and objects of the API; and how both
//! become one.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use config::{
    Fault, Loader, Watcher,
    model::{DesiredState, Endpoint, Service},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    bans,
    command::{Command, Refusal},
    policy::documents::{ApiEndpoints, Rules},
};

/// Objects of the API, by name.
pub(super) type ApiServices = BTreeMap<String, Arc<Service>>;

/// Everything that the API has set.
pub(super) struct Api<'a> {
    pub(super) services: &'a ApiServices,
    pub(super) lists: &'a bans::Lists,
    /// Those of files go before them.
    pub(super) rules: &'a Rules,
    pub(super) endpoints: &'a ApiEndpoints,
}

/// One fault as a printable paragraph.
pub(super) fn print(faults: &[Fault]) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

/// Reasons to load again.
pub(super) struct News {
    /// Something changed on disk.
    pub(super) notices: mpsc::Receiver<Instant>,
    /// Somebody asks for it.
    pub(super) reload: mpsc::Receiver<()>,
    /// A list was fetched.
    pub(super) copies: mpsc::Receiver<()>,
}

/// Loads again at each notice of the watcher, and at each request.
pub(super) async fn follow_files(
    mut loader: Loader,
    watcher: Watcher,
    mut news: News,
    commands: mpsc::Sender<Command>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let noticed = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            Some(()) = news.reload.recv() => Instant::now(),
            Some(()) = news.copies.recv() => Instant::now(),
            notice = news.notices.recv() => match notice {
                Some(at) => at,
                None => anyhow::bail!("the watch on the configuration has ended"),
            },
        };
        let loaded = tokio::task::block_in_place(|| loader.load());
        let command = match loaded {
            Ok(desired) => Command::Files { desired: Box::new(desired), noticed },
            Err(faults) => Command::FilesFaulty { faults: print(&faults) },
        };
        if commands.send(command).await.is_err() {
            return Ok(());
        }
        // Afterwards, as the change does not wait for it. What happens in a new directory meanwhile is
        // not lost: watching one counts as a change.
        tokio::task::block_in_place(|| {
            if let Err(error) = watcher.set_extra_dirs(loader.watch_dirs()) {
                tracing::warn!(%error, "a directory of the configuration is not watched");
            }
        });
    }
}

/// Logs the lines that lists leave out, once for each version of a list.
pub(super) fn warn_skipped(wanted: &DesiredState, before: &DesiredState) {
    for list in &wanted.prefilter.lists {
        if before.prefilter.lists.iter().any(|old| Arc::ptr_eq(old, list)) {
            continue;
        }
        for fault in &list.skipped {
            tracing::warn!(list = list.name, "left out: {fault}");
        }
        let unlisted = list.skipped_lines - list.skipped.len() as u64;
        if unlisted > 0 {
            tracing::warn!(list = list.name, "left out: {unlisted} more lines");
        }
    }
}

/// Files and API objects as one state.
///
/// # Errors
/// What contradicts what; printable.
pub(super) fn merge(
    files: &Arc<DesiredState>,
    api: &Api<'_>,
) -> Result<Arc<DesiredState>, Vec<String>> {
    let (merged, faults) = merge_what_fits(files, api);
    if faults.is_empty() { Ok(merged) } else { Err(faults) }
}

/// The same for files that are in force already, or at a start, when no good state before could stay:
/// they win, and what contradicts them is left out and named. Services come with their parts.
pub(super) fn merge_what_fits(
    files: &Arc<DesiredState>,
    api: &Api<'_>,
) -> (Arc<DesiredState>, Vec<String>) {
    let Api { services, lists, rules, endpoints } = api;
    if services.is_empty() && lists.is_empty() && rules.is_empty() && endpoints.is_empty() {
        let divided = files.services.values().any(|service| !service.parts.is_empty());
        let merged = match divided {
            true => Arc::new(DesiredState::clone(files).with_parts()),
            false => Arc::clone(files),
        };
        return (merged, Vec::new());
    }
    let mut faults = Vec::new();
    let mut merged = DesiredState::clone(files);
    for (name, service) in *services {
        let clash = clash(service, files.services.values()).or_else(|| swallows(service, files));
        match clash {
            None => drop(merged.services.insert(name.clone(), Arc::clone(service))),
            Some((_, text)) => {
                faults.push(format!("an object of the API contradicts the files: {text}"));
            }
        }
    }
    let holders = Holders::of(files);
    for (name, endpoint) in *endpoints {
        match endpoint_clash(endpoint, holders.beside(endpoint)) {
            None => drop(merged.endpoints.insert(name.clone(), Arc::clone(endpoint))),
            Some((_, text)) => {
                faults.push(format!("an endpoint of the API contradicts the files: {text}"));
            }
        }
    }
    let taken = |name: &str| files.prefilter.lists.iter().find(|list| *list.name == *name);
    for list in lists.iter().filter_map(|(name, _)| taken(name)) {
        let name = &list.name;
        faults.push(format!(
            "the list \"{name}\" is one of a file ({}) and one of the API: rename it there, or `lbctl \
             prefilter delete --list {name} --all`",
            origin(&list.source)
        ));
    }
    merged.prefilter = lists.behind(&files.prefilter);
    if !rules.is_empty() {
        let of_api = rules.values().flat_map(|rules| rules.iter());
        merged.policies = Arc::new(files.policies.iter().chain(of_api).cloned().collect());
    }
    (Arc::new(merged.with_parts()), faults)
}

/// Whether a service of the API may stand beside all others.
pub(super) fn admit(
    service: &Service,
    files: &DesiredState,
    api: &ApiServices,
) -> Result<(), Refusal> {
    if let Some(of_file) = files.services.get(&service.name) {
        return Err(read_only(of_file));
    }
    let others = api.values().filter(|other| other.name != service.name);
    let clash = clash(service, files.services.values().chain(others));
    match clash.or_else(|| swallows(service, files)) {
        Some((field, message)) => Err(Refusal::Conflict { field, message }),
        None => Ok(()),
    }
}

/// Whether an endpoint of the API may stand beside all others.
pub(super) fn admit_endpoint(
    endpoint: &Endpoint,
    files: &DesiredState,
    api: &ApiEndpoints,
) -> Result<(), Refusal> {
    if let Some(of_file) = files.endpoints.get(&endpoint.name) {
        return Err(Refusal::ReadOnly {
            name: endpoint.name.clone(),
            origin: origin(&of_file.source),
        });
    }
    let others = api.values().filter(|other| other.name != endpoint.name);
    match endpoint_clash(endpoint, files.endpoints.values().chain(others)) {
        Some((field, message)) => Err(Refusal::Conflict { field, message }),
        None => Ok(()),
    }
}

/// Who has which interface and which address.
struct Holders<'f> {
    files: &'f DesiredState,
    interfaces: HashMap<&'f str, &'f Arc<Endpoint>>,
    addresses: HashMap<IpAddr, &'f Arc<Endpoint>>,
}

impl<'f> Holders<'f> {
    fn of(files: &'f DesiredState) -> Self {
        let all = || files.endpoints.values();
        let at = |own: &'f Arc<Endpoint>| own.addresses.iter().map(move |address| (*address, own));
        Self {
            files,
            interfaces: all().map(|own| (own.interface.as_str(), own)).collect(),
            addresses: all().flat_map(at).collect(),
        }
    }

    /// Those that `endpoint` may contradict.
    fn beside(&self, endpoint: &Endpoint) -> impl Iterator<Item = &'f Arc<Endpoint>> {
        let named = self.files.endpoints.get(&endpoint.name);
        let behind = self.interfaces.get(endpoint.interface.as_str()).copied();
        let at = endpoint.addresses.iter().filter_map(|address| self.addresses.get(address));
        named.into_iter().chain(behind).chain(at.copied())
    }
}

/// The first field of `endpoint` that contradicts another one, and how.
fn endpoint_clash<'a>(
    endpoint: &Endpoint,
    others: impl Iterator<Item = &'a Arc<Endpoint>>,
) -> Option<(String, String)> {
    for other in others {
        let (name, from) = (&other.name, origin(&other.source));
        if *name == endpoint.name {
            let text = format!("the name \"{name}\" is taken ({from}); choose another one");
            return Some(("name".to_owned(), text));
        }
        if other.interface == endpoint.interface {
            let text =
                format!("{} is the interface of the endpoint {name} ({from})", other.interface);
            return Some(("interface".to_owned(), text));
        }
        let shared = |own: &std::net::IpAddr| other.addresses.contains(own);
        if let Some(index) = endpoint.addresses.iter().position(shared) {
            let address = endpoint.addresses[index];
            let text = format!("{address} is an address of the endpoint {name} ({from})");
            return Some((format!("addresses[{index}]"), text));
        }
    }
    None
}

/// The refusal to change what belongs to another source.
pub(super) fn read_only(service: &Service) -> Refusal {
    Refusal::ReadOnly { name: service.name.clone(), origin: origin(&service.source) }
}

/// Where an object comes from, for people.
pub(super) fn origin(source: &config::model::Source) -> String {
    match source {
        config::model::Source::File { path, line, column } => {
            format!("file {}:{line}:{column}", path.display())
        }
        config::model::Source::Api => "api".to_owned(),
        config::model::Source::Kubernetes(object) => format!("kubernetes {object}"),
    }
}

/// An address of `service` that is a NAT address too, if it takes more than single ports there: replies to translated
/// packets would be its. Files are checked when they are read.
fn swallows(service: &Service, files: &DesiredState) -> Option<(String, String)> {
    let many = |port: &&config::model::Port| port.port == 0 || port.port != port.last;
    let port = service.ports.iter().find(many)?;
    let is_nat = |address: &IpAddr| files.node.nat.addresses.contains(address);
    let index = service.addresses.iter().position(is_nat)?;
    let (address, numbers) = (service.addresses[index], port.numbers());
    let text = format!(
        "{address} is one of node.nat.addresses, and the service \"{}\" takes ports {numbers} of it: what backends \
         answer would be the service's; allowed: single ports there, or another address",
        service.name
    );
    Some((format!("addresses[{index}]"), text))
}

/// The first field of `service` that contradicts another one, and how.
fn clash<'a>(
    service: &Service,
    others: impl Iterator<Item = &'a Arc<Service>>,
) -> Option<(String, String)> {
    for other in others {
        if other.name == service.name {
            let text = format!("the name \"{}\" is taken; choose another one", other.name);
            return Some(("name".to_owned(), text));
        }
        if !other.addresses.iter().any(|a| service.addresses.contains(a)) {
            continue;
        }
        let shared = |own: &&config::model::Port| other.ports.iter().any(|port| port.overlaps(own));
        if let Some(own) = service.ports.iter().find(shared) {
            let both = |a: &std::net::IpAddr| other.addresses.contains(a);
            let index = service.addresses.iter().position(both).unwrap_or(0);
            let text = format!(
                "service \"{}\" and service \"{}\" have one address and port ({} port {}); change one",
                service.name,
                other.name,
                service.addresses[index],
                own.numbers(),
            );
            return Some((format!("addresses[{index}]"), text));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_of_the_api_at_a_nat_address() {
        let service = |ports: &str, address: &str| {
            let text = format!(
                r#"{{"addresses": ["192.0.2.7", "{address}"], "ports": [{ports}], "forwarding": "nat",
                     "backends": [{{"address": "10.0.1.11"}}]}}"#
            );
            config::parse_service_json("web", text.as_bytes()).unwrap()
        };
        let mut files = DesiredState::default();
        files.node.nat.addresses = vec!["192.0.2.1".parse().unwrap()];
        for (ports, address, refused) in [
            (r#"{"port": 0}"#, "192.0.2.1", true),
            (r#"{"port": 80}, {"port": "8000-8999"}"#, "192.0.2.1", true),
            (r#"{"port": 80}"#, "192.0.2.1", false),
            (r#"{"port": 0}"#, "192.0.2.2", false),
        ] {
            let service = service(ports, address);
            let admitted = admit(&service, &files, &ApiServices::default());
            match admitted {
                Err(Refusal::Conflict { field, message }) => {
                    assert!(refused && field == "addresses[1]", "{ports} {address}: {message}");
                    assert!(message.contains("node.nat.addresses"), "{message}");
                }
                other => assert!(!refused && other.is_ok(), "{ports} {address}"),
            }
        }
    }
}
