//! Whose protocol is planned, and what the caller decides instead of the planner.

/// Whose protocol moves the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// Ours. For several domains a projection: it is designed, not built.
    #[default]
    Epoxide,
    /// DeepEP V2's, with its constants for an SM.
    DeepEpV2,
}

/// What the caller decides instead of the planner.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct PlanOptions {
    /// Whose protocol.
    pub protocol: Protocol,
    /// SMs of an operation; `None` lets the planner decide.
    pub num_sms: Option<u32>,
    /// Queue pairs that may be used; `None` is no limit (129 for DeepEP V2, its default).
    pub allocated_qps: Option<u32>,
    /// DeepEP V2 only: at least 64 SMs, as it takes when nothing is to overlap.
    pub many_sms: bool,
}

impl PlanOptions {
    /// Our protocol, SMs as the planner decides.
    pub fn new() -> Self {
        Self::default()
    }
    /// Sets whose protocol.
    #[must_use]
    pub fn with_protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }
    /// Sets the SMs of an operation.
    #[must_use]
    pub fn with_num_sms(mut self, num_sms: u32) -> Self {
        self.num_sms = Some(num_sms);
        self
    }
    /// Limits the queue pairs.
    #[must_use]
    pub fn with_allocated_qps(mut self, qps: u32) -> Self {
        self.allocated_qps = Some(qps);
        self
    }
    /// Takes at least 64 SMs for DeepEP V2.
    #[must_use]
    pub fn with_many_sms(mut self) -> Self {
        self.many_sms = true;
        self
    }
}
