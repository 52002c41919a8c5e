//! Giving a row slot back without a combine, or after one that left the rows there.
use super::ElasticBuffer;
use super::state::{Dispatched, State};
use crate::error::Result;

impl ElasticBuffer {
    /// Frees the row slot of `handle`: of a dispatch that [keeps its rows](crate::DispatchInput::keeping_rows), behind its combine, and of one that is
    /// not to be combined. Its routing stays, and may be replayed, until another dispatch takes the routing slot.
    ///
    /// Nothing is enqueued, and nobody waits. What still reads the rows on another stream is ordered before the next dispatch into the slot by an
    /// event, as before any dispatch. Every rank releases at the same place among its operations, where dispatches take row slots in turn.
    ///
    /// ```
    /// use epoxide::{CombineInput, Config, DispatchInput, ElasticBuffer, ExpertOutputs, LocalGroup, Mode, bf16};
    ///
    /// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
    ///     let mut buffer = ElasticBuffer::new(&comm, Config::new(4, 1, 8, 2).with_row_slots(2))?;
    ///     let (x, weights) = (comm.tensor(&[bf16::ONE; 16])?, comm.tensor(&[1.0f32; 2])?);
    ///     let (idx, mut y) = (comm.tensor(&[0i64, 3])?, comm.empty::<bf16>(16)?);
    ///     let handle = buffer.dispatch(&DispatchInput::new(2, &x, &idx, &weights).keeping_rows())?;
    ///     buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    ///     // Backward: the gradients are in the other slot, and what was received is still there.
    ///     let again = buffer.dispatch_again(&handle, &x)?;
    ///     assert_eq!((handle.row_slot(), again.row_slot()), (0, 1));
    ///     assert_eq!(buffer.received(&handle)?.x, buffer.received(&again)?.x);
    ///     buffer.combine(&again, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    ///     buffer.release(&handle)?;
    ///     buffer.close()
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::WrongOrder`](crate::Error::WrongOrder) for a handle whose combine freed the slot, [`Error::StaleHandle`](crate::Error::StaleHandle)
    /// for one that was released, or whose slot another dispatch has.
    pub fn release(&mut self, handle: &Dispatched) -> Result<()> {
        self.catch_up()?;
        self.check_readable("release", handle)?;
        self.rows.check_received("release", handle.row_slot)?;
        let slot = self.rows.of_mut(handle.row_slot);
        let combined = match slot.state {
            State::Kept { operation, .. } => Some(operation),
            _ => None,
        };
        slot.ends(State::Idle { combined });
        self.noted();
        Ok(())
    }

    /// Frees a row slot whose dispatch was enqueued, and which nobody has a handle of since what belongs behind it was not. On peers that had no
    /// such error the rows are there: they release them, or combine by another handle than this rank, which they are told.
    pub(crate) fn or_give_back(&mut self, row: u32, behind: Result<()>) -> Result<()> {
        if behind.is_err() {
            self.rows.of_mut(row).ends(State::Idle { combined: None });
        }
        behind
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use crate::runtime::Runtime;
    use crate::{
        CombineInput, Comm, Config, DispatchInput, Dispatched, ElasticBuffer, Error, ExpertOutputs, Layout, LocalGroup,
        Mode, Result, ScaleLayout, WireFormat,
    };

    const HIDDEN: u32 = 16;

    /// Lets launches of a kernel fail while `call` is made, which must fail by that.
    fn refused<T>(buffer: &mut ElasticBuffer, what: &'static str, call: impl FnOnce(&mut ElasticBuffer) -> Result<T>) {
        let comm = buffer.comm.clone();
        let Runtime::Sim(runtime) = &*comm.inner().runtime else { unreachable!("the group is simulated") };
        runtime.refuse(Some(what));
        let made = call(buffer).map(|_| ());
        runtime.refuse(None);
        let said = made.expect_err("it is refused").to_string();
        assert!(said.ends_with(&format!("{what} is refused")), "{said}");
    }

    fn dispatch(buffer: &mut ElasticBuffer) -> Result<Dispatched> {
        let comm = buffer.comm.clone();
        let x = comm.tensor(&[bf16::ONE; 2 * HIDDEN as usize])?;
        let (idx, weights) = (comm.tensor(&[0i64, 3])?, comm.tensor(&[1.0f32; 2])?);
        buffer.dispatch(&DispatchInput::new(2, &x, &idx, &weights).keeping_rows())
    }

    fn combine(buffer: &mut ElasticBuffer, handle: &Dispatched) -> Result<()> {
        let mut y = buffer.comm.empty::<bf16>(2 * u64::from(HIDDEN))?;
        buffer.combine(handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
        buffer.synchronize()
    }

    fn check(config: Config, test: impl Fn(&Comm, &mut ElasticBuffer) -> Result<()> + Sync) {
        LocalGroup::simulated(2, Mode::Fast { workers: 1 })
            .unwrap()
            .run(|comm| {
                let mut buffer = ElasticBuffer::new(&comm, config.clone())?;
                test(&comm, &mut buffer)?;
                buffer.close()
            })
            .unwrap();
    }

    fn config() -> Config {
        Config::new(4, 1, HIDDEN, 2)
    }

    /// The rows would be kept for good: with one slot no dispatch would come after this one, with two the second would be the last.
    #[test]
    fn a_dispatch_that_nobody_has_a_handle_of_holds_no_slot() {
        let fp8 = config().with_format(WireFormat::Fp8).with_scale_layout(ScaleLayout::ColumnMajor);
        let indexed = config().with_expert_index(2);
        let poisoned = config().with_poisoned_expert_outputs();
        for (config, what) in [(fp8, "lay_scale_columns"), (indexed, "index_rows"), (poisoned, "fill")] {
            for row_slots in [1, 2] {
                check(config.clone().with_row_slots(row_slots), |_, buffer| {
                    refused(buffer, what, dispatch);
                    let handles = (0..row_slots).map(|_| dispatch(buffer)).collect::<Result<Vec<_>>>()?;
                    handles.iter().try_for_each(|handle| combine(buffer, handle))
                });
            }
        }
    }

    /// One rank's launch fails, and the other gives its rows up: both go on in the same slots.
    #[test]
    fn ranks_stay_in_step_when_one_has_no_handle() {
        let fp8 = config().with_format(WireFormat::Fp8).with_scale_layout(ScaleLayout::ColumnMajor).with_row_slots(2);
        check(fp8, |comm, buffer| {
            match comm.rank() {
                0 => refused(buffer, "lay_scale_columns", dispatch),
                _ => {
                    let handle = dispatch(buffer)?;
                    buffer.release(&handle)?;
                }
            }
            let handles = [dispatch(buffer)?, dispatch(buffer)?];
            assert_eq!(handles.each_ref().map(Dispatched::row_slot), [1, 0]);
            handles.iter().try_for_each(|handle| combine(buffer, handle))
        });
    }

    #[test]
    fn a_gradient_that_nobody_has_a_handle_of_holds_no_slot() {
        let layout = Layout::ExpertContiguous { alignment: 1 };
        let config = config().with_layout(layout).with_returned_weights().with_row_slots(2);
        check(config, |comm, buffer| {
            let handle = dispatch(buffer)?;
            combine(buffer, &handle)?;
            let dy = comm.tensor(&[bf16::ONE; 2 * HIDDEN as usize])?;
            refused(buffer, "weigh_gradients", |b| b.dispatch_gradient(&handle, &dy, ExpertOutputs::InPlace));
            let again = buffer.dispatch_gradient(&handle, &dy, ExpertOutputs::InPlace)?;
            combine(buffer, &again)
        });
    }

    #[test]
    fn a_region_that_was_not_lent_can_be_asked_for_again() {
        check(config().with_poisoned_expert_outputs(), |comm, buffer| {
            let outputs = comm.tensor(&[bf16::ONE; 2 * HIDDEN as usize])?;
            refused(buffer, "fill", ElasticBuffer::lend_expert_outputs);
            let early = buffer.stage_lent_expert_outputs(&outputs);
            assert!(matches!(early, Err(Error::WrongOrder { call: "stage_lent_expert_outputs", .. })), "{early:?}");
            buffer.lend_expert_outputs()?;
            buffer.stage_lent_expert_outputs(&outputs)
        });
    }
}
