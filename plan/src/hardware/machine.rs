//! A GPU and its NIC, and their figures by key.
use std::borrow::Cow;

use super::figure::{Figure, Unit};
use super::parts::{Gpu, Nic};
use crate::error::{Error, Result};

/// A GPU and, for more than one NVLink domain, its NIC.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Hardware {
    /// The GPU.
    pub gpu: Gpu,
    /// The NIC, if there is one.
    pub nic: Option<Nic>,
}

impl Hardware {
    /// Hardware of these parts.
    pub fn new(gpu: Gpu, nic: Option<Nic>) -> Self {
        Self { gpu, nic }
    }

    /// Built-in hardware by name; no NIC for one NVLink domain.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for an unknown name; the known ones are listed.
    ///
    /// ```
    /// use epoxide_plan::Hardware;
    /// let mut hardware = Hardware::named("h200", Some("cx7"))?;
    /// hardware.set("nic.bandwidth", 45.0, "ib_write_bw, 3 March")?;
    /// assert_eq!(hardware.nic.as_ref().unwrap().bandwidth.value, 45e9);
    /// let wrong = hardware.set("gpu.sms", 0.5, "a file").unwrap_err();
    /// assert_eq!(wrong.to_string(), "gpu.sms = 0.5: a whole number from 1 to 1024");
    /// # Ok::<(), epoxide_plan::Error>(())
    /// ```
    pub fn named(gpu: &str, nic: Option<&str>) -> Result<Self> {
        Ok(Self { gpu: Gpu::named(gpu)?, nic: nic.map(Nic::named).transpose()? })
    }

    /// All figures by key, with their units.
    pub fn figures(&self) -> Vec<(&'static str, Unit, &Figure)> {
        let nic = self.nic.iter().flat_map(Nic::figures);
        self.gpu.figures().into_iter().chain(nic).collect()
    }

    /// Overrides the figure of `key`, in the unit that [`Hardware::figures`] gives for it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for an unknown key (the known ones are listed), for a value out of its range, and for a NIC's
    /// key where there is no NIC.
    pub fn set(&mut self, key: &str, value: f64, source: impl Into<Cow<'static, str>>) -> Result<()> {
        let Some((name, unit)) = self.figures().iter().find(|(name, ..)| *name == key).map(|f| (f.0, f.1)) else {
            let known: Vec<_> = self.figures().iter().map(|f| f.0).collect();
            let none = if self.nic.is_none() { " (there is no NIC to override)" } else { "" };
            return Err(Error::text("key", key, format!("known keys are {}{none}", known.join(", "))));
        };
        unit.check(name, value)?;
        let nic = self.nic.iter_mut().flat_map(Nic::figures_mut);
        if let Some((_, figure)) = self.gpu.figures_mut().into_iter().chain(nic).find(|(name, _)| *name == key) {
            *figure = Figure { value: value * unit.factor(), source: source.into() };
        }
        Ok(())
    }

    /// Whether every figure is in its range, whoever set it.
    pub(crate) fn check(&self) -> Result<()> {
        self.figures().into_iter().try_for_each(|(key, unit, figure)| unit.check(key, figure.value / unit.factor()))
    }

    /// Overrides several figures; the first bad pair is the error.
    ///
    /// # Errors
    ///
    /// See [`Hardware::set`].
    pub fn with_pairs<'a>(
        mut self,
        pairs: impl IntoIterator<Item = (&'a str, f64)>,
        source: impl Into<Cow<'static, str>>,
    ) -> Result<Self> {
        let source = source.into();
        for (key, value) in pairs {
            self.set(key, value, source.clone())?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::{Gpu, Hardware, Nic};

    #[test]
    fn every_figure_has_a_source_a_key_and_an_override_in_range() {
        for gpu in Gpu::names() {
            for nic in Nic::names() {
                let mut hardware = Hardware::named(&gpu, Some(&nic)).unwrap();
                let before = hardware.clone();
                for (key, unit, figure) in before.figures() {
                    assert!(figure.source.len() > 10, "{gpu} {nic} {key} has no source");
                    let value = figure.value / unit.factor();
                    let value = if value.fract().abs() < 1e-6 { value.round() } else { value };
                    hardware.set(key, value, "the same").unwrap_or_else(|e| panic!("{gpu} {nic}: {e}"));
                }
                for ((key, _, a), (_, _, b)) in before.figures().into_iter().zip(hardware.figures()) {
                    assert!((a.value - b.value).abs() <= a.value * 1e-12 && b.source == "the same", "{key}");
                }
            }
        }
    }
}
