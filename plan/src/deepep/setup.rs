//! DeepEP V2's own arithmetic: SMs and queue pairs.
use crate::error::{Error, Result};
use crate::expectation::distinct_groups;

/// What DeepEP's planner assumes of an SM's loads, in bytes per second.
pub const SM_READ: f64 = 200e9;
/// What DeepEP's planner assumes of an SM's stores, in bytes per second.
pub const SM_WRITE: f64 = 50e9;
/// What DeepEP's planner takes of the links' sum.
pub const NVLINK_SHARE: f64 = 0.9;

/// What DeepEP V2's planner takes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Setup {
    /// Ranks in all.
    pub ranks: u32,
    /// Ranks of an NVLink domain.
    pub per_domain: u32,
    /// Experts in all.
    pub experts: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// NVLink in one direction, bytes per second.
    pub nvlink: f64,
    /// RDMA in one direction, bytes per second.
    pub rdma: f64,
    /// SMs of the GPU.
    pub device_sms: u32,
    /// Whether rails and forwarders are used when there are several domains.
    pub hybrid: bool,
    /// Whether few SMs are preferred, so that compute can overlap.
    pub prefer_overlap: bool,
}

impl Setup {
    /// A setup with rails that prefers overlap.
    pub fn new(ranks: u32, per_domain: u32, experts: u32, top_k: u32, nvlink: f64, rdma: f64, device_sms: u32) -> Self {
        Self { ranks, per_domain, experts, top_k, nvlink, rdma, device_sms, hybrid: true, prefer_overlap: true }
    }

    fn check(&self) -> Result<()> {
        if self.ranks == 0 || self.ranks > 1024 {
            return Err(Error::argument("ranks", self.ranks, "DeepEP V2 has 1 to 1024 ranks"));
        }
        if self.per_domain == 0 || !self.ranks.is_multiple_of(self.per_domain) {
            return Err(Error::argument("per_domain", self.per_domain, "DeepEP V2 needs equal NVLink domains"));
        }
        if !self.experts.is_multiple_of(self.ranks) || self.experts > 2048 {
            let rule = format!("DeepEP V2 has at most 2048 experts, a multiple of its {} ranks", self.ranks);
            return Err(Error::argument("experts", self.experts, rule));
        }
        if self.top_k == 0 || self.top_k > self.experts.min(32) {
            return Err(Error::argument("top_k", self.top_k, "a token selects 1 to 32 experts, at most all"));
        }
        if self.device_sms == 0 || self.nvlink <= 0.0 {
            return Err(Error::argument("device_sms", self.device_sms, "a GPU has SMs and NVLink"));
        }
        Ok(())
    }

    /// Domains that rails join; 1 if there is one, or if every rank writes to every other directly.
    fn scale_out(&self) -> u32 {
        if self.hybrid { self.ranks / self.per_domain } else { 1 }
    }

    /// SMs of an operation (as DeepEP at dd758ca computes it).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for what DeepEP V2 does not support.
    ///
    /// ```
    /// use epoxide_plan::deepep::Setup;
    /// // H100 and ConnectX-7, two nodes of eight: the 12 SMs of DeepEP's README.
    /// assert_eq!(Setup::new(16, 8, 256, 8, 430e9, 50e9, 132).num_sms()?, 12);
    /// # Ok::<(), epoxide_plan::Error>(())
    /// ```
    pub fn num_sms(&self) -> Result<u32> {
        self.check()?;
        let (ranks, scale_out) = (f64::from(self.ranks), f64::from(self.scale_out()));
        let per_domain = f64::from(self.per_domain);
        // All traffic is in units of what the epilogue reads.
        let x_r = distinct_groups(self.experts, self.top_k, self.ranks);
        let (mut read, mut write, rdma, nvlink);
        read = 1.0 / x_r;
        if self.scale_out() > 1 {
            let x_o = distinct_groups(self.experts, self.top_k, self.scale_out());
            write = 1.0 / x_r + x_o / x_r / scale_out + 1.0;
            rdma = x_o / x_r * (1.0 - 1.0 / scale_out);
            read += x_o / x_r;
            nvlink = 1.0 - 1.0 / per_domain;
        } else {
            write = per_domain / ranks;
            if self.ranks > self.per_domain {
                write += 1.0 / x_r;
            }
            nvlink = per_domain / ranks * (1.0 - 1.0 / per_domain);
            rdma = 0.0;
        }
        let rdma_bound = self.scale_out() > 1 && rdma / self.rdma > nvlink / self.nvlink;
        let (traffic, bandwidth) = if rdma_bound { (rdma, self.rdma) } else { (nvlink, self.nvlink) };
        let raw = if traffic > 0.0 {
            (bandwidth / traffic * read / SM_READ).max(bandwidth / traffic * write / SM_WRITE)
        } else {
            f64::from(self.device_sms)
        };
        // Saturates: an absurd bandwidth is capped by the device below.
        let sms = ((raw * 1.25).ceil() as u32).clamp(4, 1 << 20).next_multiple_of(2);
        let sms = if self.prefer_overlap { sms } else { sms.max(64) };
        Ok(sms.min(self.device_sms))
    }

    /// Queue pairs of an operation of `num_sms` SMs, of the `allocated` ones.
    pub fn num_qps(&self, num_sms: u32, allocated: u32) -> u32 {
        let wanted = if self.scale_out() > 1 { 16 * num_sms + 1 } else { num_sms.min(9) };
        wanted.min(allocated)
    }
}
