//! GPUs and NICs in numbers, each with where it comes from.
//!
//! Every number is a [`Figure`]: a value and its source. [`Gpu::named`] and [`Nic::named`] give the built-in ones;
//! [`Hardware::set`] overrides one by its key, which is how a file of overrides is read without this crate reading files.
mod catalogue;

use std::borrow::Cow;

use crate::error::{Error, Result};

/// A number and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The number, in the unit that its field names.
    pub value: f64,
    /// Who says so.
    pub source: Cow<'static, str>,
}

impl Figure {
    /// A figure.
    pub const fn new(value: f64, source: &'static str) -> Self {
        Self { value, source: Cow::Borrowed(source) }
    }
}

/// A GPU. Rates are bytes per second, times are seconds.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Gpu {
    /// What it is called.
    pub name: Cow<'static, str>,
    /// Streaming multiprocessors.
    pub sms: Figure,
    /// Bytes of shared memory that a block can have.
    pub shared_memory: Figure,
    /// Bytes of device memory.
    pub memory: Figure,
    /// What a copy kernel reaches, bytes read and bytes written counted.
    pub hbm: Figure,
    /// NVLink links.
    pub nvlink_links: Figure,
    /// One link in one direction, as the driver reports it.
    pub nvlink_link: Figure,
    /// The share of the links' rate at which all GPUs can write to each other at once.
    pub nvlink_share: Figure,
    /// The share of the links' rate at which all GPUs can read from each other at once.
    pub nvlink_read_share: Figure,
    /// What one SM of our combine reads from its own GPU's memory.
    pub sm_read: Figure,
    /// What one SM of our combine reads from another GPU's.
    pub sm_read_link: Figure,
    /// What one SM of our dispatch reads and quantises, in bytes of BF16.
    pub sm_quantize: Figure,
    /// What one SM of our dispatch writes to its own GPU's memory.
    pub sm_write: Figure,
    /// What one SM of our dispatch writes to another GPU's.
    pub sm_write_link: Figure,
    /// A kernel that does nothing but tell every peer that it is there and wait for the same.
    pub kernel: Figure,
    /// One more dependent round trip: a word or a row to where it goes, and the wait for it.
    pub round_trip: Figure,
}

/// A NIC, or what a GPU has of it. Rates are per direction.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Nic {
    /// What it is called.
    pub name: Cow<'static, str>,
    /// Bytes per second.
    pub bandwidth: Figure,
    /// Messages per second.
    pub message_rate: Figure,
    /// Seconds from a GPU's put to when the peer's GPU sees its signal.
    pub latency: Figure,
}

/// A GPU and, for more than one NVLink domain, its NIC.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Hardware {
    /// The GPU.
    pub gpu: Gpu,
    /// The NIC, if there is one.
    pub nic: Option<Nic>,
}

/// The unit in which an override gives a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A whole number.
    Count,
    /// Bytes.
    Bytes,
    /// 10^9 bytes per second.
    GigabytesPerSecond,
    /// 10^6 messages per second.
    MillionsPerSecond,
    /// Microseconds.
    Microseconds,
    /// Between 0 and 1.
    Share,
}

impl Unit {
    /// What one of the unit is in bytes, seconds or bytes per second.
    pub fn factor(self) -> f64 {
        match self {
            Self::Count | Self::Bytes | Self::Share => 1.0,
            Self::GigabytesPerSecond => 1e9,
            Self::MillionsPerSecond => 1e6,
            Self::Microseconds => 1e-6,
        }
    }
    /// How it is written.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Count => "",
            Self::Bytes => "B",
            Self::GigabytesPerSecond => "GB/s",
            Self::MillionsPerSecond => "M/s",
            Self::Microseconds => "us",
            Self::Share => "of 1",
        }
    }
    /// Lowest and highest value that a figure may have.
    fn range(self) -> (f64, f64) {
        match self {
            Self::Count => (1.0, 1024.0),
            Self::Bytes => (1024.0, 1e15),
            Self::GigabytesPerSecond => (0.001, 1e6),
            Self::MillionsPerSecond => (0.001, 1e6),
            Self::Microseconds => (0.0, 1e6),
            Self::Share => (0.01, 1.0),
        }
    }
    /// Whether a figure may be `value` of this unit.
    fn check(self, key: &'static str, value: f64) -> Result<()> {
        let (low, high) = self.range();
        let whole = matches!(self, Self::Count | Self::Bytes);
        if (low..=high).contains(&value) && !(whole && value.fract() != 0.0) {
            return Ok(());
        }
        let kind = if whole { "a whole number" } else { "a number" };
        let symbol = if self.symbol().is_empty() { String::new() } else { format!(" {}", self.symbol()) };
        Err(Error::argument(key, value, format!("{kind} from {low} to {high}{symbol}")))
    }
}

impl Gpu {
    /// What a copy reaches of the nominal rate of an H200's memory: 4256 of 4800 GB/s. Taken for GPUs of which only the nominal
    /// rate is known.
    pub const COPY_SHARE: f64 = 4256.0 / 4800.0;

    /// The built-in GPU of this name.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`], which lists the known ones.
    pub fn named(name: &str) -> Result<Self> {
        let known = catalogue::gpus();
        let wanted = normal(name);
        let unknown = || Error::argument("gpu", name, format!("known GPUs are {}", Self::names().join(", ")));
        known.into_iter().find(|gpu| normal(&gpu.name) == wanted).ok_or_else(unknown)
    }

    /// Names of the built-in GPUs.
    pub fn names() -> Vec<String> {
        catalogue::gpus().into_iter().map(|gpu| gpu.name.into_owned()).collect()
    }

    /// The sum of the links' rates in one direction, in bytes per second.
    pub fn nvlink_nominal(&self) -> f64 {
        self.nvlink_links.value * self.nvlink_link.value
    }

    /// What kernels write over NVLink in one direction, in bytes per second.
    pub fn nvlink(&self) -> f64 {
        self.nvlink_nominal() * self.nvlink_share.value
    }

    /// What kernels read over NVLink in one direction, in bytes per second.
    pub fn nvlink_read(&self) -> f64 {
        self.nvlink_nominal() * self.nvlink_read_share.value
    }
}

impl Nic {
    /// The built-in NIC of this name.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`], which lists the known ones.
    pub fn named(name: &str) -> Result<Self> {
        let known = catalogue::nics();
        let wanted = normal(name).replace("connectx", "cx");
        let unknown = || Error::argument("nic", name, format!("known NICs are {}", Self::names().join(", ")));
        known.into_iter().find(|nic| normal(&nic.name) == wanted).ok_or_else(unknown)
    }

    /// Names of the built-in NICs.
    pub fn names() -> Vec<String> {
        catalogue::nics().into_iter().map(|nic| nic.name.into_owned()).collect()
    }
}

/// Gives a type its figures by key, in one list.
macro_rules! figures {
    ($type:ident: $($key:literal $field:ident $unit:ident,)*) => {
        impl $type {
            /// All figures by key, with their units.
            pub fn figures(&self) -> Vec<(&'static str, Unit, &Figure)> {
                vec![$(($key, Unit::$unit, &self.$field)),*]
            }

            /// All figures by key, to be changed. [`Hardware::set`] changes one and checks its range; a plan checks all.
            pub fn figures_mut(&mut self) -> Vec<(&'static str, &mut Figure)> {
                vec![$(($key, &mut self.$field)),*]
            }
        }
    };
}

figures! { Gpu:
    "gpu.sms" sms Count,
    "gpu.shared_memory" shared_memory Bytes,
    "gpu.memory" memory Bytes,
    "gpu.hbm" hbm GigabytesPerSecond,
    "gpu.nvlink_links" nvlink_links Count,
    "gpu.nvlink_link" nvlink_link GigabytesPerSecond,
    "gpu.nvlink_share" nvlink_share Share,
    "gpu.nvlink_read_share" nvlink_read_share Share,
    "gpu.sm_read" sm_read GigabytesPerSecond,
    "gpu.sm_read_link" sm_read_link GigabytesPerSecond,
    "gpu.sm_quantize" sm_quantize GigabytesPerSecond,
    "gpu.sm_write" sm_write GigabytesPerSecond,
    "gpu.sm_write_link" sm_write_link GigabytesPerSecond,
    "gpu.kernel" kernel Microseconds,
    "gpu.round_trip" round_trip Microseconds,
}

figures! { Nic:
    "nic.bandwidth" bandwidth GigabytesPerSecond,
    "nic.message_rate" message_rate MillionsPerSecond,
    "nic.latency" latency Microseconds,
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
    /// use epoxide::plan::Hardware;
    /// let mut hardware = Hardware::named("h200", Some("cx7"))?;
    /// hardware.set("nic.bandwidth", 45.0, "ib_write_bw, 3 March")?;
    /// assert_eq!(hardware.nic.as_ref().unwrap().bandwidth.value, 45e9);
    /// let wrong = hardware.set("gpu.sms", 0.5, "a file").unwrap_err();
    /// assert_eq!(wrong.to_string(), "gpu.sms = 0.5: a whole number from 1 to 1024");
    /// # Ok::<(), epoxide::Error>(())
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
            return Err(Error::argument("key", key, format!("known keys are {}{none}", known.join(", "))));
        };
        unit.check(name, value)?;
        let nic = self.nic.iter_mut().flat_map(Nic::figures_mut);
        if let Some((_, figure)) = self.gpu.figures_mut().into_iter().chain(nic).find(|(name, _)| *name == key) {
            *figure = Figure { value: value * unit.factor(), source: source.into() };
        }
        Ok(())
    }

    /// Whether every figure is in its range, whoever set it.
    pub(super) fn check(&self) -> Result<()> {
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

/// Lower case, letters and digits only.
fn normal(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
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
