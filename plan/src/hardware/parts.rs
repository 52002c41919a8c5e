//! What is known of a GPU and of a NIC.
use std::borrow::Cow;

use super::figure::{Figure, Unit};

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

impl Gpu {
    /// What a copy reaches of the nominal rate of an H200's memory: 4256 of 4800 GB/s. Taken for GPUs of which only the nominal
    /// rate is known.
    pub const COPY_SHARE: f64 = 4256.0 / 4800.0;

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

/// Gives a type its figures by key, in one list.
macro_rules! figures {
    ($type:ident: $($key:literal $field:ident $unit:ident,)*) => {
        impl $type {
            /// All figures by key, with their units.
            pub fn figures(&self) -> Vec<(&'static str, Unit, &Figure)> {
                vec![$(($key, Unit::$unit, &self.$field)),*]
            }

            /// All figures by key, to be changed. [`Hardware::set`](crate::Hardware::set) changes one and checks its range; a plan checks all.
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
