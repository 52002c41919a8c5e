//! Named pieces of memory, one after another.

/// Alignment of regions.
pub const REGION_ALIGN: u64 = 256;

/// A named piece of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What it holds.
    pub name: &'static str,
    /// Bytes from the start.
    pub offset: u64,
    /// Its bytes, without padding.
    pub bytes: u64,
}

impl Span {
    /// Slot `slot` of `slots` equal ones, side by side.
    pub const fn slot(self, slot: u32, slots: u32) -> Self {
        let bytes = self.bytes / slots as u64;
        Self { offset: self.offset + bytes * slot as u64, bytes, ..self }
    }
}

/// Lays spans one after another.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    end: u64,
}

impl Cursor {
    /// Begins where the first `end` bytes are taken.
    pub const fn after(end: u64) -> Self {
        Self { end }
    }

    /// Lays `count` elements of `element` bytes; `None` if they end beyond 64 bits.
    pub fn span(&mut self, name: &'static str, count: u64, element: u64) -> Option<Span> {
        let offset = self.end.checked_next_multiple_of(REGION_ALIGN)?;
        let bytes = count.checked_mul(element)?;
        self.end = offset.checked_add(bytes)?;
        Some(Span { name, offset, bytes })
    }

    /// Lays `count` elements of `element` bytes for each of `slots` slots, in which several operations may be at work: where there are several,
    /// each begins where a region may. [`Span::slot`] is one of them.
    pub fn slots(&mut self, name: &'static str, slots: u32, count: u64, element: u64) -> Option<Span> {
        let bytes = count.checked_mul(element)?;
        match slots {
            1 => self.span(name, bytes, 1),
            slots => self.span(name, slots.into(), bytes.checked_next_multiple_of(REGION_ALIGN)?),
        }
    }

    /// Bytes of all that lies here, padded to whole regions.
    pub fn bytes(&self) -> Option<u64> {
        self.end.checked_next_multiple_of(REGION_ALIGN)
    }
}
