//! What is allocated, and what lies in it: for reports, and for whoever watches the [door](super::door).

use crate::error::SimError;

/// What memory is to the GPUs and hosts that use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemoryKind {
    /// One GPU's own.
    Device,
    /// A GPU's, into which its peers read and write.
    Window,
    /// The host's, pinned: kernels and host threads use it together.
    HostPinned,
}

/// A named part of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Region {
    /// What it is called in reports.
    pub name: &'static str,
    /// Where it begins, in bytes from the allocation's start.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Bytes of an element; 1 where it is bytes of any kind.
    pub element: u32,
}

/// Memory that is asked for: what [`Allocation::new`] is told, and what the methods after it change.
///
/// ```
/// use epoxide_sim::{Allocation, Machine, MachineConfig, MemoryKind, Mode};
/// let machine = Machine::new(MachineConfig::new(2, Mode::Fast { workers: 1 }))?;
/// let window = Allocation::new(1, 4096)
///     .with_kind(MemoryKind::Window)
///     .with_name("a window")
///     .with_region("rows", 0, 4000, 16)
///     .with_region("landed words", 4000, 64, 8);
/// let error = machine.read(machine.allocate_as(&window)? + 4088, 2).expect_err("8 bytes too far");
/// assert!(error.to_string().contains("window \"a window\", behind its region \"landed words\""));
/// # Ok::<(), epoxide_sim::SimError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Allocation {
    /// Whose memory.
    pub rank: u32,
    /// How many bytes.
    pub bytes: u64,
    /// A multiple of this, and of 256, is where it begins.
    pub align: u64,
    /// What it is to those who use it.
    pub kind: MemoryKind,
    /// What it is called in reports.
    pub name: Option<&'static str>,
    /// Its named parts, by where they begin.
    pub regions: Vec<Region>,
}

impl Allocation {
    /// Describes `bytes` bytes of `rank`'s device memory, aligned to 256, without a name.
    pub fn new(rank: u32, bytes: u64) -> Self {
        Self { rank, bytes, align: 256, kind: MemoryKind::Device, name: None, regions: Vec::new() }
    }

    /// Sets what its address is a multiple of: a power of two.
    #[must_use]
    pub fn with_align(mut self, align: u64) -> Self {
        self.align = align;
        self
    }

    /// Sets what it is to those who use it.
    #[must_use]
    pub fn with_kind(mut self, kind: MemoryKind) -> Self {
        self.kind = kind;
        self
    }

    /// Sets what it is called in reports.
    #[must_use]
    pub fn with_name(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// Names `bytes` bytes from `offset` on, elements of `element` bytes.
    #[must_use]
    pub fn with_region(mut self, name: &'static str, offset: u64, bytes: u64, element: u32) -> Self {
        let place = self.regions.partition_point(|region| region.offset <= offset);
        self.regions.insert(place, Region { name, offset, bytes, element });
        self
    }

    /// Checks the regions against their rules.
    pub(crate) fn validate(&self) -> Result<(), SimError> {
        for Region { name, offset, bytes, element } in &self.regions {
            let value = || format!("{bytes} bytes from {offset}, elements of {element}: {name:?}");
            if offset.checked_add(*bytes).is_none_or(|end| end > self.bytes) {
                return Err(SimError::invalid("region", value(), format!("inside the {} bytes", self.bytes)));
            }
            if *element == 0 || !bytes.is_multiple_of(u64::from(*element)) {
                return Err(SimError::invalid("region", value(), "a whole number of elements, of 1 byte at least"));
            }
        }
        Ok(())
    }

    /// What a report says of it beside its size, where `offset`, which may be outside, is of interest.
    pub(crate) fn describe(&self, offset: i128) -> String {
        let mut text = match (self.kind, self.name) {
            (MemoryKind::Device, None) => String::new(),
            (MemoryKind::Device, Some(_)) => ": device memory".to_string(),
            (MemoryKind::Window, _) => ": window".to_string(),
            (MemoryKind::HostPinned, _) => ": pinned host memory".to_string(),
        };
        if let Some(name) = self.name {
            text += &format!(" {name:?}");
        }
        let before = self.regions.iter().rfind(|region| i128::from(region.offset) <= offset);
        if let Some(region) = before {
            let is_in = offset < i128::from(region.offset + region.bytes);
            text += &format!(", {} its region {:?}", if is_in { "in" } else { "behind" }, region.name);
        } else if let Some(region) = self.regions.first() {
            text += &format!(", before its region {:?}", region.name);
        }
        text
    }
}
