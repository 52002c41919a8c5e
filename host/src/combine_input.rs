//! What a combine takes beside its handle, as tensors and as device addresses.
use epoxide_kernels::words::Kind;
use half::bf16;

use crate::comm::Comm;
use crate::config::{Config, Packing};
use crate::error::{Error, Result};
use crate::expert_outputs::ExpertOutputs;
use crate::slice::{DeviceSlice, DeviceSliceMut, check_address, check_aligned, check_len, check_rank};
use crate::tensor::{DeviceTensor, Element};

/// Where sums go: rows `[tokens, hidden]` in BF16 or f32, at an address that is a multiple of 16. A tensor (`&mut y`) or a part of one is
/// made one by `into()`.
#[derive(Debug)]
#[non_exhaustive]
pub enum CombineOutput<'a> {
    /// The sums are rounded once, to BF16.
    Bf16(DeviceSliceMut<'a, bf16>),
    /// The sums are as they are in f32: for a buffer that has [combine's options](Config::with_combine_options).
    F32(DeviceSliceMut<'a, f32>),
}

macro_rules! output_of {
    ($($kind:ident of $element:ty),*) => { $(
        impl<'a> From<DeviceSliceMut<'a, $element>> for CombineOutput<'a> {
            fn from(y: DeviceSliceMut<'a, $element>) -> Self {
                Self::$kind(y)
            }
        }
        impl<'a> From<&'a mut DeviceSliceMut<'_, $element>> for CombineOutput<'a> {
            fn from(y: &'a mut DeviceSliceMut<'_, $element>) -> Self {
                Self::$kind(y.into())
            }
        }
        impl<'a> From<&'a mut DeviceTensor<$element>> for CombineOutput<'a> {
            fn from(y: &'a mut DeviceTensor<$element>) -> Self {
                Self::$kind(y.into())
            }
        }
    )* };
}
output_of!(Bf16 of bf16, F32 of f32);

/// Where the weights are that a combine brings back to the ranks of its tokens: f32 for each received row and selection,
/// `[rows, top_k_stride]` with the stride of [`RecvView::top_k_stride`](crate::RecvView::top_k_stride), of which those count whose local
/// expert is not -1; where rows lie by expert, `[rows]`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum ReturnedWeights<'a> {
    /// In the region that the buffer lends with that of expert outputs ([`RecvView::returned_weights`](crate::RecvView::returned_weights)).
    InPlace,
    /// In a tensor of the caller's or a part of one, which is copied to that region first. It may have more rows than were received.
    Tensor(DeviceSlice<'a, f32>),
}

impl<'a> From<DeviceSlice<'a, f32>> for ReturnedWeights<'a> {
    fn from(weights: DeviceSlice<'a, f32>) -> Self {
        Self::Tensor(weights)
    }
}

impl<'a> From<&'a DeviceTensor<f32>> for ReturnedWeights<'a> {
    fn from(weights: &'a DeviceTensor<f32>) -> Self {
        Self::Tensor(weights.into())
    }
}

/// What a rank combines.
///
/// With options, in a buffer that has them ([`Config::with_combine_options`]), a token's sum is, in f32 and in this order: the rows of ranks,
/// each in BF16, in ascending position of a rank's first selection, from +0; the first bias; the second; what was in `y`, where that is
/// accumulated. It is then rounded once to BF16, or not at all where `y` is f32.
///
/// ```
/// use epoxide::{CombineInput, Config, DispatchInput, ElasticBuffer, ExpertOutputs, LocalGroup, Mode, WireRows, bf16};
///
/// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
///     let mut buffer = ElasticBuffer::new(&comm, Config::new(4, 1, 8, 2).with_combine_options())?;
///     let (x, weights) = (comm.tensor(&[bf16::ONE; 16])?, comm.tensor(&[1.0f32; 2])?);
///     let handle = buffer.dispatch(&DispatchInput::new(2, &x, &comm.tensor(&[0i64, 3])?, &weights))?;
///     let WireRows::Bf16(rows) = buffer.received(&handle)?.x else { unreachable!("the format is BF16") };
///     buffer.write_expert_outputs(&handle, &rows)?;
///     // What a shared expert made, added to gradients that are kept in f32.
///     let (shared, mut y) = (comm.tensor(&[bf16::from_f32(0.5); 16])?, comm.tensor(&[0.25f32; 16])?);
///     let input = CombineInput::new(ExpertOutputs::InPlace, &mut y).with_bias(&shared).accumulating();
///     buffer.combine(&handle, input)?;
///     assert_eq!(y.to_vec()?, [1.75; 16]);
///     buffer.close()
/// })?;
/// # Ok::<(), epoxide::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct CombineInput<'a> {
    /// Where the experts' outputs are.
    pub outputs: ExpertOutputs<'a>,
    /// Written.
    pub y: CombineOutput<'a>,
    biases: [Option<DeviceSlice<'a, bf16>>; 2],
    /// How many biases were given, those that have no place too.
    bias_count: usize,
    accumulate: bool,
    gate_weighted: bool,
    fp8_wire: bool,
    returned: Option<(ReturnedWeights<'a>, DeviceSliceMut<'a, f32>)>,
}

impl<'a> CombineInput<'a> {
    /// Sums `outputs` ([`ExpertOutputs::InPlace`], a tensor or a part of one) into `y`, a tensor (`&mut y`) or a part of one, in BF16 or f32.
    pub fn new(outputs: impl Into<ExpertOutputs<'a>>, y: impl Into<CombineOutput<'a>>) -> Self {
        let (outputs, y) = (outputs.into(), y.into());
        let (biases, bias_count, accumulate, gate_weighted, fp8_wire) = ([None; 2], 0, false, false, false);
        Self { outputs, y, biases, bias_count, accumulate, gate_weighted, fp8_wire, returned: None }
    }

    /// Adds a row for each token, BF16 `[tokens, hidden]` at an address that is a multiple of 16: the first such call's, then the second's. There
    /// are at most two.
    #[must_use]
    pub fn with_bias(mut self, bias: impl Into<DeviceSlice<'a, bf16>>) -> Self {
        if let Some(place) = self.biases.get_mut(self.bias_count) {
            *place = Some(bias.into());
        }
        self.bias_count += 1;
        self
    }

    /// Adds what is in `y`, last.
    #[must_use]
    pub fn accumulating(mut self) -> Self {
        self.accumulate = true;
        self
    }

    /// Weighs each row by the gate weight that its dispatch brought with it, where rows lie by expert
    /// ([`Layout::ExpertContiguous`](crate::Layout::ExpertContiguous), [`Layout::Slab`](crate::Layout::Slab)). The same on every rank.
    ///
    /// A rank's rows of a token are multiplied in f32, the products are summed in f32, from +0, in ascending position, and the sum is rounded
    /// once to BF16, that of a single row too. What is then summed over ranks are those. Its gradient is
    /// [`ElasticBuffer::dispatch_gradient`](crate::ElasticBuffer::dispatch_gradient).
    #[must_use]
    pub fn gate_weighted(mut self) -> Self {
        self.gate_weighted = true;
        self
    }

    /// Lets rows cross between ranks in FP8, half as many bytes, in a buffer [made for it](Config::with_fp8_combine), which says what that costs. The same
    /// on every rank.
    #[must_use]
    pub fn over_fp8(mut self) -> Self {
        self.fp8_wire = true;
        self
    }

    /// Brings weights back to their tokens: `to`, f32 `[tokens, top_k]`, gets for each selection what the rank that owns its expert has in `from`
    /// ([`ReturnedWeights::InPlace`], a tensor or a part of one), and 0 for one that is none. Gradients of gate weights come back so. For a
    /// buffer [made for it](Config::with_returned_weights); the same on every rank.
    #[must_use]
    pub fn with_returned_weights(
        mut self,
        from: impl Into<ReturnedWeights<'a>>,
        to: impl Into<DeviceSliceMut<'a, f32>>,
    ) -> Self {
        self.returned = Some((from.into(), to.into()));
        self
    }

    /// Checks the tensors of `tokens` tokens; returns their addresses, and what is to be staged.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for another rank's tensors, [`Error::BufferTooSmall`] for short ones; what [`RawCombineInput::check`] finds.
    pub(crate) fn check(self, tokens: u32, comm: &Comm, config: &Config) -> Result<Checked<'a>> {
        let Self { outputs, y, biases, bias_count, accumulate, gate_weighted, fp8_wire, returned } = self;
        let elements = u64::from(tokens) * u64::from(config.hidden);
        let mut raw = match &y {
            CombineOutput::Bf16(y) => {
                check("y", "output rows", y.as_slice(), elements, comm)?;
                RawCombineInput::new(y.address())
            }
            CombineOutput::F32(y) => {
                check("y", "output rows", y.as_slice(), elements, comm)?;
                RawCombineInput::new_f32(y.address())
            }
        };
        for bias in biases.iter().flatten() {
            check("bias", "bias rows", *bias, elements, comm)?;
            raw = raw.with_bias(bias.address());
        }
        (raw.bias_count, raw.accumulate, raw.gate_weighted) = (bias_count, accumulate, gate_weighted);
        raw.fp8_wire = fp8_wire;
        let mut weights = None;
        if let Some((from, to)) = &returned {
            check_rank("returned weights", to.as_slice(), comm)?;
            let selections = u64::from(tokens) * u64::from(config.top_k);
            check_len("returned weights", "weights of selections", to.as_slice(), selections)?;
            raw = raw.with_returned_weights(to.address());
            if let ReturnedWeights::Tensor(from) = from {
                check_rank("weights to return", *from, comm)?;
                weights = Some(*from);
            }
        }
        raw.check(tokens, config)?;
        Ok(Checked { outputs, weights, raw })
    }
}

/// A [`CombineInput`] whose tensors were checked.
pub(crate) struct Checked<'a> {
    pub outputs: ExpertOutputs<'a>,
    /// Weights to return that are to be staged.
    pub weights: Option<DeviceSlice<'a, f32>>,
    pub raw: RawCombineInput,
}

/// Checks rows of `elements` elements.
fn check<T: Element>(
    argument: &'static str,
    region: &'static str,
    rows: DeviceSlice<'_, T>,
    elements: u64,
    comm: &Comm,
) -> Result<()> {
    check_rank(argument, rows, comm)?;
    check_address(argument, rows.address())?;
    check_len(argument, region, rows, elements)
}

/// [`CombineInput`] as device addresses, for callers with memory of their own. The expert outputs, and the weights to return, are in the lent
/// regions.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RawCombineInput {
    /// BF16 or f32 `[tokens, hidden]`, at an address that is a multiple of 16.
    pub y: u64,
    /// Whether it is f32.
    pub y_is_f32: bool,
    biases: [u64; 2],
    bias_count: usize,
    /// See [`CombineInput::accumulating`].
    pub accumulate: bool,
    /// See [`CombineInput::gate_weighted`].
    pub gate_weighted: bool,
    /// See [`CombineInput::over_fp8`].
    pub fp8_wire: bool,
    /// f32 `[tokens, top_k]`, written; see [`CombineInput::with_returned_weights`].
    pub returned_weights: Option<u64>,
}

impl RawCombineInput {
    /// Sums into `y`, in BF16.
    pub fn new(y: u64) -> Self {
        Self {
            y,
            y_is_f32: false,
            biases: [0; 2],
            bias_count: 0,
            accumulate: false,
            gate_weighted: false,
            fp8_wire: false,
            returned_weights: None,
        }
    }

    /// Sums into `y`, in f32.
    pub fn new_f32(y: u64) -> Self {
        Self { y_is_f32: true, ..Self::new(y) }
    }

    /// Adds BF16 `[tokens, hidden]` at an address that is a multiple of 16; at most twice. See [`CombineInput::with_bias`].
    #[must_use]
    pub fn with_bias(mut self, bias: u64) -> Self {
        if let Some(place) = self.biases.get_mut(self.bias_count) {
            *place = bias;
        }
        self.bias_count += 1;
        self
    }

    /// See [`CombineInput::accumulating`].
    #[must_use]
    pub fn accumulating(mut self) -> Self {
        self.accumulate = true;
        self
    }

    /// See [`CombineInput::gate_weighted`].
    #[must_use]
    pub fn gate_weighted(mut self) -> Self {
        self.gate_weighted = true;
        self
    }

    /// See [`CombineInput::over_fp8`].
    #[must_use]
    pub fn over_fp8(mut self) -> Self {
        self.fp8_wire = true;
        self
    }

    /// Writes f32 `[tokens, top_k]` at `to`. See [`CombineInput::with_returned_weights`].
    #[must_use]
    pub fn with_returned_weights(mut self, to: u64) -> Self {
        self.returned_weights = Some(to);
        self
    }

    /// The addresses of the biases, 0 where there is none.
    pub(crate) fn biases(&self) -> [u64; 2] {
        self.biases
    }

    /// Whether a plain combine does it all.
    pub(crate) fn is_plain(&self) -> bool {
        self.option().is_none() && self.returned_weights.is_none() && !self.fp8_wire
    }

    /// An option that is given. Each combine asks, so nothing is written down for it.
    fn option(&self) -> Option<&'static str> {
        let given = [
            (self.bias_count > 0, "bias"),
            (self.accumulate, "accumulating"),
            (self.y_is_f32, "y"),
            (self.gate_weighted, "gate_weighted"),
        ];
        given.into_iter().find_map(|(given, argument)| given.then_some(argument))
    }

    /// An option, by its argument, that breaks a rule.
    fn refused(&self, argument: &'static str, rule: &'static str) -> Error {
        let value = match argument {
            "bias" => self.bias_count.to_string(),
            "y" => "f32".to_owned(),
            _ => true.to_string(),
        };
        Error::argument(argument, value, rule)
    }

    /// What ranks agree on.
    pub(crate) fn kind(&self) -> Kind {
        match (self.fp8_wire, self.gate_weighted, self.returned_weights.is_some()) {
            (false, false, false) => Kind::Combine,
            (false, true, false) => Kind::CombineGated,
            (false, false, true) => Kind::CombineReturning,
            (false, true, true) => Kind::CombineGatedReturning,
            (true, false, false) => Kind::CombineFp8,
            (true, true, false) => Kind::CombineFp8Gated,
            (true, false, true) => Kind::CombineFp8Returning,
            (true, true, true) => Kind::CombineFp8GatedReturning,
        }
    }

    /// Checks that a buffer of this configuration does it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for options that the buffer was not made for, for more than two biases, for gate weights where rows lie by
    /// source, and for addresses that are no multiple of 16, or of 4 where weights go.
    pub(crate) fn check(&self, tokens: u32, config: &Config) -> Result<()> {
        if let Some(argument) = self.option()
            && !config.combine_options
        {
            let rule = "for a buffer whose configuration has combine's options: Config::with_combine_options";
            return Err(self.refused(argument, rule));
        }
        if self.fp8_wire && !config.fp8_combine {
            let rule = "for a buffer whose combines may send rows so: Config::with_fp8_combine";
            return Err(Error::argument("over_fp8", true, rule));
        }
        if let Some(to) = self.returned_weights {
            if !config.returned_weights {
                let rule = "for a buffer that has a region for them: Config::with_returned_weights";
                return Err(Error::argument("returned weights", format!("{to:#x}"), rule));
            }
            check_aligned("returned weights", to, align_of::<f32>() as u64)?;
        }
        if self.gate_weighted && config.packing != Packing::None {
            let others = Self { gate_weighted: false, ..*self };
            if let Some(argument) = others.option() {
                let rule = "not beside gate weights, where rows of fixed places are packed";
                return Err(self.refused(argument, rule));
            }
        } else if self.gate_weighted && !config.layout.is_by_expert() {
            let rule = "where rows lie by expert: a compact row's output is a sum over its experts already, who apply the weights";
            return Err(Error::argument("gate_weighted", true, rule));
        }
        if self.bias_count > self.biases.len() {
            return Err(Error::argument("bias", format!("{} of them", self.bias_count), "there are at most two"));
        }
        check_address("y", self.y)?;
        for &bias in &self.biases[..self.bias_count] {
            check_address("bias", bias)?;
            if bias == 0 && tokens > 0 {
                return Err(Error::argument("bias", "0x0", "the address of BF16 [tokens, hidden]"));
            }
        }
        Ok(())
    }
}
