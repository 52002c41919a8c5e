//! Quantisation and the device copy as operations of their own: one rank, no peers.
use epoxide_dsl::Kernel;
use epoxide_dsl::memory::Global;
use epoxide_kernels::dequantize::{DequantizeArgs, dequantize, dequantize_mxfp8, dequantize_ue8m0};
use epoxide_kernels::quantize::{PIECE, QuantizeArgs, quantize, quantize_mxfp8, quantize_ue8m0};
use epoxide_kernels::scale::GROUP;
use epoxide_kernels::shape::MAX_HIDDEN;
use half::bf16;

use crate::comm::Comm;
use crate::config::WireFormat;
use crate::error::{Error, Result};
use crate::slice::{DeviceSlice, DeviceSliceMut, check_address, check_len, check_rank};
use crate::tensor::Element;

/// f32 from one row's scales to the next's: one for every 128 elements, rounded up to 16 bytes.
pub fn scale_stride(hidden: u32) -> u32 {
    hidden.div_ceil(GROUP).next_multiple_of(4)
}

/// Words from one row's scales to the next's in `format`, rounded up to 16 bytes: f32, or four UE8M0 each; 0 in BF16.
pub fn scale_stride_of(format: WireFormat, hidden: u32) -> u32 {
    format.scale_words(hidden).next_multiple_of(4)
}

/// The kernels that quantise to a format with packed scales, and back.
fn packed(format: WireFormat) -> Result<(&'static Kernel<QuantizeArgs>, &'static Kernel<DequantizeArgs>)> {
    match format {
        WireFormat::Fp8Ue8m0 => Ok((&quantize_ue8m0, &dequantize_ue8m0)),
        WireFormat::Mxfp8 => Ok((&quantize_mxfp8, &dequantize_mxfp8)),
        other => Err(Error::argument("format", format!("{other:?}"), "a format with packed scales: Fp8Ue8m0 or Mxfp8")),
    }
}

/// The quantiser of one rank, with its kernels loaded.
#[derive(Debug)]
pub struct Quantizer {
    comm: Comm,
    most_blocks: u32,
    /// Of which packed scales the kernels are loaded, too.
    packed: Option<WireFormat>,
}

/// Blocks of a launch for each that is resident: several, so that those which end early leave room for others.
const WAVES: u32 = 4;

impl Quantizer {
    /// The quantiser of `comm`'s rank.
    ///
    /// # Errors
    ///
    /// None today.
    pub fn new(comm: &Comm) -> Result<Self> {
        let runtime = &comm.inner().runtime;
        let most_blocks = runtime.filling_blocks(quantize.blocks_per_sm() * WAVES);
        Ok(Self { comm: comm.clone(), most_blocks, packed: None })
    }

    /// [`Self::new`] for a `format` with UE8M0 scales too, [`WireFormat::Fp8Ue8m0`] or [`WireFormat::Mxfp8`], whose kernels it loads. Collective, and as
    /// [`Comm::load`] best before the first operation: every rank of the group calls it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for another format; what [`Comm::load`] says.
    pub fn with_packed_scales(comm: &Comm, format: WireFormat) -> Result<Self> {
        let (to, back) = packed(format)?;
        comm.load_together(|inner| {
            inner.runtime.prepare(to, 0)?;
            inner.runtime.prepare(back, 0)?;
            Ok(())
        })?;
        Ok(Self { packed: Some(format), ..Self::new(comm)? })
    }

    /// The format with packed scales.
    fn packed(&self) -> Result<WireFormat> {
        let rule = "packed scales are for a quantiser that was made with them (Quantizer::with_packed_scales)";
        self.packed.ok_or_else(|| Error::argument("format", "None", rule))
    }

    /// Blocks for `pieces`, each of which a warp takes at once: no more than there is work for.
    fn grid(&self, pieces: u64) -> u32 {
        let blocks = pieces.div_ceil(u64::from(quantize.threads() / 32)).clamp(1, u64::from(self.most_blocks));
        blocks as u32
    }

    /// Quantises BF16 `x` `[rows, hidden]` to e4m3 `codes` `[rows, hidden]` with f32 `scales`
    /// `[rows, scale_stride(hidden)]`, one for every 128 elements. Enqueued.
    ///
    /// `q = x * (448 / amax)`, ties to even, saturating; `scale = amax / 448`; `amax` is at least 1e-4.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when `hidden` is not a multiple of 8 or more than 2^20, or rows or codes begin at no multiple of 16 bytes, [`Error::BufferTooSmall`] for a short tensor.
    pub fn quantize<'a>(
        &self,
        x: impl Into<DeviceSlice<'a, bf16>>,
        rows: u64,
        hidden: u32,
        codes: impl Into<DeviceSliceMut<'a, u8>>,
        scales: impl Into<DeviceSliceMut<'a, f32>>,
    ) -> Result<()> {
        let (x, codes, scales) = (x.into(), codes.into(), scales.into());
        let of = Shape { rows, hidden, scale_stride: scale_stride(hidden) };
        check_shape(&self.comm, x, of, codes.as_slice(), scales.as_slice())?;
        // SAFETY: tensors of this rank's, large enough as just checked.
        unsafe { self.enqueue_quantize(&quantize, of, x, codes.as_slice(), scales.address()) }
    }

    /// [`Self::quantize`] to the format with UE8M0 scales that the quantiser was [made for](Self::with_packed_scales): `scales` is `[rows,`
    /// [`scale_stride_of`]`(format, hidden)]`, words of four, the first scale in the lowest byte. Enqueued.
    ///
    /// `scale = 2^ceil(log2(amax / 448))`, so byte `127 + ceil(log2(amax / 448))`, with `amax` of 128 or 32 elements, at least 1e-4; `q = x / scale`,
    /// ties to even. What is not finite makes its group NaN. Bytes behind a row's last scale, in the same word, are 0.
    ///
    /// # Errors
    ///
    /// As [`Self::quantize`]; [`Error::InvalidArgument`] for a quantiser that was made without packed scales.
    pub fn quantize_packed<'a>(
        &self,
        x: impl Into<DeviceSlice<'a, bf16>>,
        rows: u64,
        hidden: u32,
        codes: impl Into<DeviceSliceMut<'a, u8>>,
        scales: impl Into<DeviceSliceMut<'a, u32>>,
    ) -> Result<()> {
        let (x, codes, scales) = (x.into(), codes.into(), scales.into());
        let format = self.packed()?;
        let (kernel, _) = packed(format)?;
        let of = Shape { rows, hidden, scale_stride: scale_stride_of(format, hidden) };
        check_shape(&self.comm, x, of, codes.as_slice(), scales.as_slice())?;
        // SAFETY: tensors of this rank's, large enough as just checked.
        unsafe { self.enqueue_quantize(kernel, of, x, codes.as_slice(), scales.address()) }
    }

    /// Enqueues a quantising kernel.
    ///
    /// # Safety
    ///
    /// The tensors are this rank's, for rows of this shape, and so are the scales for the kernel's; they stay alive until the stream has passed this.
    unsafe fn enqueue_quantize(
        &self,
        kernel: &'static Kernel<QuantizeArgs>,
        of: Shape,
        x: DeviceSlice<'_, bf16>,
        codes: DeviceSlice<'_, u8>,
        scales: u64,
    ) -> Result<()> {
        let Shape { rows, hidden, scale_stride } = of;
        // SAFETY: the caller's promise.
        let args = unsafe {
            QuantizeArgs {
                x: Global::from_raw(x.address()),
                q: Global::from_raw(codes.address()),
                scales: Global::from_raw(scales),
                rows,
                hidden,
                scale_stride,
            }
        };
        let pieces = rows * u64::from(hidden.div_ceil(PIECE));
        let inner = self.comm.inner();
        // SAFETY: the kernel's launch contract is the three arrays of `rows` rows, large enough by the caller's promise, which only this rank's
        // stream uses; any grid covers all pieces.
        unsafe { inner.runtime.launch(kernel, self.grid(pieces), 0, &args, inner.stream) }
    }

    /// Turns `codes` and `scales` back into BF16 `y` `[rows, hidden]`: `round(code * scale)`. Enqueued.
    ///
    /// # Errors
    ///
    /// As [`Self::quantize`].
    pub fn dequantize<'a>(
        &self,
        codes: impl Into<DeviceSlice<'a, u8>>,
        scales: impl Into<DeviceSlice<'a, f32>>,
        rows: u64,
        hidden: u32,
        y: impl Into<DeviceSliceMut<'a, bf16>>,
    ) -> Result<()> {
        let (codes, scales, y) = (codes.into(), scales.into(), y.into());
        let of = Shape { rows, hidden, scale_stride: scale_stride(hidden) };
        check_shape(&self.comm, y.as_slice(), of, codes, scales)?;
        // SAFETY: tensors of this rank's, large enough as just checked.
        unsafe { self.enqueue_dequantize(&dequantize, of, codes, scales.address(), y.as_slice()) }
    }

    /// [`Self::dequantize`] of what [`Self::quantize_packed`] makes. Enqueued.
    ///
    /// # Errors
    ///
    /// As [`Self::quantize_packed`].
    pub fn dequantize_packed<'a>(
        &self,
        codes: impl Into<DeviceSlice<'a, u8>>,
        scales: impl Into<DeviceSlice<'a, u32>>,
        rows: u64,
        hidden: u32,
        y: impl Into<DeviceSliceMut<'a, bf16>>,
    ) -> Result<()> {
        let (codes, scales, y) = (codes.into(), scales.into(), y.into());
        let format = self.packed()?;
        let (_, kernel) = packed(format)?;
        let of = Shape { rows, hidden, scale_stride: scale_stride_of(format, hidden) };
        check_shape(&self.comm, y.as_slice(), of, codes, scales)?;
        // SAFETY: tensors of this rank's, large enough as just checked.
        unsafe { self.enqueue_dequantize(kernel, of, codes, scales.address(), y.as_slice()) }
    }

    /// Enqueues a dequantising kernel.
    ///
    /// # Safety
    ///
    /// As [`Self::enqueue_quantize`].
    unsafe fn enqueue_dequantize(
        &self,
        kernel: &'static Kernel<DequantizeArgs>,
        of: Shape,
        codes: DeviceSlice<'_, u8>,
        scales: u64,
        y: DeviceSlice<'_, bf16>,
    ) -> Result<()> {
        let Shape { rows, hidden, scale_stride } = of;
        // SAFETY: the caller's promise.
        let args = unsafe {
            DequantizeArgs {
                q: Global::from_raw(codes.address()),
                scales: Global::from_raw(scales),
                y: Global::from_raw(y.address()),
                rows,
                hidden,
                scale_stride,
            }
        };
        // A warp takes 32 vectors of 8 elements.
        let pieces = (rows * u64::from(hidden)).div_ceil(256);
        let inner = self.comm.inner();
        // SAFETY: the kernel's launch contract is the three arrays of `rows` rows, large enough by the caller's promise, which only this rank's
        // stream uses; any grid covers all pieces.
        unsafe { inner.runtime.launch(kernel, self.grid(pieces), 0, &args, inner.stream) }
    }

    /// Copies `from` to `to` with a kernel: the ceiling to quote bandwidths beside. Enqueued.
    ///
    /// # Errors
    ///
    /// [`Error::BufferTooSmall`] when `to` is shorter, [`Error::InvalidArgument`] when an address or the length is not a multiple of 16
    /// bytes.
    pub fn copy<'a, T: Element>(
        &self,
        from: impl Into<DeviceSlice<'a, T>>,
        to: impl Into<DeviceSliceMut<'a, T>>,
    ) -> Result<()> {
        let (from, to) = (from.into(), to.into());
        check_rank("from", from, &self.comm)?;
        check_rank("to", to.as_slice(), &self.comm)?;
        check_address("from", from.address())?;
        check_address("to", to.address())?;
        check_len("to", "copy", to.as_slice(), from.len())?;
        let bytes = from.len() * size_of::<T>() as u64;
        if !bytes.is_multiple_of(16) {
            return Err(Error::argument("from", format!("{bytes} bytes"), "a multiple of 16 bytes"));
        }
        let inner = self.comm.inner();
        // SAFETY: two tensors, so apart, of at least `bytes` as just checked; only this rank's stream uses them.
        unsafe { inner.runtime.copy_on_device(to.address(), from.address(), bytes, inner.stream) }
    }

    /// [`Self::copy`] between device addresses, of which one may be a peer's: the ceiling of a link. Enqueued.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when an address or `bytes` is not a multiple of 16.
    ///
    /// # Safety
    ///
    /// Both addresses are valid for `bytes` on this rank's device, the ranges do not overlap, and until the copy is done nothing
    /// writes either of them or reads `to`.
    pub unsafe fn copy_raw(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        for (argument, value) in [("from", from), ("to", to), ("bytes", bytes)] {
            if !value.is_multiple_of(16) {
                return Err(Error::argument(argument, format!("{value:#x}"), "a multiple of 16"));
            }
        }
        let inner = self.comm.inner();
        // SAFETY: multiples of 16, as just checked; ranges that are valid and apart, and that nobody writes meanwhile: the caller's promise.
        unsafe { inner.runtime.copy_on_device(to, from, bytes, inner.stream) }
    }
}

/// Rows, and how far apart their scales are.
#[derive(Clone, Copy)]
struct Shape {
    rows: u64,
    hidden: u32,
    scale_stride: u32,
}

fn check_shape<S: Element>(
    comm: &Comm,
    wide: DeviceSlice<'_, bf16>,
    of: Shape,
    codes: DeviceSlice<'_, u8>,
    scales: DeviceSlice<'_, S>,
) -> Result<()> {
    let Shape { rows, hidden, scale_stride } = of;
    if !(1..=MAX_HIDDEN).contains(&hidden) || !hidden.is_multiple_of(8) {
        let rule =
            format!("a multiple of 8, so that a row is a multiple of 16 bytes in BF16, and at most {MAX_HIDDEN}");
        return Err(Error::argument("hidden", hidden, rule));
    }
    let elements = rows
        .checked_mul(u64::from(hidden))
        .ok_or_else(|| Error::argument("rows", rows, "elements must fit in 64 bits"))?;
    check_rank("bf16 rows", wide, comm)?;
    check_rank("codes", codes, comm)?;
    check_rank("scales", scales, comm)?;
    check_address("bf16 rows", wide.address())?;
    check_address("codes", codes.address())?;
    check_len("bf16 rows", "rows", wide, elements)?;
    check_len("codes", "codes", codes, elements)?;
    check_len("scales", "scales", scales, rows.saturating_mul(scale_stride.into()))
}
