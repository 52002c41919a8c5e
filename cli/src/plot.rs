//! Draws a sweep: time, bandwidth and bytes over what varies.
use plotters::prelude::*;

use crate::panel::{Curve, FONT, panel};
use crate::planned::Planned;
use crate::sweep::{self, Points};

type Result<T> = anyhow::Result<T>;

const SIZE: (u32, u32) = (1000, 1080);
const TITLE: u32 = 60;

/// The sweep as SVG.
pub(crate) fn draw(sweep: &Points) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, panels) = root.split_vertically(TITLE);
        for (i, line) in sweep::title(sweep).lines().enumerate() {
            let style = (FONT, if i == 0 { 19 } else { 14 }).into_font().color(&BLACK);
            head.draw_text(line, &style, (16, 12 + 24 * i as i32))?;
        }
        let all = |value: fn(&Planned) -> Option<f64>, scale: f64| -> Vec<(f64, f64)> {
            let points = sweep.planned().filter_map(|(x, planned)| Some((f64::from(x), value(planned)? / scale)));
            points.filter(|(_, y)| *y > 0.0).collect()
        };
        let panels = panels.split_evenly((3, 1));
        let x_title = sweep.over.title();
        let time = [
            Curve::solid("dispatch", all(|p| Some(p.plan.dispatch.seconds), 1e-6)),
            Curve::solid("combine", all(|p| Some(p.plan.combine.seconds), 1e-6)),
            Curve::dashed("dispatch, simulated", all(|p| Some(p.simulation.as_ref()?.1.dispatch.seconds), 1e-6)),
            Curve::dashed("combine, simulated", all(|p| Some(p.simulation.as_ref()?.1.combine.seconds), 1e-6)),
        ];
        panel(
            &panels[0],
            "Time of an operation, us (on the curve: what binds dispatch)",
            x_title,
            time,
            &bindings(sweep),
        )?;
        let bandwidth = [
            Curve::solid("scale-up, as DeepEP counts", all(|p| Some(p.plan.dispatch.bandwidth.scale_up), 1e9)),
            Curve::solid("scale-out, as DeepEP counts", all(|p| Some(p.plan.dispatch.bandwidth.scale_out), 1e9)),
            Curve::dashed("NVLink, physical", all(|p| Some(p.plan.dispatch.bandwidth.nvlink), 1e9)),
            Curve::dashed("RDMA, physical", all(|p| Some(p.plan.dispatch.bandwidth.rdma), 1e9)),
        ];
        panel(&panels[1], "Bandwidth of a rank in dispatch, GB/s", x_title, bandwidth, &[])?;
        let gib = f64::from(1 << 30);
        let memory = [
            Curve::solid("buffer", all(|p| Some(p.plan.bytes.total() as f64), gib)),
            Curve::dashed("a rank's share of the GPU", all(|p| Some(share_of_gpu(p)), gib)),
        ];
        panel(&panels[2], "Memory of a rank, GiB", x_title, memory, &[])?;
        root.present()?;
    }
    Ok(svg)
}

fn share_of_gpu(planned: &Planned) -> f64 {
    planned.request.hardware.gpu.memory.value / f64::from(planned.request.topology.ranks_per_gpu())
}

/// Where on the dispatch curve another resource begins to bind, and which.
fn bindings(sweep: &Points) -> Vec<(f64, f64, String)> {
    let mut labels: Vec<(f64, f64, String)> = Vec::new();
    let mut planned: Vec<_> = sweep.planned().collect();
    planned.sort_by_key(|(x, _)| *x);
    for (x, planned) in planned {
        // A link's two directions are often alike: which of them is a hair longer says nothing.
        let name = planned.plan.dispatch.binding().resource.name();
        let name = name.trim_end_matches(" out").trim_end_matches(" in");
        if labels.last().is_none_or(|(.., last)| last != name) {
            labels.push((f64::from(x), planned.plan.dispatch.seconds * 1e6, name.to_owned()));
        }
    }
    labels
}
