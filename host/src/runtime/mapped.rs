//! Memory that host and device share.

/// Memory that both the host and the device can access while a kernel runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped {
    /// Where the host sees it; null on a simulated GPU, whose memory is accessed through its machine.
    pub host: *mut u8,
    /// Where the device sees it.
    pub device: u64,
}

impl Mapped {
    /// What lies so many bytes on.
    pub(crate) fn at(self, bytes: u64) -> Self {
        // On a simulated GPU the pointer is none, whatever is added to it.
        Self { host: self.host.wrapping_add(bytes as usize), device: self.device + bytes }
    }
}

// SAFETY: an address range; every access to it is made through atomics by its users.
unsafe impl Send for Mapped {}
