//! The appliance: sources, desired state, compile, plan, apply; health, next hops, API.

pub mod api;
pub mod app;
pub mod bans;
pub mod command;
pub mod compare;
pub mod conntrack;
pub mod ctl;
pub mod datapath;
mod doctor;
pub mod early;
pub mod events;
pub mod fetch;
pub mod guard;
pub mod health;
pub mod links;
pub mod metrics;
pub mod netlink;
pub mod nexthop;
pub mod plan;
pub mod policy;
mod refusal;
pub mod ring;
mod sorted;
pub mod store;
pub mod view;
