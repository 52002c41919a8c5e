//! What the ranks on one GPU share: its SMs and its hardware queues, counted so that all of them run at the same time.
//!
//! Ranks wait for each other on the device. A block that finds no free SM, or a stream that shares a hardware queue with one
//! whose kernel waits, would never start, and the rank that waits for it would never end. So both are claimed beforehand,
//! and what does not fit is an error, not a hang.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// Hardware queues that the driver makes when nothing else is said.
const DEFAULT_CONNECTIONS: u32 = 8;
/// Most that it makes (CUDA Programming Guide, "Environment Variables").
const MAX_CONNECTIONS: u32 = 32;

/// A number of equal things on one GPU, of which each rank claims some.
#[derive(Debug)]
pub(super) struct Budget {
    what: &'static str,
    rule: &'static str,
    device: u32,
    limit: u32,
    used: Mutex<u32>,
}

/// A part of a budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    budget: Arc<Budget>,
    amount: u32,
}

/// Whole SMs that one rank's kernels may fill at once.
pub(crate) type SmReservation = Claim;

impl Budget {
    /// The SMs of GPU `device` that ranks may fill: one stays free, for what runs beside the kernels that wait (copies, fills,
    /// and the caller's own work, on which a rank's arrival may depend).
    pub(super) fn sms(device: u32, sms: u32) -> Arc<Self> {
        let rule = "the ranks on one GPU run at the same time, so their SMs add up, and one SM stays free; use fewer SMs per rank, or fewer ranks";
        Arc::new(Self { what: "SMs", rule, device, limit: sms.saturating_sub(1), used: Mutex::new(0) })
    }

    /// The streams that GPU `device` runs without letting one wait behind another; `connections` is the value of
    /// `CUDA_DEVICE_MAX_CONNECTIONS`.
    pub(super) fn streams(device: u32, connections: Option<&str>) -> Arc<Self> {
        let rule = "streams beyond CUDA_DEVICE_MAX_CONNECTIONS (8 unless set, 32 at most) share a hardware queue, in which one rank's kernel waits behind another's; set it before the process starts, or use fewer ranks per GPU";
        Arc::new(Self { what: "streams", rule, device, limit: queues(connections), used: Mutex::new(0) })
    }

    /// Claims `amount`.
    ///
    /// # Errors
    ///
    /// [`Error::DoesNotFit`] if less is left.
    pub(super) fn claim(self: &Arc<Self>, amount: u32) -> Result<Claim> {
        let mut claim = Claim { budget: Arc::clone(self), amount: 0 };
        claim.resize(amount)?;
        Ok(claim)
    }

    /// What is claimed now.
    pub(super) fn claimed(&self) -> u32 {
        *self.used()
    }

    fn used(&self) -> MutexGuard<'_, u32> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Makes it a claim of `amount`, at once: nobody takes meanwhile what it was.
    ///
    /// # Errors
    ///
    /// [`Error::DoesNotFit`] if less is left; it stays as it was then.
    pub(crate) fn resize(&mut self, amount: u32) -> Result<()> {
        let Budget { what, rule, device, limit, .. } = *self.budget;
        let mut used = self.budget.used();
        let others = *used - self.amount;
        if amount > limit - others {
            // With what the others have: a user knows the sum, not what is left.
            let asked = u64::from(others) + u64::from(amount);
            return Err(Error::DoesNotFit { what, device, asked, limit: limit.into(), rule });
        }
        *used = others + amount;
        self.amount = amount;
        Ok(())
    }

    /// Gives back what is over `amount`.
    pub(crate) fn shrink(&mut self, amount: u32) {
        let over = self.amount.saturating_sub(amount);
        *self.budget.used() -= over;
        self.amount -= over;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// What the driver makes of `CUDA_DEVICE_MAX_CONNECTIONS`.
fn queues(connections: Option<&str>) -> u32 {
    match connections.and_then(|text| text.trim().parse().ok()) {
        Some(0) | None => DEFAULT_CONNECTIONS,
        Some(given) => MAX_CONNECTIONS.min(given),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sm_stays_free() {
        let sms = Budget::sms(0, 132);
        let _seven: Vec<_> = (0..7).map(|_| sms.claim(16).unwrap()).collect();
        let refused = sms.claim(20).unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("SMs on GPU 0: 132 with what its ranks have so far, 131 fit; the ranks on one GPU run"),
            "{refused}"
        );
        let rest = sms.claim(19).unwrap();
        assert!(sms.claim(1).is_err());
        assert!(sms.claim(0).is_ok());
        drop(rest);
        assert!(sms.claim(19).is_ok());
    }

    #[test]
    fn a_refused_claim_takes_nothing() {
        let sms = Budget::sms(3, 10);
        assert!(matches!(sms.claim(u32::MAX), Err(Error::DoesNotFit { what: "SMs", device: 3, limit: 9, .. })));
        assert!(matches!(sms.claim(10), Err(Error::DoesNotFit { asked: 10, limit: 9, .. })));
        assert!(sms.claim(9).is_ok());
    }

    #[test]
    fn a_claim_grows_and_shrinks_and_keeps_what_it_has_when_it_cannot_grow() {
        let sms = Budget::sms(0, 101);
        let (mut a, mut b) = (sms.claim(40).unwrap(), sms.claim(50).unwrap());
        assert!(matches!(a.resize(60), Err(Error::DoesNotFit { asked: 110, limit: 100, .. })));
        assert!(sms.claim(11).is_err(), "a still has its 40");
        a.resize(50).unwrap();
        a.resize(50).unwrap();
        assert!(sms.claim(1).is_err());
        b.shrink(20);
        b.shrink(30);
        assert!(sms.claim(31).is_err());
        let _rest = sms.claim(30).unwrap();
        drop((a, b));
        assert!(sms.claim(70).is_ok());
    }

    #[test]
    fn no_sm_is_free_on_a_gpu_without_sms() {
        assert!(Budget::sms(0, 0).claim(1).is_err());
        assert!(Budget::sms(0, 1).claim(1).is_err());
    }

    #[test]
    fn streams_are_as_many_as_hardware_queues() {
        let streams = Budget::streams(0, None);
        let mut open: Vec<_> = (0..8).map(|_| streams.claim(1).unwrap()).collect();
        assert!(matches!(streams.claim(1), Err(Error::DoesNotFit { what: "streams", asked: 9, limit: 8, .. })));
        open.pop();
        assert!(streams.claim(1).is_ok());
    }

    #[test]
    fn the_environment_sets_the_queues() {
        assert_eq!(queues(None), 8);
        assert_eq!(queues(Some("16")), 16);
        assert_eq!(queues(Some(" 1 ")), 1);
        assert_eq!(queues(Some("64")), 32);
        for not_a_number in ["", "0", "-1", "many"] {
            assert_eq!(queues(Some(not_a_number)), 8, "{not_a_number:?}");
        }
    }

    #[test]
    fn claims_of_many_threads_never_exceed_the_limit() {
        let sms = Budget::sms(0, 33);
        let got: u32 = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..20).map_while(|_| sms.claim(1).ok()).collect::<Vec<_>>())).collect();
            let claims: Vec<_> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
            assert_eq!(*sms.used.lock().unwrap() as usize, claims.len());
            claims.len() as u32
        });
        assert_eq!(got, 32);
        assert_eq!(*sms.used.lock().unwrap(), 0);
    }
}
