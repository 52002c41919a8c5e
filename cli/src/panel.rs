//! A panel of curves with logarithmic axes, and its legend beside it, as SVG. The example `bandwidth` takes this file too.
use epoxide::plan::number;
use plotters::coord::Shift;
use plotters::coord::combinators::BindKeyPoints;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

type Result<T> = anyhow::Result<T>;
/// Where a panel is drawn.
pub(crate) type Area<'a, 'b> = DrawingArea<SVGBackend<'a>, Shift>;

/// Of all text.
pub(crate) const FONT: &str = "sans-serif";
const LEGEND: u32 = 220;
/// Blue, vermilion, green, purple, sky blue, orange, black, yellow, of Okabe and Ito: apart for everyone.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
    RGBColor(240, 228, 66),
];

/// One curve.
pub(crate) struct Curve {
    name: String,
    drawn: Drawn,
    points: Vec<(f64, f64)>,
}

/// How a curve is drawn; its points are marked always.
#[derive(Clone, Copy, PartialEq)]
enum Drawn {
    Solid,
    Dashed,
    Points,
}

impl Curve {
    pub(crate) fn solid(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), drawn: Drawn::Solid, points }
    }
    pub(crate) fn dashed(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), drawn: Drawn::Dashed, points }
    }
    #[allow(dead_code, reason = "a sweep has lines alone")]
    pub(crate) fn points(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), drawn: Drawn::Points, points }
    }
    /// Whether nothing of it would be seen.
    pub(crate) fn is_empty(&self) -> bool {
        self.points.is_empty()
    }
}

/// A panel with logarithmic axes, and its legend beside it.
pub(crate) fn panel(
    area: &Area<'_, '_>,
    title: &str,
    x_title: &str,
    curves: impl IntoIterator<Item = Curve>,
    labels: &[(f64, f64, String)],
) -> Result<()> {
    let curves: Vec<Curve> = curves.into_iter().filter(|curve| !curve.is_empty()).collect();
    let xs: Vec<f64> = curves.iter().flat_map(|c| c.points.iter().map(|p| p.0)).collect();
    let ys = curves.iter().flat_map(|c| c.points.iter().map(|p| p.1));
    let (Some(x), Some(y)) = (span(xs.iter().copied()), span(ys)) else { return Ok(()) };
    let (x_range, y_range) = (x.0 / 1.1..x.1 * 1.1, nice_below(y.0)..nice_above(y.1));
    let x_ticks = ticks_of_values(xs);
    let y_ticks = ticks(y_range.start, y_range.end);
    let (area, legend_area) = area.split_horizontally(area.dim_in_pixel().0.saturating_sub(LEGEND));
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .caption(title, (FONT, 16))
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(
            x_range.log_scale().with_key_points(x_ticks.clone()),
            y_range.log_scale().with_key_points(y_ticks.clone()),
        )?;
    chart
        .configure_mesh()
        .x_desc(x_title)
        .x_labels(x_ticks.len())
        .y_labels(y_ticks.len())
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| plain(*y))
        .label_style((FONT, 13))
        .bold_line_style(BLACK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (i, (curve, colour)) in curves.iter().zip(COLOURS.iter().cycle()).enumerate() {
        // The first is broad, so that it shows under one that lies on it.
        let stroke = colour.stroke_width(if i == 0 { 5 } else { 2 });
        let y = 50 + 22 * i as i32;
        legend_area.draw_text(&curve.name, &(FONT, 13).into_font().color(&BLACK), (38, y - 8))?;
        match curve.drawn {
            Drawn::Solid => {
                chart.draw_series(LineSeries::new(curve.points.iter().copied(), stroke))?;
                legend_area.draw(&PathElement::new(vec![(4, y), (30, y)], stroke))?;
            }
            Drawn::Dashed => {
                chart.draw_series(DashedLineSeries::new(curve.points.iter().copied(), 6, 4, stroke))?;
                for x in [4, 14, 24] {
                    legend_area.draw(&PathElement::new(vec![(x, y), (x + 6, y)], stroke))?;
                }
            }
            Drawn::Points => {
                legend_area.draw(&Circle::new((17, y), 3, colour.filled()))?;
            }
        }
        chart.draw_series(curve.points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
    }
    // Times rise from left to right: there is room below a point.
    let style = (FONT, 12).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Top));
    chart.draw_series(
        labels.iter().map(|(x, y, name)| EmptyElement::at((*x, *y)) + Text::new(name.clone(), (8, 4), style.clone())),
    )?;
    Ok(())
}

fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |span, v| Some(span.map_or((v, v), |(low, high): (f64, f64)| (low.min(v), high.max(v)))))
}

/// The values themselves, at most a dozen of them.
fn ticks_of_values(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values.dedup();
    let step = values.len().div_ceil(12);
    values.into_iter().step_by(step).collect()
}

/// 1, 2 and 5 times powers of ten from `low` to `high`; only the powers if those are many.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
    let factors: &[f64] = if (high / low).log10() > 4.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all = decades.flat_map(|d| factors.iter().map(move |f| f * 10f64.powi(d)));
    all.filter(|v| (low * 0.999..=high * 1.001).contains(v)).collect()
}

fn nice_below(value: f64) -> f64 {
    ticks(value / 10.0, value).into_iter().rev().find(|&tick| tick <= value / 1.2).unwrap_or(value / 2.0)
}

fn nice_above(value: f64) -> f64 {
    ticks(value, value * 10.0).into_iter().find(|&tick| tick > value * 1.05).unwrap_or(value * 2.0)
}

/// A tick's label: no needless digits.
fn plain(value: f64) -> String {
    // Ticks have one digit, and what the multiplication adds.
    number(format!("{value:.0e}").parse().unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_inside_the_axis() {
        let rounded = |low, high| ticks(low, high).into_iter().map(plain).collect::<Vec<_>>().join(" ");
        assert_eq!(rounded(20.0, 1000.0), "20 50 100 200 500 1000");
        assert_eq!(rounded(0.05, 0.5), "0.05 0.1 0.2 0.5");
        assert_eq!(rounded(1e-9, 5e-9), "1e-9 2e-9 5e-9");
        assert_eq!(rounded(0.1, 1e6), "0.1 1 10 100 1000 10000 100000 1000000");
        assert!(nice_below(37.0) == 20.0 && nice_below(21.0) == 10.0 && nice_above(37.0) == 50.0);
    }
}
