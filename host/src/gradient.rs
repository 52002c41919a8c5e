//! The gradient of a gate-weighted combine: rows of `dy`, weighed, and the gradients of gate weights beside them.
use epoxide_dsl::memory::Global;
use epoxide_kernels::entries::weigh_gradients;
use epoxide_kernels::gradient::WeighGradientsArgs;
use epoxide_kernels::words::Kind;

use crate::buffer::{Dispatched, ElasticBuffer, State};
use crate::config::WireFormat;
use crate::error::{Error, Result};
use crate::expert_outputs::ExpertOutputs;
use crate::replay_input::{RawReplayInput, ReplayInput};
use crate::slice::{check_address, check_rank};

impl ElasticBuffer {
    /// The gradient of a [gate-weighted combine](crate::CombineInput::gate_weighted), by the handle of its dispatch: [`Self::dispatch_again`] of `dy`, BF16
    /// `[tokens, hidden]`, which then becomes the gradient of each expert output and of each gate weight. Collective; returns once it is
    /// enqueued.
    ///
    /// `outputs` are the expert outputs that were combined, BF16 `[rows, hidden]` as the forward's combine got them. They are in memory of the
    /// caller's, as what lay in the lent region is gone once it is lent again; or [in place](ExpertOutputs::InPlace), in the row slot of `handle`, if that
    /// [keeps its rows](crate::DispatchInput::keeping_rows).
    ///
    /// * The received rows ([`RecvView::x`](crate::RecvView::x)) are `w * dy`: the product in f32, rounded once to BF16.
    /// * `<dy, output>` of each row is f32 in the region of weights to return
    ///   ([`RecvView::returned_weights`](crate::RecvView::returned_weights)), 0 where a row pads. A combine of the rows' gradients brings them to the tokens with
    ///   [`ReturnedWeights::InPlace`](crate::ReturnedWeights::InPlace). Each product is rounded to f32. They are summed in 32 partial sums, from +0: element
    ///   `e` is in number `e / 8 % 32`, in ascending order; then neighbouring partial sums are added, then pairs of them, and so on. It is the same for
    ///   any number of SMs.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a buffer whose rows are not BF16 and by expert, or that has no
    /// [region for weights to return](crate::Config::with_returned_weights), and for outputs that are not whole rows at a multiple of 16 bytes; what
    /// [`Self::dispatch_again`] says. Fewer outputs than rows are [`Error::TooFewExpertOutputs`] of the operation.
    pub fn dispatch_gradient<'a>(
        &mut self,
        handle: &Dispatched,
        dy: impl Into<ReplayInput<'a>>,
        outputs: impl Into<ExpertOutputs<'a>>,
    ) -> Result<Dispatched> {
        let (dy, outputs) = (dy.into(), outputs.into());
        self.check_gradient()?;
        let (outputs, rows) = match outputs {
            ExpertOutputs::Tensor(outputs) => {
                check_rank("expert outputs", outputs, &self.comm)?;
                (outputs.address(), self.check_rows(outputs.len())?)
            }
            ExpertOutputs::InPlace => (self.kept_outputs(handle)?, self.layouts.shape.rows),
        };
        let rows_of_dy = dy.rows.check(handle.tokens, &self.comm, &self.layouts.shape)?;
        // SAFETY: the tensors are this process's device memory, large enough as just checked, and stay allocated until the
        // stream has passed this operation (see `DeviceTensor`); kept outputs lie in a row slot that no operation takes before it is released, and one
        // that does is behind this on the stream.
        unsafe { self.enqueue_gradient(handle, &dy.raw(rows_of_dy), outputs, rows) }
    }

    /// Where the expert outputs lie that `handle` keeps.
    fn kept_outputs(&self, handle: &Dispatched) -> Result<u64> {
        self.check_readable("dispatch_gradient", handle)?;
        match self.rows.of(handle.row_slot).state {
            State::Kept { .. } | State::Dispatched { kept: true, .. } => {
                Ok(self.window_row(self.layouts.window.expert_out, handle.row_slot))
            }
            _ => {
                let rule = "of a dispatch that keeps its rows (DispatchInput::keeping_rows)";
                Err(Error::argument("expert outputs", "InPlace", rule))
            }
        }
    }

    /// [`Self::dispatch_gradient`] from device addresses: BF16 `[tokens, hidden]` at `dy`, and `rows` rows at `outputs`.
    ///
    /// # Errors
    ///
    /// As [`Self::dispatch_gradient`].
    ///
    /// # Safety
    ///
    /// The addresses are valid for as many rows, and nothing writes them until the operation is done.
    pub unsafe fn dispatch_gradient_raw(
        &mut self,
        handle: &Dispatched,
        dy: impl Into<RawReplayInput>,
        outputs: u64,
        rows: u64,
    ) -> Result<Dispatched> {
        self.check_gradient()?;
        let rows = self.check_rows(rows.saturating_mul(self.config.hidden.into()))?;
        // SAFETY: the caller's promise.
        unsafe { self.enqueue_gradient(handle, &dy.into(), outputs, rows) }
    }

    /// Checks that the buffer can.
    fn check_gradient(&self) -> Result<()> {
        if !self.config.layout.is_by_expert() {
            let rule = "rows of a gate-weighted combine lie by expert";
            return Err(Error::argument("layout", format!("{:?}", self.config.layout), rule));
        }
        if self.config.format != WireFormat::Bf16 {
            let rule = "gradients that are weighed where they arrive travel in BF16";
            return Err(Error::argument("format", format!("{:?}", self.config.format), rule));
        }
        if !self.config.returned_weights {
            let rule = "gradients of gate weights go to the region of weights to return: Config::with_returned_weights";
            return Err(Error::argument("returned_weights", false, rule));
        }
        Ok(())
    }

    /// Enqueues both kernels: the one way to them.
    ///
    /// # Errors
    ///
    /// As [`Self::dispatch_gradient`].
    ///
    /// # Safety
    ///
    /// As [`Self::dispatch_gradient_raw`].
    unsafe fn enqueue_gradient(
        &mut self,
        handle: &Dispatched,
        dy: &RawReplayInput,
        outputs: u64,
        outputs_rows: u64,
    ) -> Result<Dispatched> {
        check_address("expert outputs", outputs)?;
        // SAFETY: rows that nobody writes until the operation is done: the caller's promise.
        let again = unsafe { self.enqueue_again(handle, dy)? };
        // SAFETY: the outputs are the caller's promise.
        let weighed = unsafe { self.weigh(&again, outputs, outputs_rows) };
        // Where it was not, nobody gets the handle that would release the slot.
        self.or_give_back(again.row_slot, weighed)?;
        Ok(again)
    }

    /// Enqueues the kernel that weighs what the dispatch of `again` brings.
    ///
    /// # Safety
    ///
    /// As [`Self::dispatch_gradient_raw`].
    unsafe fn weigh(&self, again: &Dispatched, outputs: u64, outputs_rows: u64) -> Result<()> {
        let view = self.recv_view(again)?;
        // SAFETY: what the dispatch brings lies in the buffer's own memory, laid out for its shape; the outputs are the caller's promise.
        let args = unsafe {
            WeighGradientsArgs {
                op: self.operation(Kind::WeighGradients, again.slots()),
                rows: Global::from_raw(view.x),
                outputs: Global::from_raw(outputs),
                gates: Global::from_raw(view.topk_weights),
                sources: Global::from_raw(view.sources),
                gradients: Global::from_raw(view.returned_weights),
                received: Global::from_raw(view.counts),
                hidden: self.config.hidden,
                // No more than a buffer holds, which 32 bits count.
                outputs_rows: outputs_rows as u32,
            }
        };
        let inner = self.comm.inner();
        // SAFETY: the kernel's launch contract: rows by expert in BF16, behind their dispatch; the region of weights to return is lent with
        // them, and until this rank's combine no peer touches it.
        unsafe { inner.runtime.launch(&weigh_gradients, self.blocks, 0, &args, inner.stream) }
    }
}
