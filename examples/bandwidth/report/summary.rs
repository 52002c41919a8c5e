//! The page's first tables, out of all that was measured: time over tokens, halves beside whole operations, time over SMs, even beside uneven routing,
//! and what others have published.
use std::fmt::Write;

use super::record::{Measured, Outcome, Report, Row};
use super::routing::Routing;
use super::table::table;

/// SMs and tokens that are shown where they were measured, else the fewest SMs and the most tokens.
const SMS: u32 = 16;
const TOKENS: u32 = 4096;

/// Writes them.
pub fn write(out: &mut String, report: &Report) {
    let all = Measurements(report);
    let (layouts, formats) = (all.distinct(|row| row.layout.as_str()), all.distinct(|row| row.format.as_str()));
    let (mut tokens, mut sms) = (all.distinct(|row| row.tokens), all.distinct(|row| row.sms));
    tokens.sort_unstable();
    sms.sort_unstable();
    let routings = all.distinct(|row| row.routing);
    let (Some(&layout), Some(&routing), Some(&fewest), Some(&most)) =
        (layouts.first(), routings.first(), sms.first(), sms.last())
    else {
        return;
    };
    let few = if sms.contains(&SMS) { SMS } else { fewest };
    let many = if tokens.contains(&TOKENS) { TOKENS } else { tokens.last().copied().unwrap_or(0) };
    // What is dispatched in each format, and what is summed, which has none.
    let operations: Vec<(&str, &str)> =
        formats.iter().map(|format| ("dispatch", *format)).chain([("combine", formats[0])]).collect();

    let _ = writeln!(out, "## Over tokens: {few} SMs, {} routing\n", routing.name());
    let mut header = vec!["tokens".to_owned(), "rows".to_owned()];
    let columns = |of: &(&str, &str)| [name(of) + " us", "p95".to_owned(), "planner".to_owned(), "GB/s".to_owned()];
    header.extend(operations.iter().flat_map(columns));
    header.extend(["cached dispatch", "pair in a graph"].map(|name| format!("{name} {} us", formats[0])));
    let mut rows = Vec::new();
    for &tokens in &tokens {
        for &layout in &layouts {
            let of = |operation: &str, format: &str| all.of(operation, format, (layout, routing, tokens, few));
            let mut cells = vec![tokens.to_string(), layout.to_owned()];
            for (operation, format) in &operations {
                let measured = of(operation, format);
                cells.extend([said(measured, |m| Some(m.median_us)), said(measured, |m| Some(m.p95_us))]);
                cells.extend([said(measured, |m| m.predicted_us), said(measured, |m| Some(m.from_others_gb_s))]);
            }
            let others = ["cached dispatch", "pair in a graph"];
            cells.extend(others.map(|operation| said(of(operation, formats[0]), |m| Some(m.median_us))));
            if cells[2..].iter().any(|cell| cell != NOTHING) {
                rows.push(cells);
            }
        }
    }
    table(out, &header.iter().map(String::as_str).collect::<Vec<_>>(), rows.into_iter());

    halves(out, &all, (&formats, &tokens), (routing, few));

    let _ = writeln!(out, "## Over SMs: {layout} rows, {many} tokens, {} routing\n", routing.name());
    let mut header = vec!["SMs".to_owned()];
    header
        .extend(operations.iter().flat_map(|of| [format!("{} us", name(of)), "GB/s".to_owned(), "planner".to_owned()]));
    let rows = sms.iter().map(|&sms| {
        let cells = operations.iter().flat_map(|(operation, format)| {
            let of = all.of(operation, format, (layout, routing, many, sms));
            [said(of, |m| Some(m.median_us)), said(of, |m| Some(m.from_others_gb_s)), said(of, |m| m.predicted_us)]
        });
        [sms.to_string()].into_iter().chain(cells).collect()
    });
    table(out, &header.iter().map(String::as_str).collect::<Vec<_>>(), rows);

    if routings.len() > 1 {
        uneven(
            out,
            &all,
            &operations,
            (&layouts, &routings, many, if few == most { vec![few] } else { vec![few, most] }),
        );
    }
    published(out, &all, (&layouts, &formats, routing, few));
}

/// What a page's tables show of each of several things: layouts, routings, tokens, SMs.
type Shown<'s> = (&'s [&'s str], &'s [Routing], u32, Vec<u32>);

/// Even and uneven routing.
fn uneven(
    out: &mut String,
    all: &Measurements<'_>,
    operations: &[(&str, &str)],
    (layouts, routings, many, sms): Shown<'_>,
) {
    let _ = writeln!(out, "## Even and uneven routing: {many} tokens\n");
    let mut header = vec!["rows".to_owned(), "SMs".to_owned(), "routing".to_owned()];
    let columns = |of: &(&str, &str)| [format!("{} us", name(of)), "planner".to_owned(), "busiest GB/s".to_owned()];
    header.extend(operations.iter().flat_map(columns));
    let mut rows = Vec::new();
    for &layout in layouts {
        for &sms in &sms {
            for &routing in routings {
                let mut cells = vec![layout.to_owned(), sms.to_string(), routing.name().to_owned()];
                for (operation, format) in operations {
                    let of = all.of(operation, format, (layout, routing, many, sms));
                    let values: [fn(&Measured) -> Option<f64>; 3] =
                        [|m| Some(m.median_us), |m| m.predicted_us, |m| m.busiest_gb_s];
                    cells.extend(values.map(|value| said(of, value)));
                }
                if cells[3..].iter().any(|cell| cell != NOTHING) {
                    rows.push(cells);
                }
            }
        }
    }
    table(out, &header.iter().map(String::as_str).collect::<Vec<_>>(), rows.into_iter());
}

/// Halves beside the whole operations that they are, where rows have them.
fn halves(
    out: &mut String,
    all: &Measurements<'_>,
    (formats, tokens): (&[&str], &[u32]),
    (routing, sms): (Routing, u32),
) {
    const OPERATIONS: [&str; 6] = [
        "dispatch",
        "dispatch, send half",
        "dispatch, receive half",
        "combine",
        "combine, send half",
        "combine, receive half",
    ];
    let layout = "rank-major";
    let mut rows = Vec::new();
    for tokens in tokens {
        for format in formats {
            let of = OPERATIONS.map(|operation| all.of(operation, format, (layout, routing, *tokens, sms)));
            if of[1].is_some() {
                let us = of.map(|of| said(of, |m| Some(m.median_us)));
                rows.push([tokens.to_string(), (*format).to_owned()].into_iter().chain(us).collect());
            }
        }
    }
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "## By halves: {layout} rows, {sms} SMs, {} routing\n\nMedian us. Receiving a dispatch holds one SM, sending a combine too.\n",
        routing.name()
    );
    table(out, &[&["tokens", "format"][..], &OPERATIONS].concat(), rows.into_iter());
}

/// Tokens, dispatch and combine in us of what others have published, what it is, and where it ran. There is nothing of Hopper at 4096 tokens.
const PUBLISHED: (u32, f64, f64, &str, &str) =
    (128, 32.0, 42.7, "DeepEP V2, a third party's figures", "8 x H20, 384 experts");

/// What others have published beside what is here.
fn published(
    out: &mut String,
    all: &Measurements<'_>,
    (layouts, formats, routing, sms): (&[&str], &[&str], Routing, u32),
) {
    let (tokens, dispatch, combine, what, place) = PUBLISHED;
    let setting = &all.0.setting;
    let mut rows = Vec::new();
    for layout in layouts {
        for format in formats {
            let of = ["dispatch", "combine"].map(|of| all.of(of, format, (layout, routing, tokens, sms)));
            if of[0].is_some() {
                let us = of.map(|of| said(of, |m| Some(m.median_us)));
                let here = format!("{} ranks, {} experts", setting.ranks, setting.experts);
                rows.push([format!("here: {layout} rows, {format}, {sms} SMs"), here].into_iter().chain(us).collect());
            }
        }
    }
    if rows.is_empty() {
        return;
    }
    let of_others = [what.to_owned(), place.to_owned(), format!("{dispatch:.1}"), format!("{combine:.1}")];
    rows.insert(0, of_others.to_vec());
    let _ = writeln!(out, "## Published beside: {tokens} tokens\n");
    table(out, &["what", "where", "dispatch us", "combine us"], rows.into_iter());
}

/// Where there is no number.
const NOTHING: &str = "-";

/// A report's measurements, to be found by what they are of.
struct Measurements<'r>(&'r Report);

impl<'r> Measurements<'r> {
    /// What there is of something, in the order in which it was measured.
    fn distinct<T: PartialEq>(&self, of: impl Fn(&'r Row) -> T) -> Vec<T> {
        let mut distinct = Vec::new();
        for value in self.0.rows.iter().map(of) {
            if !distinct.contains(&value) {
                distinct.push(value);
            }
        }
        distinct
    }

    fn of(
        &self,
        operation: &str,
        format: &str,
        (layout, routing, tokens, sms): (&str, Routing, u32, u32),
    ) -> Option<&'r Measured> {
        let is = |row: &&Row| {
            (row.operation.as_str(), row.format.as_str(), row.layout.as_str()) == (operation, format, layout)
                && (row.routing, row.tokens, row.sms) == (routing, tokens, sms)
        };
        match &self.0.rows.iter().find(is)?.outcome {
            Outcome::Measured(measured) => Some(measured),
            Outcome::Failed(_) => None,
        }
    }
}

/// An operation's name above a column.
fn name((operation, format): &(&str, &str)) -> String {
    if *operation == "combine" { (*operation).to_owned() } else { format!("{operation} {format}") }
}

/// A number with three digits, or more where it is above 1000.
fn said(of: Option<&Measured>, value: impl Fn(&Measured) -> Option<f64>) -> String {
    match of.and_then(value) {
        None => NOTHING.to_owned(),
        Some(number) if number >= 100.0 => format!("{number:.0}"),
        Some(number) => format!("{number:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::percentiles::Percentiles;

    fn row(operation: &str, routing: Routing, tokens: u32, us: f64) -> Row {
        let ms = Percentiles::of(vec![us / 1e3]);
        let outcome = Outcome::Measured(Measured::new([1, 0], ms, [us * 2e3, us * 3e3], Some(us / 2.0)));
        let (operation, layout, format) = (operation.to_owned(), "compact".to_owned(), "bf16".to_owned());
        Row { operation, layout, format, routing, tokens, sms: 16, outcome }
    }

    #[test]
    fn what_is_measured_stands_where_it_belongs_and_what_is_not_is_left_out() {
        let rows = vec![
            row("dispatch", Routing::Uniform, 1, 12.34),
            row("combine", Routing::Uniform, 1, 5.0),
            row("cached dispatch", Routing::Uniform, 1, 7.0),
            row("pair in a graph", Routing::Uniform, 1, 20.0),
            row("dispatch", Routing::Zipf, 4096, 740.4),
            row("dispatch", Routing::Uniform, 128, 30.5),
            row("combine", Routing::Uniform, 128, 25.5),
        ];
        let half =
            |operation: &str, us| Row { layout: "rank-major".to_owned(), ..row(operation, Routing::Uniform, 8, us) };
        let names = ["dispatch", "dispatch, send half", "dispatch, receive half", "combine", "combine, send half"];
        let halves = names.iter().zip([9.0, 5.5, 3.5, 8.0, 1.5]).map(|(name, us)| half(name, us));
        let rows: Vec<_> = rows.into_iter().chain(halves).collect();
        let mut page = String::new();
        write(&mut page, &Report { rows, ..Report::default() });
        let lines: Vec<Vec<&str>> = page
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert!(
            lines.contains(&vec![
                "1", "compact", "12.3", "12.3", "6.2", "2.0", "5.0", "5.0", "2.5", "2.0", "7.0", "20.0"
            ]),
            "{page}"
        );
        assert!(lines.contains(&vec!["8", "bf16", "9.0", "5.5", "3.5", "8.0", "1.5", "-"]), "{page}");
        let here = "here: compact rows, bf16, 16 SMs";
        assert!(lines.contains(&vec![here, "0 ranks, 0 experts", "30.5", "25.5"]), "{page}");
        assert!(lines.iter().any(|cells| cells[1..] == ["8 x H20, 384 experts", "32.0", "42.7"]), "{page}");
        assert!(lines.contains(&vec!["compact", "16", "zipf", "740", "370", "3.0", "-", "-", "-"]), "{page}");
        assert!(!lines.iter().any(|cells| cells[0] == "4096"), "{page}");
        // Without uneven routing there is no such table.
        let mut page = String::new();
        write(&mut page, &Report { rows: vec![row("dispatch", Routing::Uniform, 1, 1.0)], ..Report::default() });
        assert!(!page.contains("uneven") && !page.contains("halves") && !page.contains("Published"), "{page}");
        write(&mut page, &Report::default());
    }
}
