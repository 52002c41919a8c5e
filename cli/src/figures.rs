//! `epoxide plan --figures`: what is known of GPU and NIC, as a file that `--hardware` reads.
use std::fmt::Write;

use epoxide::plan::number;

use crate::machine::Machine;
use crate::visible;

/// The file: a comment with unit and source above every figure.
pub(crate) fn file(machine: &Machine) -> String {
    let Machine { hardware, nics_per_gpu, found } = machine;
    let nic = hardware.nic.as_ref();
    let mut out =
        "# Figures for `epoxide plan --hardware FILE`. A key that is left out keeps its built-in value.\n".to_owned();
    for line in found.lines().iter().chain(found.notes()) {
        let _ = writeln!(out, "# {}", line_of(line));
    }
    if *nics_per_gpu > 1 {
        let _ =
            writeln!(out, "# A GPU has {nics_per_gpu} such NICs: give --nics-per-gpu {nics_per_gpu} with this file.");
    }
    let mut section = "";
    for (key, unit, figure) in hardware.figures() {
        let (table, name) = key.split_once('.').unwrap_or(("", key));
        if table != section {
            section = table;
            let title = if table == "gpu" { Some(&hardware.gpu.name) } else { nic.map(|nic| &nic.name) };
            let title = title.map_or("", |title| title.as_ref());
            let name = toml::Value::from(title);
            let _ = write!(out, "\n[{table}]\nname = {name}\n");
        }
        let symbol = if unit.symbol().is_empty() { "" } else { " " };
        // Twelve digits hold every figure and drop what the division by the unit adds.
        let value = format!("{:.11e}", figure.value / unit.factor()).parse::<f64>().unwrap_or(f64::NAN);
        let _ = write!(out, "\n# {}\n{name} = {} #{symbol}{}\n", line_of(&figure.source), number(value), unit.symbol());
    }
    out.replace(" #\n", "\n")
}

/// A text as a comment: TOML's have no control characters. The name of a file, which is a source, may have.
fn line_of(text: &str) -> String {
    text.replace(visible::is_unseen, " ")
}

#[cfg(test)]
mod tests {
    use epoxide::plan::{Gpu, Hardware, Nic};

    use crate::machine::{Found, Machine};

    #[test]
    fn the_file_is_read_back_as_the_same_figures() {
        for gpu in Gpu::names() {
            for nic in Nic::names() {
                let before = Hardware::named(&gpu, Some(&nic)).expect("a known name");
                let mut after = Hardware::named("h20", Some("efa")).expect("known names");
                let machine = Machine { hardware: before.clone(), nics_per_gpu: 2, found: Found::default() };
                let file = super::file(&machine);
                assert!(file.contains("--nics-per-gpu 2 with this file"), "{file}");
                crate::hardware_file::apply(&mut after, &file, "f.toml").expect("our own file");
                for ((key, _, a), (_, _, b)) in before.figures().into_iter().zip(after.figures()) {
                    assert!((a.value - b.value).abs() <= 1e-9 * a.value, "{key}: {} {}", a.value, b.value);
                }
                assert_eq!(before.gpu.name, after.gpu.name);
            }
        }
    }
}
