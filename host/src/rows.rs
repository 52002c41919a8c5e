//! The rows that a rank dispatches, in the forms that a buffer's format takes.
use epoxide_dsl::Kernel;
use epoxide_dsl::memory::Global;
use epoxide_kernels::dispatch::DispatchArgs;
use epoxide_kernels::dispatch::again::DispatchAgainArgs;
use epoxide_kernels::dispatch::again_by_expert::DispatchAgainByExpertArgs;
use epoxide_kernels::entries::{
    dispatch_again_brought, dispatch_again_brought_by_expert, dispatch_again_copied, dispatch_again_copied_by_expert,
    dispatch_again_quantized, dispatch_again_quantized_by_expert, dispatch_brought, dispatch_brought_by_expert,
    dispatch_brought_by_expert_observed, dispatch_brought_observed, dispatch_copied, dispatch_copied_by_expert,
    dispatch_copied_by_expert_observed, dispatch_copied_observed, dispatch_quantized, dispatch_quantized_by_expert,
    dispatch_quantized_by_expert_observed, dispatch_quantized_observed,
};
use epoxide_kernels::entries_halves::{
    dispatch_send_brought, dispatch_send_copied, dispatch_send_mxfp8, dispatch_send_quantized, dispatch_send_ue8m0,
};
use epoxide_kernels::entries_rank_major::{
    dispatch_brought_rank_major, dispatch_brought_rank_major_packed, dispatch_copied_rank_major,
    dispatch_copied_rank_major_packed, dispatch_mxfp8_rank_major, dispatch_mxfp8_rank_major_packed,
    dispatch_quantized_rank_major, dispatch_quantized_rank_major_packed, dispatch_ue8m0_rank_major,
    dispatch_ue8m0_rank_major_packed,
};
use epoxide_kernels::entries_ue8m0::{
    dispatch_again_mxfp8, dispatch_again_mxfp8_by_expert, dispatch_again_ue8m0, dispatch_again_ue8m0_by_expert,
    dispatch_mxfp8, dispatch_mxfp8_by_expert, dispatch_mxfp8_by_expert_observed, dispatch_mxfp8_observed,
    dispatch_ue8m0, dispatch_ue8m0_by_expert, dispatch_ue8m0_by_expert_observed, dispatch_ue8m0_observed,
};
use epoxide_kernels::rank_major::DispatchRankMajorArgs;
use epoxide_kernels::rank_major::packing::DispatchPackedArgs;
use epoxide_kernels::row::RowArgs;
use epoxide_kernels::shape::Shape;
use half::bf16;

use crate::comm::Comm;
use crate::config::WireFormat;
use crate::error::{Error, Result};
use crate::slice::{DeviceSlice, check_address, check_aligned, check_len, check_rank};
use crate::tensor::DeviceTensor;

/// The rows of a rank's tokens. A buffer's [format](crate::Config::format) says which it takes:
///
/// | format | takes |
/// |---|---|
/// | [`WireFormat::Bf16`] | [`Bf16`](Self::Bf16) |
/// | [`WireFormat::Fp8`] | [`Bf16`](Self::Bf16), which dispatch quantises, or [`Fp8`](Self::Fp8): what arrives is the same, so ranks and calls may differ |
/// | [`WireFormat::Fp8Ue8m0`], [`WireFormat::Mxfp8`] | likewise [`Bf16`](Self::Bf16) or [`Fp8Packed`](Self::Fp8Packed) |
/// | [`WireFormat::Opaque`] | [`Opaque`](Self::Opaque) |
///
/// Rows begin at a multiple of 16 bytes; scales at any word. Token `t`'s scales begin `t * scale_stride` words on, and the words between them
/// are not read: what is received has its own stride, with zeros there.
///
/// ```
/// use epoxide::quantize::{Quantizer, scale_stride};
/// use epoxide::{Config, DispatchInput, ElasticBuffer, LocalGroup, Mode, Rows, WireFormat, bf16};
///
/// LocalGroup::simulated(1, Mode::Fast { workers: 1 })?.run(|comm| {
///     let mut buffer = ElasticBuffer::new(&comm, Config::new(2, 1, 256, 3).with_format(WireFormat::Fp8))?;
///     let x = comm.tensor(&[bf16::from_f32(0.3); 3 * 256])?;
///     let (idx, weights) = (comm.tensor(&[0i64, 1, 0])?, comm.tensor(&[1.0f32; 3])?);
///     // Quantised before, as an engine's own kernel would, or by dispatch: the same arrives.
///     let stride = scale_stride(256);
///     let (mut codes, mut scales) = (comm.empty::<u8>(3 * 256)?, comm.empty::<f32>(u64::from(3 * stride))?);
///     Quantizer::new(&comm)?.quantize(&x, 3, 256, &mut codes, &mut scales)?;
///     let brought = buffer.dispatch(&DispatchInput::new(3, Rows::fp8(&codes, &scales, stride), &idx, &weights))?;
///     let brought = buffer.received(&brought)?;
///     let inside = buffer.dispatch(&DispatchInput::new(3, &x, &idx, &weights))?;
///     assert_eq!(brought, buffer.received(&inside)?);
///     buffer.close()
/// })?;
/// # Ok::<(), epoxide::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Rows<'a> {
    /// BF16 `[tokens, hidden]`. `(&tensor).into()` makes one.
    Bf16(DeviceSlice<'a, bf16>),
    /// e4m3 with one f32 scale for every 128 elements.
    #[non_exhaustive]
    Fp8 {
        /// e4m3 bits `[tokens, hidden]`.
        codes: DeviceSlice<'a, u8>,
        /// f32 `[tokens, scale_stride]`, of which `ceil(hidden / 128)` of each row are read.
        scales: DeviceSlice<'a, f32>,
        /// f32 from one row's scales to the next's.
        scale_stride: u32,
    },
    /// e4m3 with UE8M0 scales, one for every 128 elements or, in [`WireFormat::Mxfp8`], 32, packed by four.
    #[non_exhaustive]
    Fp8Packed {
        /// e4m3 bits `[tokens, hidden]`.
        codes: DeviceSlice<'a, u8>,
        /// `[tokens, scale_stride]`, of which [what a row's scales take](WireFormat::scale_words) is read: the first scale in the lowest byte of the
        /// first word, 0 in bytes behind the last.
        scales: DeviceSlice<'a, u32>,
        /// Words from one row's scales to the next's.
        scale_stride: u32,
    },
    /// Bytes and words that only the caller knows.
    #[non_exhaustive]
    Opaque {
        /// `[tokens, row_bytes]`.
        rows: DeviceSlice<'a, u8>,
        /// `[tokens, scale_stride]`, of which `scale_words` of each row are read.
        scales: DeviceSlice<'a, u32>,
        /// Words from one row's scales to the next's.
        scale_stride: u32,
    },
}

impl<'a> Rows<'a> {
    /// e4m3 `[tokens, hidden]`, and f32 `[tokens, scale_stride]`: tensors (`&codes`) or parts of them.
    pub fn fp8(
        codes: impl Into<DeviceSlice<'a, u8>>,
        scales: impl Into<DeviceSlice<'a, f32>>,
        scale_stride: u32,
    ) -> Self {
        Self::Fp8 { codes: codes.into(), scales: scales.into(), scale_stride }
    }

    /// e4m3 `[tokens, hidden]`, and words of four UE8M0 scales `[tokens, scale_stride]`: tensors (`&codes`) or parts of them.
    pub fn fp8_packed(
        codes: impl Into<DeviceSlice<'a, u8>>,
        scales: impl Into<DeviceSlice<'a, u32>>,
        scale_stride: u32,
    ) -> Self {
        Self::Fp8Packed { codes: codes.into(), scales: scales.into(), scale_stride }
    }

    /// `[tokens, row_bytes]` bytes, and `[tokens, scale_stride]` words: tensors (`&rows`) or parts of them.
    pub fn opaque(
        rows: impl Into<DeviceSlice<'a, u8>>,
        scales: impl Into<DeviceSlice<'a, u32>>,
        scale_stride: u32,
    ) -> Self {
        Self::Opaque { rows: rows.into(), scales: scales.into(), scale_stride }
    }

    /// [`Self::opaque`] for a format whose rows have no scales.
    pub fn opaque_without_scales(rows: impl Into<DeviceSlice<'a, u8>>) -> Self {
        let rows = rows.into();
        Self::Opaque { rows, scales: rows.no_elements(), scale_stride: 0 }
    }

    /// Checks the tensors of `tokens` tokens; returns their addresses.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for another rank's tensors, [`Error::BufferTooSmall`] for short ones; what [`RawRows::check`] finds.
    pub(crate) fn check(&self, tokens: u32, comm: &Comm, shape: &Shape) -> Result<RawRows> {
        let raw = self.raw();
        // The form, and the stride, before what follows from them.
        raw.check(shape)?;
        let elements = u64::from(tokens) * u64::from(shape.hidden);
        // Nothing is read behind the last row's scales, nor at all where rows have none.
        let words = u64::from(shape.scale_words());
        let scales = |stride: u32| match tokens.checked_sub(1) {
            Some(before) if words > 0 => u64::from(before) * u64::from(stride) + words,
            _ => 0,
        };
        match *self {
            Self::Bf16(x) => {
                check_rank("x", x, comm)?;
                check_len("x", "input rows", x, elements)?;
            }
            Self::Fp8 { codes, scales: of_rows, scale_stride } => {
                check_rank("codes", codes, comm)?;
                check_rank("scales", of_rows, comm)?;
                check_len("codes", "input rows", codes, elements)?;
                check_len("scales", "scales", of_rows, scales(scale_stride))?;
            }
            Self::Fp8Packed { codes, scales: of_rows, scale_stride } => {
                check_rank("codes", codes, comm)?;
                check_rank("scales", of_rows, comm)?;
                check_len("codes", "input rows", codes, elements)?;
                check_len("scales", "scales", of_rows, scales(scale_stride))?;
            }
            Self::Opaque { rows, scales: of_rows, scale_stride } => {
                check_rank("rows", rows, comm)?;
                check_rank("scales", of_rows, comm)?;
                check_len("rows", "input rows", rows, u64::from(tokens) * shape.wire_row_bytes())?;
                check_len("scales", "scales", of_rows, scales(scale_stride))?;
            }
        }
        Ok(raw)
    }

    fn raw(&self) -> RawRows {
        match *self {
            Self::Bf16(x) => RawRows::Bf16(x.address()),
            Self::Fp8 { codes, scales, scale_stride } => {
                RawRows::Fp8 { codes: codes.address(), scales: scales.address(), scale_stride }
            }
            Self::Fp8Packed { codes, scales, scale_stride } => {
                RawRows::Fp8Packed { codes: codes.address(), scales: scales.address(), scale_stride }
            }
            Self::Opaque { rows, scales, scale_stride } => {
                RawRows::Opaque { rows: rows.address(), scales: scales.address(), scale_stride }
            }
        }
    }
}

impl<'a> From<DeviceSlice<'a, bf16>> for Rows<'a> {
    fn from(x: DeviceSlice<'a, bf16>) -> Self {
        Self::Bf16(x)
    }
}

impl<'a> From<&'a DeviceTensor<bf16>> for Rows<'a> {
    fn from(x: &'a DeviceTensor<bf16>) -> Self {
        Self::Bf16(x.into())
    }
}

/// [`Rows`] as device addresses. An address alone is one of BF16 rows: `x.into()`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum RawRows {
    /// BF16 `[tokens, hidden]`, at a multiple of 16 bytes.
    Bf16(u64),
    /// e4m3 with one f32 scale for every 128 elements.
    Fp8 {
        /// e4m3 bits `[tokens, hidden]`, at a multiple of 16 bytes.
        codes: u64,
        /// f32 `[tokens, scale_stride]`, of which `ceil(hidden / 128)` of each row are read.
        scales: u64,
        /// f32 from one row's scales to the next's.
        scale_stride: u32,
    },
    /// e4m3 with UE8M0 scales packed by four; see [`Rows::Fp8Packed`].
    Fp8Packed {
        /// e4m3 bits `[tokens, hidden]`, at a multiple of 16 bytes.
        codes: u64,
        /// u32 `[tokens, scale_stride]`, of which [what a row's scales take](WireFormat::scale_words) is read.
        scales: u64,
        /// Words from one row's scales to the next's.
        scale_stride: u32,
    },
    /// Bytes and words that only the caller knows.
    Opaque {
        /// `[tokens, row_bytes]`, at a multiple of 16 bytes.
        rows: u64,
        /// u32 `[tokens, scale_stride]`, of which `scale_words` of each row are read.
        scales: u64,
        /// Words from one row's scales to the next's.
        scale_stride: u32,
    },
}

impl From<u64> for RawRows {
    fn from(x: u64) -> Self {
        Self::Bf16(x)
    }
}

/// The kernels that take rows of one form.
pub(crate) struct RowKernels {
    /// A dispatch.
    dispatch: &'static Kernel<DispatchArgs>,
    /// One whose counts are observed: held against a bound, told early, or added up.
    observed: &'static Kernel<DispatchArgs>,
    /// One where rows have fixed places.
    rank_major: Option<&'static Kernel<DispatchRankMajorArgs>>,
    /// One where rows of fixed places are packed.
    packed: Option<&'static Kernel<DispatchPackedArgs>>,
    /// The send half of one where rows have fixed places.
    pub send: Option<&'static Kernel<DispatchRankMajorArgs>>,
    /// One by an old routing.
    pub again: Again,
}

/// A whole dispatch.
#[derive(Clone, Copy)]
pub(crate) enum Whole {
    /// Of rows whose places follow from counts.
    ByCounts(&'static Kernel<DispatchArgs>),
    /// Of rows that have fixed places.
    InPlaces(&'static Kernel<DispatchRankMajorArgs>),
    /// Of such rows, which it packs.
    Packed(&'static Kernel<DispatchPackedArgs>),
}

/// A dispatch by an old routing.
#[derive(Clone, Copy)]
pub(crate) enum Again {
    Compact(&'static Kernel<DispatchAgainArgs>),
    ByExpert(&'static Kernel<DispatchAgainByExpertArgs>),
}

impl RowKernels {
    /// The dispatch of a buffer of this shape, whose counts are `observed` or not.
    pub(crate) fn whole(&self, shape: &Shape, observed: bool) -> Whole {
        match (shape.layout.is_rank_major(), self.rank_major, self.packed) {
            (true, _, Some(kernel)) if shape.packs_itself() => Whole::Packed(kernel),
            (true, Some(kernel), _) => Whole::InPlaces(kernel),
            _ if observed => Whole::ByCounts(self.observed),
            _ => Whole::ByCounts(self.dispatch),
        }
    }
}

const COPIED: RowKernels = RowKernels {
    dispatch: &dispatch_copied,
    observed: &dispatch_copied_observed,
    rank_major: Some(&dispatch_copied_rank_major),
    packed: Some(&dispatch_copied_rank_major_packed),
    send: Some(&dispatch_send_copied),
    again: Again::Compact(&dispatch_again_copied),
};
const QUANTIZED: RowKernels = RowKernels {
    dispatch: &dispatch_quantized,
    observed: &dispatch_quantized_observed,
    rank_major: Some(&dispatch_quantized_rank_major),
    packed: Some(&dispatch_quantized_rank_major_packed),
    send: Some(&dispatch_send_quantized),
    again: Again::Compact(&dispatch_again_quantized),
};
const BROUGHT: RowKernels = RowKernels {
    dispatch: &dispatch_brought,
    observed: &dispatch_brought_observed,
    rank_major: Some(&dispatch_brought_rank_major),
    packed: Some(&dispatch_brought_rank_major_packed),
    send: Some(&dispatch_send_brought),
    again: Again::Compact(&dispatch_again_brought),
};
const COPIED_BY_EXPERT: RowKernels = RowKernels {
    dispatch: &dispatch_copied_by_expert,
    observed: &dispatch_copied_by_expert_observed,
    rank_major: None,
    packed: None,
    send: None,
    again: Again::ByExpert(&dispatch_again_copied_by_expert),
};
const QUANTIZED_BY_EXPERT: RowKernels = RowKernels {
    dispatch: &dispatch_quantized_by_expert,
    observed: &dispatch_quantized_by_expert_observed,
    rank_major: None,
    packed: None,
    send: None,
    again: Again::ByExpert(&dispatch_again_quantized_by_expert),
};
const BROUGHT_BY_EXPERT: RowKernels = RowKernels {
    dispatch: &dispatch_brought_by_expert,
    observed: &dispatch_brought_by_expert_observed,
    rank_major: None,
    packed: None,
    send: None,
    again: Again::ByExpert(&dispatch_again_brought_by_expert),
};

const UE8M0: RowKernels = RowKernels {
    dispatch: &dispatch_ue8m0,
    observed: &dispatch_ue8m0_observed,
    rank_major: Some(&dispatch_ue8m0_rank_major),
    packed: Some(&dispatch_ue8m0_rank_major_packed),
    send: Some(&dispatch_send_ue8m0),
    again: Again::Compact(&dispatch_again_ue8m0),
};
const UE8M0_BY_EXPERT: RowKernels = RowKernels {
    dispatch: &dispatch_ue8m0_by_expert,
    observed: &dispatch_ue8m0_by_expert_observed,
    rank_major: None,
    packed: None,
    send: None,
    again: Again::ByExpert(&dispatch_again_ue8m0_by_expert),
};
const MXFP8: RowKernels = RowKernels {
    dispatch: &dispatch_mxfp8,
    observed: &dispatch_mxfp8_observed,
    rank_major: Some(&dispatch_mxfp8_rank_major),
    packed: Some(&dispatch_mxfp8_rank_major_packed),
    send: Some(&dispatch_send_mxfp8),
    again: Again::Compact(&dispatch_again_mxfp8),
};
const MXFP8_BY_EXPERT: RowKernels = RowKernels {
    dispatch: &dispatch_mxfp8_by_expert,
    observed: &dispatch_mxfp8_by_expert_observed,
    rank_major: None,
    packed: None,
    send: None,
    again: Again::ByExpert(&dispatch_again_mxfp8_by_expert),
};

/// All kernels that a buffer of this shape may launch: its rows come in these forms.
pub(crate) fn row_kernels(shape: &Shape) -> &'static [RowKernels] {
    // Where rows have fixed places, they are those of the compact layout.
    match (shape.format, shape.layout.is_by_expert()) {
        (WireFormat::Bf16, false) => &[COPIED],
        (WireFormat::Fp8, false) => &[QUANTIZED, BROUGHT],
        (WireFormat::Fp8Ue8m0, false) => &[UE8M0, BROUGHT],
        (WireFormat::Mxfp8, false) => &[MXFP8, BROUGHT],
        // What is left is rows that the caller makes, or rows by expert.
        (_, false) => &[BROUGHT],
        (WireFormat::Bf16, true) => &[COPIED_BY_EXPERT],
        (WireFormat::Fp8, true) => &[QUANTIZED_BY_EXPERT, BROUGHT_BY_EXPERT],
        (WireFormat::Fp8Ue8m0, true) => &[UE8M0_BY_EXPERT, BROUGHT_BY_EXPERT],
        (WireFormat::Mxfp8, true) => &[MXFP8_BY_EXPERT, BROUGHT_BY_EXPERT],
        (_, true) => &[BROUGHT_BY_EXPERT],
    }
}

impl RawRows {
    /// Checks what the host can see of rows that a buffer of `shape` is to dispatch.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for rows of a form that the buffer's format does not take, at another address, or whose scales are closer
    /// than there are of a row.
    pub(crate) fn check(&self, shape: &Shape) -> Result<()> {
        let (form, takes) = match (self, shape.format) {
            (Self::Bf16(_), WireFormat::Bf16 | WireFormat::Fp8 | WireFormat::Fp8Ue8m0 | WireFormat::Mxfp8)
            | (Self::Fp8 { .. }, WireFormat::Fp8)
            | (Self::Fp8Packed { .. }, WireFormat::Fp8Ue8m0 | WireFormat::Mxfp8)
            | (Self::Opaque { .. }, WireFormat::Opaque { .. }) => ("", ""),
            (form, format) => (form.name(), taken_by(format)),
        };
        if !form.is_empty() {
            let rule = format!("the buffer's format is {:?}: it takes {takes}", shape.format);
            return Err(Error::argument("rows", form, rule));
        }
        match *self {
            Self::Bf16(x) => check_address("x", x),
            Self::Fp8 { codes, scales, scale_stride } | Self::Fp8Packed { codes, scales, scale_stride } => {
                check_address("codes", codes).and_then(|()| check_scales(scales, scale_stride, shape))
            }
            Self::Opaque { rows, scales, scale_stride } => {
                check_address("rows", rows).and_then(|()| check_scales(scales, scale_stride, shape))
            }
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Bf16(_) => "BF16 rows",
            Self::Fp8 { .. } => "FP8 rows with scales",
            Self::Fp8Packed { .. } => "FP8 rows with packed scales",
            Self::Opaque { .. } => "opaque rows",
        }
    }

    /// Which kernels take them, in a buffer of `shape`, which they were checked for.
    pub(crate) fn kernels(&self, shape: &Shape) -> &'static RowKernels {
        let kernels = row_kernels(shape);
        match self {
            // Those that the caller has quantised, where the kernel could.
            Self::Fp8 { .. } | Self::Fp8Packed { .. } => &kernels[1],
            _ => &kernels[0],
        }
    }

    /// As a kernel takes them.
    ///
    /// # Safety
    ///
    /// The addresses hold the rows of as many tokens as the kernel is told, and their scales, and nothing writes them while it runs.
    pub(crate) unsafe fn args(&self, shape: &Shape) -> RowArgs {
        let (x, brought, brought_stride) = match *self {
            Self::Bf16(x) => (x, 0, 0),
            Self::Fp8 { codes: rows, scales, scale_stride }
            | Self::Fp8Packed { codes: rows, scales, scale_stride }
            | Self::Opaque { rows, scales, scale_stride } => (rows, scales, scale_stride),
        };
        // SAFETY: the caller's promise; absent scales are of a form that does not read them.
        let (x, brought) = unsafe { (Global::from_raw(x), Global::from_raw(brought)) };
        RowArgs {
            x,
            brought,
            brought_stride,
            brought_words: shape.scale_words(),
            hidden: shape.hidden,
            // A row fits in a block's shared memory.
            row_bytes: shape.wire_row_bytes() as u32,
            scale_stride: shape.scale_stride(),
            reserved: 0,
        }
    }
}

/// What a buffer of this format takes, in words.
fn taken_by(format: WireFormat) -> &'static str {
    match format {
        WireFormat::Bf16 => "BF16 rows",
        WireFormat::Fp8 => "BF16 rows, and FP8 rows with scales",
        WireFormat::Fp8Ue8m0 | WireFormat::Mxfp8 => "BF16 rows, and FP8 rows with packed scales",
        _ => "opaque rows",
    }
}

fn check_scales(scales: u64, scale_stride: u32, shape: &Shape) -> Result<()> {
    let words = shape.scale_words();
    if scale_stride < words {
        let rule = format!("at least the {words} scales of a row");
        return Err(Error::argument("scale_stride", scale_stride, rule));
    }
    check_aligned("scales", scales, 4)
}
