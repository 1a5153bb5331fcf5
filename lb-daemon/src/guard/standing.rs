//! What is in force and should be seen to: lists that cut off what this machine needs (at a start nothing is refused,
//! gateways, sessions and addresses come later than lists, and bans may have been forced), and ports of the SYN proxy
//! that are proxied for nobody.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use config::model::{Prefilter, PrefixList, Protocol, Service, Source, SynProxy};

use super::{Guard, Protected, Role, around, listed};
use crate::view::View;

/// Lists that drop packets from what is protected, without `force`: one text for each. Lists of the API have no
/// `force`: it is asked for with each change, and what it was asked for may be forgotten.
#[must_use]
pub fn cutting_off(protected: &Protected, prefilter: &Prefilter) -> Vec<String> {
    let all = protected.cut_off(&Prefilter::default(), prefilter);
    let text = |list: &Arc<PrefixList>| {
        let own: Vec<_> = all.iter().filter(|covered| covered.list == list.name).cloned().collect();
        let remedy = match list.source {
            Source::Api => format!(
                "or take it off the list (`lbctl prefilter delete PREFIX --list {}`)",
                list.name
            ),
            _ => "or, if it is meant, set `force: true` in the list".to_owned(),
        };
        (!own.is_empty()).then(|| {
            format!(
                "lists cut off what this machine needs: {}; put it under `allow`, {remedy}",
                listed(&own)
            )
        })
    };
    prefilter.lists.iter().filter_map(text).collect()
}

/// Services whose ports the SYN proxy has, and whose SYNs it hands on unanswered, as none of their backends is this
/// machine: one text for each port that no listener of this machine has either.
#[must_use]
pub fn not_proxied<'s>(
    proxy: &SynProxy,
    services: impl Iterator<Item = &'s Arc<Service>>,
    local: &BTreeSet<IpAddr>,
    listening: &BTreeSet<u16>,
) -> Vec<String> {
    if proxy.ports.is_empty() {
        return Vec::new();
    }
    let has = |low, high| proxy.ports.iter().any(|(a, b)| *a <= high && *b >= low);
    let elsewhere = |service: &&Arc<Service>| {
        !service.backends.iter().any(|backend| local.contains(&backend.address.to_canonical()))
    };
    let mut texts = Vec::new();
    for service in services.filter(elsewhere) {
        let tcp = service.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        for port in tcp {
            if has(port.port, port.last) && listening.range(port.port..=port.last).next().is_none()
            {
                texts.push(format!(
                    "SYN proxy: SYNs to port {} of the service {} are not answered here, as its backends are other \
                     machines; set net.ipv4.tcp_syncookies on these, and take the port out of `syn_proxy`",
                    port.port, service.name
                ));
            }
        }
    }
    texts
}

impl Protected {
    fn local(&self) -> BTreeSet<IpAddr> {
        let own = self.0.iter().filter(|(_, roles)| roles.contains(&Role::Local));
        own.map(|(address, _)| *address).collect()
    }
}

impl Guard {
    /// What is in force and should be seen to, one text for each. Reads files.
    #[must_use]
    pub fn warnings(&self, view: &View) -> Vec<String> {
        let mut protected = Protected::clone(&self.around());
        protected.add_backends(view.services.iter().map(|service| &service.spec));
        let mut texts = cutting_off(&protected, &view.prefilter);
        let proxy = &view.prefilter.syn_proxy;
        if !proxy.ports.is_empty() {
            let sockets = around::sockets();
            let listening = sockets.iter().flat_map(|text| around::listening(text)).collect();
            let services = view.services.iter().map(|service| &service.spec);
            texts.extend(not_proxied(proxy, services, &protected.local(), &listening));
        }
        texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::service;

    fn file() -> Source {
        Source::File { path: Arc::new("lists.yaml".into()), line: 1, column: 1 }
    }

    #[test]
    fn lists_that_cut_something_off_are_named() {
        let mut protected = Protected::default();
        protected.add("192.0.2.1".parse().unwrap(), Role::Gateway);
        protected.add("192.0.2.53".parse().unwrap(), Role::NameServer);
        let wide = || ["192.0.2.0/26".parse().unwrap()].into_iter().collect();
        let of = |source: Source, force: bool, allow: &[&str]| {
            let list = PrefixList { force, ..PrefixList::new("l", source, wide()) };
            let allow = allow.iter().map(|net| net.parse::<ipnet::IpNet>().unwrap()).collect();
            let prefilter = Prefilter { lists: vec![list.into()], allow, ..Prefilter::default() };
            cutting_off(&protected, &prefilter)
        };
        let texts = of(file(), false, &["192.0.2.53/32"]);
        assert_eq!(
            texts,
            [
                "lists cut off what this machine needs: 192.0.2.1 (a gateway), which is in 192.0.2.0/26 of the list \"l\"; put it \
              under `allow`, or, if it is meant, set `force: true` in the list"
            ]
        );
        assert!(of(file(), false, &[])[0].contains("192.0.2.53 (a name server)"));
        assert!(of(file(), true, &[]).is_empty(), "it is meant");
        let texts = of(Source::Api, false, &["192.0.2.53/32"]);
        assert_eq!(
            texts,
            [
                "lists cut off what this machine needs: 192.0.2.1 (a gateway), which is in 192.0.2.0/26 of the list \"l\"; put it \
              under `allow`, or take it off the list (`lbctl prefilter delete PREFIX --list l`)"
            ]
        );
        assert!(of(Source::Api, false, &["192.0.2.0/26"]).is_empty());
        assert!(of(file(), false, &["192.0.2.0/24"]).is_empty());
    }

    #[test]
    fn ports_that_nobody_here_listens_at_are_named() {
        // Port 443 over TCP, backends 10.0.1.11 and 2001:db8::12.
        let web = Arc::new(service("web", Source::Api, "203.0.113.10"));
        let of = |ports: &[(u16, u16)], local: &[&str], listening: &[u16]| {
            let proxy = SynProxy { ports: ports.to_vec(), ..SynProxy::default() };
            let local = local.iter().map(|address| address.parse().unwrap()).collect();
            let listening = listening.iter().copied().collect();
            not_proxied(&proxy, [&web].into_iter(), &local, &listening)
        };
        let texts = of(&[(22, 22), (440, 450)], &["10.0.1.9"], &[22]);
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(texts[0].contains("port 443 of the service web"), "{texts:?}");
        assert!(of(&[], &[], &[]).is_empty());
        assert!(of(&[(80, 80)], &[], &[]).is_empty(), "another port");
        assert!(of(&[(443, 443)], &["10.0.1.11"], &[]).is_empty(), "delivered here");
        assert!(of(&[(443, 443)], &[], &[443]).is_empty(), "a listener of this machine has it too");
    }

    #[test]
    fn sockets_that_listen() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 00000000:0016 00000000:0000 0A 00000000:00000000 02:0 0\n\
             1: 0A0200C0:0050 076433C6:D431 01 00000000:00000000 02:0 0\n";
        assert_eq!(around::listening(tcp).collect::<Vec<_>>(), [22]);
        assert_eq!(around::listening("x\ny z\n").count(), 0);
    }
}
