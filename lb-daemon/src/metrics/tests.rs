use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::api::testing::{FakeCounters, START, view};

fn page(view: &View) -> String {
    render(view, &FakeCounters, START + std::time::Duration::from_secs(90))
}

/// Reads the text format strictly: name -> (type, series with value).
fn parse(text: &str) -> BTreeMap<String, (String, BTreeMap<String, f64>)> {
    let mut families = BTreeMap::<String, (String, BTreeMap<String, f64>)>::new();
    let mut current = String::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(!help.is_empty());
            current = name.to_owned();
            let fresh = families.insert(current.clone(), (String::new(), BTreeMap::new()));
            assert!(fresh.is_none(), "{name} stands in two places");
            continue;
        }
        let family = families.get_mut(&current).expect("HELP comes first");
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, current);
            assert!(family.0.is_empty() && matches!(kind, "counter" | "gauge"));
            family.0 = kind.to_owned();
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert_eq!(name, current);
        check_labels(labels);
        let fresh = family.1.insert(series.to_owned(), value.parse().unwrap());
        assert!(fresh.is_none(), "{series} stands twice");
    }
    families
}

fn check_labels(mut rest: &str) {
    loop {
        if rest == "}" {
            return;
        }
        let (name, value) = rest.split_once("=\"").expect("a label has a value");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next().expect("the value ends") {
                (_, '\\') => assert!(matches!(chars.next().unwrap().1, '\\' | '"' | 'n')),
                (end, '"') => break end,
                _ => {}
            }
        };
        rest = &value[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[test]
fn the_page_is_valid_and_complete() {
    let families = parse(&page(&view()));
    let names: BTreeSet<_> = families.keys().map(String::as_str).collect();
    assert_eq!(names, METRICS.iter().map(|m| m.name).collect());
    for metric in METRICS {
        let (kind, series) = &families[metric.name];
        assert_eq!(metric.name.ends_with("_total"), kind == "counter", "{}", metric.name);
        assert!(!series.is_empty(), "{}", metric.name);
        assert!(metric.name.starts_with("lb_") && metric.help.ends_with('.'));
    }
}

#[test]
fn numbers_are_those_of_the_counters() {
    let families = parse(&page(&view()));
    for (name, series, value) in [
        ("lb_process_uptime_seconds", "", 90.0),
        ("lb_process_ready", "", 0.0),
        ("lb_config_apply_seconds", "", 0.001_234),
        ("lb_interface_attached", "{interface=\"eth1\",mode=\"none\"}", 0.0),
        (
            "lb_service_packets_total",
            "{service=\"web\",address=\"2001:db8::10\",port=\"443\",protocol=\"tcp\"}",
            1_000_010.0,
        ),
        ("lb_backend_healthy", "{service=\"api\",backend=\"web-2\",address=\"2001:db8::12\"}", 0.0),
        (
            "lb_backend_slots",
            "{service=\"api\",backend=\"web-1\",address=\"10.0.1.11\",state=\"active\"}",
            65_521.0,
        ),
        ("lb_prefilter_hits_total", "{list=\"watch\",action=\"audit\"}", 3_000_001.0),
        ("lb_datapath_packets_total", "{reason=\"blocked\",verdict=\"drop\"}", 1234.0),
        ("lb_map_entries", "{map=\"PREFIX_BLOCKS\"}", 950.0),
    ] {
        let found = families[name].1.get(&format!("{name}{series}"));
        assert_eq!(found, Some(&value), "{name}{series}");
    }
    assert!(!families["lb_map_entries"].1.contains_key("lb_map_entries{map=\"CONNECTIONS\"}"));
}

#[test]
fn labels_are_escaped() {
    let mut view = view();
    view.lists[0].name = "a\\b\"c\nd}, é".to_owned();
    let text = page(&view);
    parse(&text);
    assert!(text.contains("{list=\"a\\\\b\\\"c\\nd}, é\",action=\"drop\"}"));
}

fn repository(path: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../").to_owned() + path;
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every word that looks like a metric.
fn names_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("lb_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_documentation_names_all_and_only_these() {
    let known: BTreeSet<_> = METRICS.iter().map(|m| m.name.to_owned()).collect();
    assert_eq!(names_in(&repository("docs/metrics.md")), known);
}

#[test]
fn the_dashboard_uses_only_these() {
    let text = repository("config/grafana/lb.json");
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut expressions = Vec::new();
    collect(&dashboard, &mut expressions);
    assert!(expressions.len() > 10);
    for expression in expressions {
        let names = names_in(&expression);
        assert!(!names.is_empty(), "{expression}");
        for name in names {
            assert!(METRICS.iter().any(|m| m.name == name), "{name} in {expression}");
        }
    }
}

fn collect(value: &serde_json::Value, expressions: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            if let Some(serde_json::Value::String(expression)) = fields.get("expr") {
                expressions.push(expression.clone());
            }
            fields.values().for_each(|value| collect(value, expressions));
        }
        serde_json::Value::Array(items) => {
            items.iter().for_each(|value| collect(value, expressions));
        }
        _ => {}
    }
}
