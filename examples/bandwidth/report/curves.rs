//! A report as curves.
use anyhow::Result;
use plotters::prelude::*;

use super::panel::{Curve, FONT, panel};
use super::record::{Measured, Outcome, Report, Row};

const WIDTH: u32 = 1000;
const TITLE: u32 = 60;
const PANEL: u32 = 360;

/// The files of all curves.
pub const NAMES: [&str; 3] = ["latency.svg", "bandwidth.svg", "predicted.svg"];

/// The files: their names, and the SVG of each. What has no points has no file.
///
/// # Errors
///
/// What the drawing says.
pub fn files(report: &Report) -> Result<Vec<(&'static str, String)>> {
    let drawn = [
        (NAMES[0], draw(report, "Time over tokens, with the SMs that take least", latency(report))?),
        (NAMES[1], draw(report, "Bytes from other ranks over SMs, beside the links alone", bandwidth(report))?),
        (NAMES[2], draw(report, "The planner's times over the measured ones", predicted(report))?),
    ];
    Ok(drawn.into_iter().filter_map(|(name, svg)| Some((name, svg?))).collect())
}

/// A panel.
struct Panel {
    title: String,
    x: &'static str,
    curves: Vec<Curve>,
}

/// A row that was measured.
type Timed<'r> = (&'r Row, &'r Measured);

fn timed(report: &Report) -> impl Iterator<Item = Timed<'_>> + Clone {
    report.rows.iter().filter_map(|row| match &row.outcome {
        Outcome::Measured(measured) => Some((row, measured)),
        Outcome::Failed(_) => None,
    })
}

/// What distinguishes values, in the order in which they come.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut distinct = Vec::new();
    for value in values {
        if !distinct.contains(&value) {
            distinct.push(value);
        }
    }
    distinct
}

/// A panel for each layout and routing.
fn latency(report: &Report) -> Vec<Panel> {
    let places = distinct(timed(report).map(|(row, _)| (row.layout.as_str(), row.routing)));
    let panel = |(layout, routing): (&str, super::Routing)| {
        // Halves are in the tables: together they are what is drawn.
        let is_whole = |row: &Row| !row.operation.ends_with(" half");
        let here =
            timed(report).filter(move |(row, _)| row.layout == layout && row.routing == routing && is_whole(row));
        let names = distinct(here.clone().map(|(row, _)| (row.operation.as_str(), row.format.as_str())));
        let mut curves = Vec::new();
        for (operation, format) in names {
            let of = here.clone().filter(|(row, _)| row.operation == operation && row.format == format);
            let points = |us: fn(&Measured) -> Option<f64>| -> Vec<(f64, f64)> {
                let tokens = distinct(of.clone().map(|(row, _)| row.tokens));
                let least = |tokens: u32| {
                    let all = of.clone().filter(|(row, _)| row.tokens == tokens);
                    let fastest = all.min_by(|a, b| a.1.median_us.total_cmp(&b.1.median_us))?;
                    Some((f64::from(tokens), us(fastest.1)?))
                };
                positive(tokens.into_iter().filter_map(least))
            };
            curves.push(Curve::solid(format!("{operation} {format}"), points(|m| Some(m.median_us))));
            if operation == "dispatch" {
                curves.push(Curve::dashed(format!("{operation} {format}, predicted"), points(|m| m.predicted_us)));
            }
        }
        Panel { title: format!("{layout} rows, {} routing: median us", routing.name()), x: "tokens of a rank", curves }
    };
    places.into_iter().map(panel).collect()
}

/// Of compact rows and the most tokens, beside the links.
fn bandwidth(report: &Report) -> Vec<Panel> {
    let first = |(row, _): &Timed<'_>| {
        report.rows.first().is_some_and(|one| one.layout == row.layout && one.routing == row.routing)
    };
    let here = timed(report).filter(first);
    let Some(most) = here.clone().map(|(row, _)| row.tokens).max() else { return Vec::new() };
    let here = here.filter(|(row, _)| row.tokens == most);
    let names = distinct(here.clone().map(|(row, _)| (row.operation.as_str(), row.format.as_str())));
    let mut curves = Vec::new();
    for (operation, format) in names.into_iter().filter(|(operation, _)| ["dispatch", "combine"].contains(operation)) {
        let of = here.clone().filter(|(row, _)| row.operation == operation && row.format == format);
        let points = of.map(|(row, measured)| (f64::from(row.sms), measured.from_others_gb_s));
        curves.push(Curve::solid(format!("{operation} {format}"), positive(points)));
    }
    for way in
        distinct(report.links.iter().map(|link| link.way.as_str())).into_iter().filter(|way| !way.ends_with("alone"))
    {
        let points = report.links.iter().filter(|link| link.way == way).map(|link| (f64::from(link.sms), link.gb_s));
        curves.push(Curve::dashed(format!("{way} alone"), positive(points)));
    }
    vec![Panel { title: format!("{most} tokens: GB/s into a rank from the others"), x: "SMs of a rank", curves }]
}

/// Every cell that has both.
fn predicted(report: &Report) -> Vec<Panel> {
    let both = timed(report).filter_map(|(row, m)| Some((row.operation.as_str(), m.median_us, m.predicted_us?)));
    let mut curves = Vec::new();
    for operation in distinct(both.clone().map(|(operation, ..)| operation)) {
        let points =
            both.clone().filter(|(of, ..)| *of == operation).map(|(_, measured, predicted)| (measured, predicted));
        curves.push(Curve::points(operation, positive(points)));
    }
    let ends = both.fold(None, |ends: Option<(f64, f64)>, (_, us, _)| {
        Some(ends.map_or((us, us), |(low, high)| (low.min(us), high.max(us))))
    });
    let Some((low, high)) = ends else { return Vec::new() };
    curves.push(Curve::dashed("as measured", vec![(low, low), (high, high)]));
    vec![Panel { title: "predicted us".to_owned(), x: "measured us", curves }]
}

/// Points that logarithmic axes have, from left to right.
fn positive(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut points: Vec<_> = points.filter(|(x, y)| *x > 0.0 && *y > 0.0).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// The panels one above the other; nothing if none has a point.
fn draw(report: &Report, title: &str, mut panels: Vec<Panel>) -> Result<Option<String>> {
    panels.retain_mut(|panel| {
        panel.curves.retain(|curve| !curve.is_empty());
        !panel.curves.is_empty()
    });
    if panels.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    {
        let height = TITLE + PANEL * panels.len() as u32;
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, rest) = root.split_vertically(TITLE);
        head.draw_text(title, &(FONT, 19).into_font().color(&BLACK), (16, 12))?;
        let device = report.machine.ranks.first().map_or("", String::as_str);
        let line = format!("{} ranks, the first on {device}", report.setting.ranks);
        head.draw_text(&line, &(FONT, 14).into_font().color(&BLACK), (16, 36))?;
        for (area, of) in rest.split_evenly((panels.len(), 1)).iter().zip(panels) {
            panel(area, &of.title, of.x, of.curves, &[])?;
        }
        root.present()?;
    }
    Ok(Some(svg))
}
