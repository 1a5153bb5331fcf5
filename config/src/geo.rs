//! Tables of countries and of network numbers (ASN): which prefix belongs to which.
//!
//! Read from CSV in the forms that are common: MaxMind's GeoLite2 (blocks and locations of countries, blocks of
//! ASN), `network,value` and `start,end,value`, with or without a line of titles, quoted or not. The form is found
//! out from the content. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

use crate::{Fault, Net4, PrefixSet, fault::show};

/// Faults of one file that are listed.
const MAX_FAULTS: usize = 20;

/// An ISO 3166 code of a country: two capital letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

impl Country {
    /// Reads a code, in letters of either case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.as_bytes() {
            [a, b] if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => {
                Some(Self([a.to_ascii_uppercase(), b.to_ascii_uppercase()]))
            }
            _ => None,
        }
    }

    fn value(self) -> u32 {
        u16::from_be_bytes(self.0).into()
    }

    fn of(value: u32) -> Self {
        Self((value as u16).to_be_bytes())
    }
}

impl std::fmt::Display for Country {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|c| write!(f, "{}", char::from(*c)))
    }
}

/// Names of networks by their number.
pub(crate) type Names = BTreeMap<u32, Arc<str>>;

/// What is known of addresses: their countries and their networks' numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Geo {
    pub(crate) countries: Table,
    pub(crate) asns: Table,
    pub(crate) names: Names,
}

impl Geo {
    /// The country that an address is said to be in.
    #[must_use]
    pub fn country(&self, ip: IpAddr) -> Option<Country> {
        self.countries.get(ip).map(Country::of)
    }

    /// The number of the network that announces an address, and its name.
    #[must_use]
    pub fn asn(&self, ip: IpAddr) -> Option<(u32, Option<&Arc<str>>)> {
        let number = self.asns.get(ip)?;
        Some((number, self.names.get(&number)))
    }

    /// The prefixes of these countries and networks.
    #[must_use]
    pub fn prefixes(&self, countries: &[Country], asns: &[u32]) -> PrefixSet {
        let countries: Vec<u32> = countries.iter().map(|country| country.value()).collect();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        self.countries.select(&countries, &mut v4, &mut v6);
        self.asns.select(asns, &mut v4, &mut v6);
        PrefixSet::new(v4, v6)
    }
}

/// Prefixes, each with a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    prefixes: PrefixSet,
    /// In the order of `prefixes.v4()`, and then of `prefixes.v6()`.
    values: Vec<u32>,
}

impl Table {
    /// Of prefixes that are there twice, the last one counts.
    fn new(mut v4: Vec<(Net4, u32)>, mut v6: Vec<(Ipv6Net, u32)>) -> Self {
        last_of_each(&mut v4);
        last_of_each(&mut v6);
        let values = v4.iter().map(|(_, value)| *value).chain(v6.iter().map(|(_, value)| *value));
        let values = values.collect();
        let v4 = v4.into_iter().map(|(net, _)| net).collect();
        let v6 = v6.into_iter().map(|(net, _)| net).collect();
        Self { prefixes: PrefixSet::new(v4, v6), values }
    }

    fn get(&self, ip: IpAddr) -> Option<u32> {
        let at = match self.prefixes.longest(ip.to_canonical(), 128)? {
            IpNet::V4(net) => self.prefixes.v4().binary_search(&net.into()).ok()?,
            IpNet::V6(net) => {
                self.prefixes.v4().len() + self.prefixes.v6().binary_search(&net).ok()?
            }
        };
        self.values.get(at).copied()
    }

    fn select(&self, wanted: &[u32], v4: &mut Vec<Net4>, v6: &mut Vec<Ipv6Net>) {
        let (values4, values6) = self.values.split_at(self.prefixes.v4().len());
        let is_wanted = |value: &u32| wanted.contains(value);
        let nets = self.prefixes.v4().iter().zip(values4);
        v4.extend(nets.filter(|(_, value)| is_wanted(value)).map(|(net, _)| *net));
        let nets = self.prefixes.v6().iter().zip(values6);
        v6.extend(nets.filter(|(_, value)| is_wanted(value)).map(|(net, _)| *net));
    }
}

fn last_of_each<T: Ord + Copy>(pairs: &mut Vec<(T, u32)>) {
    // Stable: later lines stay behind earlier ones.
    pairs.sort_by_key(|(net, _)| *net);
    pairs.reverse();
    pairs.dedup_by_key(|(net, _)| *net);
    pairs.reverse();
}

/// What tables tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    Country,
    Asn,
}

/// Reads the files of one kind of table.
#[derive(Debug)]
pub(crate) struct Reader {
    what: What,
    v4: Vec<(Net4, u32)>,
    v6: Vec<(Ipv6Net, u32)>,
    /// Numbers of places, as MaxMind's blocks have them, to be resolved at the end.
    places4: Vec<(Net4, u32)>,
    places6: Vec<(Ipv6Net, u32)>,
    locations: BTreeMap<u32, Country>,
    names: Names,
    pub(crate) faults: Vec<Fault>,
    wrong: u64,
}

/// Which column holds what.
#[derive(Clone, Debug, Default)]
struct Columns {
    network: Option<usize>,
    start: Option<usize>,
    end: Option<usize>,
    value: Option<usize>,
    name: Option<usize>,
    place: Option<usize>,
    other_place: Option<usize>,
}

impl Reader {
    pub(crate) fn new(what: What) -> Self {
        Self {
            what,
            v4: Vec::new(),
            v6: Vec::new(),
            places4: Vec::new(),
            places6: Vec::new(),
            locations: BTreeMap::new(),
            names: BTreeMap::new(),
            faults: Vec::new(),
            wrong: 0,
        }
    }

    /// Reads a file; its wrong lines are noted.
    pub(crate) fn read(&mut self, path: &Path, bytes: &[u8]) {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut columns: Option<Columns> = None;
        let mut fields = Vec::new();
        for (n, line) in (1u32..).zip(bytes.split(|c| *c == b'\n')) {
            let line = String::from_utf8_lossy(line.trim_ascii());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            split(&line, &mut fields);
            let columns = match &mut columns {
                Some(columns) => columns,
                None => {
                    let titles = self.titles(&fields);
                    let is_title = titles.is_some();
                    let found = titles.unwrap_or_else(|| self.untitled(&fields));
                    let columns = columns.insert(found);
                    if is_title {
                        continue;
                    }
                    columns
                }
            };
            if let Err(message) = self.row(columns, &fields) {
                self.note(path, n, message);
            }
        }
    }

    fn note(&mut self, path: &Path, line: u32, message: String) {
        self.wrong += 1;
        if self.faults.len() < MAX_FAULTS {
            let help = match self.what {
                What::Country => {
                    "allowed: network,country or start,end,country, as 192.0.2.0/24,XX"
                }
                What::Asn => {
                    "allowed: network,number,name or start,end,number,name, as 192.0.2.0/24,64496,Us"
                }
            };
            let (path, help) = (path.to_path_buf(), help.to_owned());
            self.faults.push(Fault { path, line, column: 1, message, help });
        }
    }

    /// The columns of a line of titles; `None`: it is none.
    fn titles(&self, fields: &[String]) -> Option<Columns> {
        let at = |names: &[&str]| {
            fields
                .iter()
                .position(|field| names.iter().any(|name| field.eq_ignore_ascii_case(name)))
        };
        let columns = Columns {
            network: at(&["network", "cidr", "prefix"]),
            start: at(&[
                "start",
                "start_ip",
                "ip_start",
                "ip_range_start",
                "range_start",
                "ip_from",
            ]),
            end: at(&["end", "end_ip", "ip_end", "ip_range_end", "range_end", "ip_to"]),
            value: match self.what {
                What::Country => at(&["country_iso_code", "country_code", "country", "cc"]),
                What::Asn => at(&["autonomous_system_number", "asn", "as_number", "as"]),
            },
            name: at(&[
                "autonomous_system_organization",
                "as_name",
                "as_description",
                "organization",
                "org",
                "name",
            ]),
            place: at(&["geoname_id"]),
            other_place: at(&["registered_country_geoname_id"]),
        };
        let any = columns.network.or(columns.start).or(columns.place);
        any.map(|_| columns)
    }

    /// The columns of a file without titles, by its first line.
    fn untitled(&self, fields: &[String]) -> Columns {
        let is_range = fields.get(1).is_some_and(|field| address(field).is_some())
            && fields.first().is_some_and(|field| !field.contains('/'))
            && fields.len() > 2;
        let (network, start, end, value) =
            if is_range { (None, Some(0), Some(1), 2) } else { (Some(0), None, None, 1) };
        let name = Some(value + 1);
        Columns { network, start, end, value: Some(value), name, ..Columns::default() }
    }

    fn row(&mut self, columns: &Columns, fields: &[String]) -> Result<(), String> {
        let field = |at: Option<usize>| at.and_then(|at| fields.get(at)).map(String::as_str);
        let value = field(columns.value).filter(|value| !value.is_empty() && *value != "-");
        if columns.network.is_none() && columns.start.is_none() {
            return self.location(field(columns.place), value);
        }
        let nets = nets(field(columns.network), field(columns.start), field(columns.end))?;
        if columns.value.is_none() && columns.place.is_some() {
            let own = field(columns.place).filter(|place| !place.is_empty());
            // Networks of nowhere, such as of satellites, have none.
            let Some(place) = own.or_else(|| field(columns.other_place)).filter(|p| !p.is_empty())
            else {
                return Ok(());
            };
            let number = place.parse().map_err(|_| format!("{} is not a number", show(place)))?;
            put(nets, number, &mut self.places4, &mut self.places6);
            return Ok(());
        }
        let Some(value) = value else { return Ok(()) };
        let number = match self.what {
            What::Country => Country::parse(value)
                .ok_or_else(|| format!("{} is not a country code", show(value)))?
                .value(),
            What::Asn => {
                let digits = value.strip_prefix("AS").or_else(|| value.strip_prefix("as"));
                let digits = digits.unwrap_or(value);
                digits.parse().map_err(|_| format!("{} is not a network number", show(value)))?
            }
        };
        if self.what == What::Asn
            && let Some(name) = field(columns.name).filter(|name| !name.is_empty())
        {
            self.names
                .entry(number)
                .or_insert_with(|| name.chars().take(120).collect::<String>().into());
        }
        put(nets, number, &mut self.v4, &mut self.v6);
        Ok(())
    }

    fn location(&mut self, place: Option<&str>, country: Option<&str>) -> Result<(), String> {
        let place = place.unwrap_or_default();
        let number = place.parse().map_err(|_| format!("{} is not a number", show(place)))?;
        // A continent is a place without a country.
        if let Some(country) = country {
            let code = Country::parse(country)
                .ok_or_else(|| format!("{} is not a country code", show(country)))?;
            self.locations.insert(number, code);
        }
        Ok(())
    }

    /// The table of all that was read, or what is wrong.
    pub(crate) fn finish(mut self) -> Result<(Table, Names), Vec<Fault>> {
        if let Some(last) = self.faults.last().cloned() {
            let unlisted = self.wrong.saturating_sub(self.faults.len() as u64);
            if unlisted > 0 {
                let message = format!("{unlisted} more lines of the tables are wrong");
                self.faults.push(Fault { message, help: String::new(), ..last });
            }
            return Err(self.faults);
        }
        let of = |place: u32| self.locations.get(&place).map(|country| country.value());
        self.v4.extend(self.places4.iter().filter_map(|(net, place)| Some((*net, of(*place)?))));
        self.v6.extend(self.places6.iter().filter_map(|(net, place)| Some((*net, of(*place)?))));
        Ok((Table::new(self.v4, self.v6), self.names))
    }

    /// Whether places were named that no file of locations has.
    pub(crate) fn lacks_locations(&self) -> bool {
        self.locations.is_empty() && !(self.places4.is_empty() && self.places6.is_empty())
    }
}

fn put(nets: Vec<IpNet>, value: u32, v4: &mut Vec<(Net4, u32)>, v6: &mut Vec<(Ipv6Net, u32)>) {
    for net in nets {
        match net {
            IpNet::V4(net) => v4.push((net.into(), value)),
            IpNet::V6(net) => v6.push((net.trunc(), value)),
        }
    }
}

/// The prefixes of a line: one, or those that make up a range.
fn nets(
    network: Option<&str>,
    start: Option<&str>,
    end: Option<&str>,
) -> Result<Vec<IpNet>, String> {
    if let Some(network) = network {
        let net = network.parse::<IpNet>().ok().or_else(|| address(network).map(IpNet::from));
        return net
            .map(|net| vec![net])
            .ok_or_else(|| format!("{} is not a prefix", show(network)));
    }
    let [start, end] = [start, end].map(Option::unwrap_or_default);
    let wrong = |text: &str| format!("{} is not an address", show(text));
    let first = address(start).ok_or_else(|| wrong(start))?;
    let last = address(end).ok_or_else(|| wrong(end))?;
    match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) if a <= b => {
            Ok(Ipv4Subnets::new(a, b, 0).map(IpNet::V4).collect())
        }
        (IpAddr::V6(a), IpAddr::V6(b)) if a <= b => {
            Ok(Ipv6Subnets::new(a, b, 0).map(IpNet::V6).collect())
        }
        _ => Err(format!("{} to {} is not a range", show(start), show(end))),
    }
}

/// An address, also as a decimal number.
fn address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let number: u128 = text.parse().ok()?;
    match u32::try_from(number) {
        Ok(number) => Some(Ipv4Addr::from(number).into()),
        Err(_) => Some(Ipv6Addr::from(number).into()),
    }
}

/// The fields of a line (RFC 4180, without line ends in fields).
fn split(line: &str, fields: &mut Vec<String>) {
    fields.clear();
    let (mut field, mut quoted) = (String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field).trim().to_owned()),
            c => field.push(c),
        }
    }
    fields.push(field.trim().to_owned());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(what: What, files: &[&str]) -> Geo {
        let mut reader = Reader::new(what);
        for file in files {
            reader.read(Path::new("t.csv"), file.as_bytes());
        }
        let (table, names) = reader.finish().unwrap();
        match what {
            What::Country => Geo { countries: table, ..Geo::default() },
            What::Asn => Geo { asns: table, names, ..Geo::default() },
        }
    }

    fn country(geo: &Geo, ip: &str) -> Option<String> {
        geo.country(ip.parse().unwrap()).map(|country| country.to_string())
    }

    #[test]
    fn countries_of_maxmind() {
        let v4 = "network,geoname_id,registered_country_geoname_id,represented_country_geoname_id,is_anonymous_proxy,is_satellite_provider\n\
                  192.0.2.0/25,1,2,,0,0\n192.0.2.128/25,,2,,0,0\n198.51.100.0/24,,,,0,1\n";
        let v6 = "network,geoname_id,registered_country_geoname_id\n2001:db8::/33,2,\n";
        let places = "geoname_id,locale_code,continent_code,continent_name,country_iso_code,country_name\n\
                      1,en,EU,Europe,AA,\"Aland, upper\"\n2,en,EU,Europe,BB,Beland\n3,en,AS,Asia,,\n";
        for files in [[v4, v6, places], [places, v6, v4]] {
            let geo = table(What::Country, &files);
            assert_eq!(country(&geo, "192.0.2.1").as_deref(), Some("AA"));
            assert_eq!(country(&geo, "192.0.2.200").as_deref(), Some("BB"));
            assert_eq!(country(&geo, "198.51.100.1"), None);
            assert_eq!(country(&geo, "2001:db8::1").as_deref(), Some("BB"));
            let nets = geo.prefixes(&[Country::parse("bb").unwrap()], &[]);
            let nets: Vec<String> = nets.iter().map(|net| net.to_string()).collect();
            assert_eq!(nets, ["192.0.2.128/25", "2001:db8::/33"]);
        }
        let mut alone = Reader::new(What::Country);
        alone.read(Path::new("b.csv"), v4.as_bytes());
        assert!(alone.lacks_locations());
    }

    #[test]
    fn ranges_networks_and_numbers() {
        let geo = table(
            What::Country,
            &[
                "192.0.2.3,192.0.2.10,AA\n2001:db8::,2001:db8::ffff,bb\n",
                "\"3325256704\",\"3325256959\",\"CC\",\"Celand\"\n\"3325256960\",\"3325256960\",\"-\",\"-\"\n",
                "# ours\ncidr,cc\n203.0.113.0/24,DD\n203.0.113.7/32,EE\n",
            ],
        );
        for (ip, of) in [
            ("192.0.2.2", None),
            ("192.0.2.3", Some("AA")),
            ("192.0.2.10", Some("AA")),
            ("192.0.2.11", None),
            ("2001:db8::1", Some("BB")),
            ("198.51.100.255", Some("CC")),
            ("198.51.101.0", None),
            ("203.0.113.6", Some("DD")),
            ("203.0.113.7", Some("EE")),
            ("::ffff:203.0.113.7", Some("EE")),
        ] {
            assert_eq!(country(&geo, ip).as_deref(), of, "{ip}");
        }

        let asns = table(
            What::Asn,
            &[
                "network,autonomous_system_number,autonomous_system_organization\n192.0.2.0/24,64496,\"Us, \"\"Inc\"\"\"\n",
                "198.51.100.0,198.51.100.255,AS64497,Them\n",
                "2001:db8::/32,4200000000\n",
            ],
        );
        let asn = |ip: &str| asns.asn(ip.parse().unwrap());
        assert_eq!(asn("192.0.2.1"), Some((64496, Some(&Arc::from("Us, \"Inc\"")))));
        assert_eq!(asn("198.51.100.1").unwrap().0, 64497);
        assert_eq!(asn("2001:db8::1"), Some((4_200_000_000, None)));
        assert_eq!(asns.prefixes(&[], &[64496, 4_200_000_000]).len(), 2);
    }

    #[test]
    fn wrong_lines_are_named() {
        let mut reader = Reader::new(What::Country);
        let text = "192.0.2.0/24,AA\n192.0.2.0/33,AA\n192.0.2.0/24,Aland\n\nx\n192.0.2.9\n";
        reader.read(Path::new("t.csv"), text.as_bytes());
        let faults = reader.finish().unwrap_err();
        let lines: Vec<u32> = faults.iter().map(|fault| fault.line).collect();
        assert_eq!(lines, [2, 3, 5], "{faults:?}");
        assert!(faults[1].to_string().starts_with("t.csv:3:1: `Aland` is not a country code"));
        let mut reader = Reader::new(What::Asn);
        reader.read(Path::new("t.csv"), b"9.9.9.9,1.1.1.1,1\n192.0.2.0/24,none\n");
        assert_eq!(reader.finish().unwrap_err().len(), 2);
    }

    proptest! {
        #[test]
        fn no_text_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            for what in [What::Country, What::Asn] {
                let mut reader = Reader::new(what);
                reader.read(Path::new("t.csv"), &bytes);
                let _ = reader.finish();
            }
        }

        /// A range is the prefixes that make it up, and no address more.
        #[test]
        fn ranges_are_exact(a: u32, len in 0u32..5000, off in 0u32..6000) {
            let b = a.saturating_add(len);
            let text = format!("{},{},XX\n", Ipv4Addr::from(a), Ipv4Addr::from(b));
            let geo = table(What::Country, &[&text]);
            let ip = a.wrapping_sub(500).wrapping_add(off);
            prop_assert_eq!(geo.country(Ipv4Addr::from(ip).into()).is_some(), (a..=b).contains(&ip));
        }
    }
}
