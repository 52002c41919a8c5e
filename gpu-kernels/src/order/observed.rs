//! An order whose counts somebody looks at: the host while rows travel, or over many dispatches.
use core::marker::PhantomData;

use epoxide_dsl::prelude::*;

use super::{Counted, Found, Order};
use crate::words::CountMatrix;

/// The order `O`; its counts are told ([`crate::dispatch`]). An instance of its own, so that who does not ask pays nothing.
#[derive(Clone, Copy, Debug)]
pub struct Observed<O>(PhantomData<O>);

impl<O: Order> Order for Observed<O> {
    const BY_EXPERT: bool = O::BY_EXPERT;
    const OBSERVED: bool = true;

    #[inline(always)]
    fn wait(counts: &CountMatrix, window: Window, watch: &wait::Watch, number: u64) -> wait::Outcome {
        O::wait(counts, window, watch, number)
    }

    #[inline(always)]
    fn bases(counted: &Counted, found: &Found) {
        O::bases(counted, found);
    }
}
