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
        self.check_readable("release", handle)?;
        let slot = self.rows.of_mut(handle.row_slot);
        let combined = match slot.state {
            State::Kept { operation, .. } => Some(operation),
            _ => None,
        };
        slot.ends(State::Idle { combined });
        self.noted();
        Ok(())
    }
}
