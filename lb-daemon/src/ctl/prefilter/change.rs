//! `lbctl prefilter`: what changes lists, and what would.

use std::{
    fs,
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    path::Path,
    time::SystemTime,
};

use anyhow::{Context as _, bail};
use hyper::Method;
use serde_json::{Value, json};

use super::{
    super::{
        client::{Client, Guard, segment},
        output::{Output, count, number},
    },
    EntryOptions, SafetyOptions,
    exported::{self, Exported},
    path,
    pieces::{Common, Sorted, Target},
    scope::ScopeOptions,
};
use crate::api::{
    limits::BULK_BYTES,
    lists::{Changed, NewEntry, Plan, Removed},
};

pub(super) const CONFIRM: &str = "/v1/prefilter/confirm";

/// Options as a query, with `?` if there is any.
fn query(options: &[(&str, Option<&str>)]) -> String {
    let mut query = String::new();
    for (key, value) in options.iter().filter_map(|(key, value)| Some((key, (*value)?))) {
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(&format!("{key}={}", segment(value)));
    }
    query
}

fn borrowed<'o>(
    options: &'o [(&'static str, Option<String>)],
) -> impl Iterator<Item = (&'static str, Option<&'o str>)> {
    options.iter().map(|(name, value)| (*name, value.as_deref()))
}

impl SafetyOptions {
    fn query(&self) -> [(&'static str, Option<&str>); 2] {
        [("force", self.force.then_some("true")), ("confirm", self.confirm.as_deref())]
    }
}

fn text_of(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file.as_os_str() == "-" {
        let mut text = Vec::new();
        io::stdin().read_to_end(&mut text).context("standard input")?;
        return Ok(text);
    }
    fs::read(file).with_context(|| format!("{}", file.display()))
}

/// The faults of a list file; the daemon's would name lines of the request.
fn check(file: &Path, text: &[u8], what: &str) -> anyhow::Result<()> {
    let Err(faults) = config::parse_list(file, text) else { return Ok(()) };
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    bail!("{what}:\n{}", faults.join("\n"));
}

/// Prefixes alone. As text, host bits would be cleared; here they are an error.
fn entries(cidrs: &[String]) -> Value {
    cidrs.iter().map(|cidr| json!({ "cidr": cidr })).collect()
}

pub(super) fn plan(
    client: &Client,
    output: &Output,
    (cidrs, file): (&[String], Option<&Path>),
    list: &str,
    scope: &ScopeOptions,
) -> anyhow::Result<()> {
    let scope = scope.query();
    let options: Vec<_> = borrowed(&scope).collect();
    let path = format!("{}/plan{}", path(list), query(&options));
    let value = match file {
        Some(file) => {
            let text = text_of(file)?;
            check(file, &text, "this is no list")?;
            client.upload(&path, text)?
        }
        None => client.change(Method::POST, &path, Some(&entries(cidrs)), Guard::default())?,
    };
    let plan: Plan = serde_json::from_value(value.clone())?;
    output.show(&value, || page(&plan))
}

/// A plan for people.
fn page(plan: &Plan) -> String {
    let Plan { list, action, scope, new, known, addresses_v4, covered, covered_total, .. } = &plan;
    let about = scope.as_ref().map(|scope| format!(", only packets {scope}")).unwrap_or_default();
    let mut page = format!(
        "{} new on the list {list} ({action}{about}), {} there already; {} IPv4 addresses\n",
        number(*new),
        number(*known),
        number(*addresses_v4)
    );
    let done = if action == "drop" { "dropped" } else { "counted, and let pass," };
    let (least, most) = (plan.would_drop_least, plan.would_drop_most);
    let samples = count(plan.samples, "sample");
    let sure = if most < plan.would_drop_packets {
        // A daemon that says no more.
        format!("by {samples}")
    } else if least == most {
        "each packet was looked at".to_owned()
    } else {
        format!("{} to {}, by {samples}", number(least), number(most))
    };
    page.push_str(&format!(
        "of {} that passed in the last minute it would have {done} {} ({sure})\n",
        count(plan.passed_packets, "packet"),
        number(plan.would_drop_packets),
    ));
    for source in &plan.would_drop {
        page.push_str(&format!("  {} {}\n", source.source, number(source.packets)));
    }
    for one in covered {
        let roles = one.roles.join(", ");
        page.push_str(&format!("CUTS OFF {} ({roles}) by {}\n", one.address, one.prefix));
    }
    let more = covered_total - covered.len() as u64;
    if more > 0 {
        page.push_str(&format!("and {more} more\n"));
    }
    page.push_str(match covered_total {
        0 => "it cuts off nothing that this machine needs",
        _ => "this needs --force",
    });
    page
}

pub(super) fn add(
    client: &Client,
    output: &Output,
    cidrs: &[String],
    options: &EntryOptions,
    (scope, safety): (&ScopeOptions, &SafetyOptions),
) -> anyhow::Result<()> {
    let (list, EntryOptions { ttl, reason, .. }) = (options.list(), options);
    let entry =
        |cidr: &String| NewEntry { cidr: cidr.clone(), ttl: ttl.clone(), reason: reason.clone() };
    let body = serde_json::to_value(cidrs.iter().map(entry).collect::<Vec<_>>())?;
    let scope = scope.query();
    let options: Vec<_> = borrowed(&scope).chain(safety.query()).collect();
    let path = format!("{}/entries{}", path(list), query(&options));
    let value = client.change(Method::POST, &path, Some(&body), Guard::default())?;
    changed(client, output, &value, list, safety)
}

/// A list file goes in as it is, all of it or nothing. An export, and what is too large for one request, goes in
/// pieces.
pub(super) fn import(
    client: &Client,
    output: &Output,
    file: &Path,
    options: &EntryOptions,
    (scope, safety): (&ScopeOptions, &SafetyOptions),
    skip_errors: bool,
) -> anyhow::Result<()> {
    let text = text_of(file)?;
    let EntryOptions { list, ttl, reason } = options;
    let exported = Exported::read(&text).with_context(|| file.display().to_string())?;
    let (sorted, scope, list) = match exported {
        Some(Exported { list: name, spec, items }) => {
            let scope = spec.map_or_else(|| scope.query(), |spec| scope.or(spec));
            let list = list.clone().unwrap_or(name);
            (exported::sort(items, SystemTime::now()), scope, list)
        }
        None if text.len() > BULK_BYTES => {
            (Sorted::of_lines(file, &text), scope.query(), options.list().to_owned())
        }
        None => {
            return import_text(
                client,
                output,
                (file, text),
                options,
                (scope, safety),
                skip_errors,
            );
        }
    };
    drop(text);
    if !skip_errors && !sorted.wrong.is_empty() {
        let wrong: Vec<&str> = sorted.wrong.iter().map(|wrong| wrong.message.as_str()).collect();
        bail!("{}: nothing is put on the list:\n{}", file.display(), wrong.join("\n"));
    }
    let on_error = ("on_error", skip_errors.then_some("skip"));
    let about: Vec<_> =
        [on_error].into_iter().chain(safety.query()).chain(borrowed(&scope)).collect();
    let path = format!("{}/entries{}", path(&list), query(&about));
    let common = Common { ttl: ttl.as_deref(), reason: reason.as_deref() };
    common.check()?;
    let target = Target { client, list: &list, path };
    let done = target.put(&sorted, common, safety.confirm.is_some())?;
    changed(client, output, &serde_json::to_value(done)?, &list, safety)
}

fn import_text(
    client: &Client,
    output: &Output,
    (file, text): (&Path, Vec<u8>),
    options: &EntryOptions,
    (scope, safety): (&ScopeOptions, &SafetyOptions),
    skip_errors: bool,
) -> anyhow::Result<()> {
    let (list, EntryOptions { ttl, reason, .. }) = (options.list(), options);
    if !skip_errors {
        check(file, &text, "nothing is put on the list")?;
    }
    let [force, confirm] = safety.query();
    let on_error = ("on_error", skip_errors.then_some("skip"));
    let (ttl, reason) = (("ttl", ttl.as_deref()), ("reason", reason.as_deref()));
    let scope = scope.query();
    let options: Vec<_> =
        [ttl, reason, on_error, force, confirm].into_iter().chain(borrowed(&scope)).collect();
    let query = query(&options);
    let value = client.upload(&format!("{}/entries{query}", path(list)), text)?;
    changed(client, output, &value, list, safety)
}

pub(super) fn set(
    client: &Client,
    output: &Output,
    list: &str,
    action: &str,
    safety: &SafetyOptions,
) -> anyhow::Result<()> {
    let body = json!({ "action": action });
    let path = format!("{}{}", path(list), query(&safety.query()));
    let value = client.change(Method::PUT, &path, Some(&body), Guard::default())?;
    output.done(&value, &format!("packets of the list {list} meet: {action}"))?;
    await_confirmation(client, safety)
}

pub(super) fn delete(
    client: &Client,
    output: &Output,
    cidrs: &[String],
    list: &str,
) -> anyhow::Result<()> {
    let path = format!("{}/remove", path(list));
    let value = client.change(Method::POST, &path, Some(&entries(cidrs)), Guard::default())?;
    let Removed { removed, missing } = serde_json::from_value(value.clone())?;
    let names =
        |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !removed.is_empty() {
        output.done(&value, &format!("{} off the list {list}", names(&removed)))?;
    }
    if !missing.is_empty() {
        bail!("{} not on the list {list}", names(&missing));
    }
    Ok(())
}

fn changed(
    client: &Client,
    output: &Output,
    value: &Value,
    list: &str,
    safety: &SafetyOptions,
) -> anyhow::Result<()> {
    let Changed { added, replaced, skipped, errors, .. } = serde_json::from_value(value.clone())?;
    let mut sentence = format!("{} on the list {list}", number(added));
    if replaced > 0 {
        sentence.push_str(&format!(" and {} renewed", number(replaced)));
    }
    sentence.push_str(", in force");
    if skipped > 0 {
        sentence.push_str(&format!("; {} are wrong and left out:", number(skipped)));
        errors.iter().for_each(|error| sentence.push_str(&format!("\n  {}", error.message)));
    }
    output.done(value, &sentence)?;
    await_confirmation(client, safety)
}

/// At a terminal, Enter confirms: who has cut off their own session cannot press it.
fn await_confirmation(client: &Client, safety: &SafetyOptions) -> anyhow::Result<()> {
    let Some(confirm) = &safety.confirm else { return Ok(()) };
    let mut stderr = io::stderr();
    if !io::stdin().is_terminal() {
        let text = format!("taken back in {confirm} unless `lbctl prefilter confirm` is run");
        return Ok(writeln!(stderr, "{text}")?);
    }
    write!(stderr, "press Enter to keep it; it is taken back in {confirm} ")?;
    stderr.flush()?;
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line)? == 0 {
        bail!("not confirmed: it is taken back in time");
    }
    client.change(Method::POST, CONFIRM, None, Guard::default())?;
    Ok(writeln!(stderr, "confirmed: the change stays")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_which_packets_it_is_about() {
        let mut plan = Plan {
            list: "web".to_owned(),
            action: "drop".to_owned(),
            scope: Some("tcp to 80".to_owned()),
            new: 1,
            known: 2000,
            addresses_v4: 256,
            covered: Vec::new(),
            covered_total: 0,
            needs_force: false,
            passed_packets: 70,
            would_drop_packets: 7,
            would_drop_least: 3,
            would_drop_most: 1200,
            samples: 9,
            would_drop: Vec::new(),
        };
        let text = page(&plan);
        assert!(
            text.starts_with("1 new on the list web (drop, only packets tcp to 80), 2,000"),
            "{text}"
        );
        let want = "of 70 packets that passed in the last minute it would have dropped 7 (3 to 1,200, by 9 samples)";
        assert!(text.contains(want), "{text}");
        (plan.would_drop_least, plan.would_drop_most) = (7, 7);
        assert!(page(&plan).contains("would have dropped 7 (each packet was looked at)"));
        (plan.would_drop_least, plan.would_drop_most) = (0, 0);
        assert!(page(&plan).contains("would have dropped 7 (by 9 samples)"));
        plan.action = "audit".to_owned();
        plan.scope = None;
        let text = page(&plan);
        assert!(text.starts_with("1 new on the list web (audit), 2,000"), "{text}");
        assert!(text.contains("would have counted, and let pass, 7 ("), "{text}");
    }
}
