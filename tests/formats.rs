//! Rows that the caller brings as they travel: what arrives is bit by bit what was brought, and FP8 rows that were quantised before are what
//! dispatch would have made of them.
use crate::assert_error;
use crate::support;

use epoxide::quantize::{Quantizer, scale_stride};
use epoxide::{
    Config, DispatchInput, ElasticBuffer, Error, IndexType, Mode, RawDispatchInput, RawRows, Result, Rows, WireFormat,
    bf16, bytes_needed,
};
use support::brought::{Brought, Lie};
use support::errors::run;
use support::exchange::{Tensors, check_received, check_round, check_round_of};
use support::reference::{Wire, World};
use support::routing::{Case, Random};
use support::{Checked, Device, replay};

/// Two rounds on one buffer; rank `r` brings its rows in round `i` if `brings(r, i)`.
fn check(device: Device, case: &Case, lie: Lie, brings: impl Fn(u32, u32) -> bool + Sync) -> Checked {
    let worlds: Vec<World> = (0..2).map(|i| Case { data: case.data ^ i << 32, ..case.clone() }.world()).collect();
    let wires: Vec<Vec<Wire>> = worlds.iter().map(World::wires).collect();
    let world_words = worlds[0].scale_words();
    device.check(case.ranks, case.mode, |comm| {
        let rank = comm.rank();
        let mut buffer = ElasticBuffer::new(&comm, case.config())?;
        let tokens = case.tokens[rank as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        let brought = wires.iter().map(|wires| Brought::new(&comm, &wires[rank as usize], world_words, lie));
        let brought = brought.collect::<Result<Vec<_>>>()?;
        comm.barrier()?;
        let mut checked = Ok(());
        for (round, (world, wires)) in (0..).zip(worlds.iter().zip(&wires)) {
            tensors.fill(world, rank)?;
            let right = if brings(rank, round) {
                let rows = brought[round as usize].rows()?;
                let handle = tensors.dispatch_rows(&mut buffer, tokens, rows)?;
                check_round_of(&comm, &mut buffer, &handle, &mut tensors, world, wires)?
            } else {
                check_round(&comm, &mut buffer, &mut tensors, world, wires)?
            };
            checked = checked.and(right.map_err(|e| format!("round {round}: {e}")));
        }
        buffer.close()?;
        Ok(checked)
    })
}

/// Rows of 16 to 16,384 bytes, most of them odd multiples of 16; few scales and many; scales that lie side by side or not, aligned or not.
#[test]
fn opaque_rows_arrive_as_they_were_brought() {
    let device = Device::from_env();
    let lies = [(0, 0), (1, 0), (0, 1), (4, 4), (5, 3), (2, 2)].map(|(gap, before)| Lie { gap, before });
    let modes = device.schedules([7]);
    let mut next = 0;
    for row_bytes in [16, 48, 112, 1008, 3600, 16_368, 16_384] {
        for scale_words in [0, 1, 3, 4, 56, 131, 224] {
            // By turns, so that every size meets every schedule.
            let (lie, mode) = (lies[next % lies.len()], modes[next % modes.len()]);
            next += 1;
            let format = WireFormat::Opaque { row_bytes, scale_words };
            let case = Case::with_rows(3, 24, format, vec![5, 1, 8], next as u64, mode);
            check(device, &case, lie, |_, _| true).unwrap_or_else(|e| panic!("{format:?}, {lie:?}: {e}"));
        }
    }
}

#[test]
fn random_rows_that_are_brought_arrive() {
    let device = Device::from_env();
    for seed in replay::seeds(4) {
        let mut random = Random::new(seed);
        let ranks = 1 + random.below(8.min(device.max_ranks()));
        let opaque = random.below(2) == 0;
        let format = match opaque {
            true => WireFormat::Opaque { row_bytes: 16 * (1 + random.below(80)), scale_words: random.below(40) },
            false => [WireFormat::Fp8, WireFormat::Fp8Ue8m0, WireFormat::Mxfp8][random.below(3) as usize],
        };
        let hidden = 16 * (1 + random.below(60));
        let tokens: Vec<u32> = (0..ranks).map(|_| random.below(4) * random.below(9)).collect();
        let lie = Lie { gap: random.below(6), before: random.below(5) };
        for mode in device.schedules([seed]) {
            let case = Case {
                experts: 1 + random.below(20),
                ..Case::with_rows(ranks, hidden, format, tokens.clone(), seed, mode)
            };
            let case = Case { top_k: 1 + random.below(case.experts.min(8)), ..case };
            // In FP8 every rank brings or quantises as it likes, and another way in the next round.
            let who = random.draw();
            check(device, &case, lie, |rank, round| opaque || who >> (2 * rank + round) & 1 == 1).unwrap_or_else(|e| {
                let line = replay::line(module_path!(), "random_rows_that_are_brought_arrive", seed);
                panic!("{case:?}, {lie:?}: {e}\nreplay: {line}")
            });
        }
    }
}

#[test]
fn ranks_that_bring_and_ranks_that_quantise_work_together() {
    let device = Device::from_env();
    for mode in device.schedules([1, 2]) {
        for hidden in [16, 144, 2880, 7168] {
            let case = Case::with_rows(4, hidden, WireFormat::Fp8, vec![3, 9, 0, 6], u64::from(hidden), mode);
            let lie = Lie { gap: 1, before: 1 };
            check(device, &case, lie, |rank, round| (rank + round) % 2 == 0)
                .unwrap_or_else(|e| panic!("{hidden}: {e}"));
        }
    }
}

#[test]
fn no_token_brings_nothing() {
    let device = Device::from_env();
    for (format, tokens) in [
        (WireFormat::Fp8, vec![0, 0]),
        (WireFormat::Fp8Ue8m0, vec![0, 0]),
        (WireFormat::Opaque { row_bytes: 48, scale_words: 3 }, vec![0, 0]),
        (WireFormat::Opaque { row_bytes: 48, scale_words: 3 }, vec![4, 0]),
    ] {
        let case = Case::with_rows(2, 32, format, tokens, 1, Mode::Fast { workers: 0 });
        check(device, &case, Lie::default(), |_, _| true).unwrap();
    }
}

/// What this project's own quantiser makes, brought, is what dispatch makes of the same rows; from addresses too.
#[test]
fn rows_from_the_quantiser_are_those_of_dispatch() {
    let device = Device::from_env();
    for mode in device.schedules([1]) {
        let case = Case::with_rows(2, 400, WireFormat::Fp8, vec![11, 6], 5, mode);
        let world = case.world();
        let wires: Vec<Wire> = world.wires();
        let checked = device.check(2, mode, |comm| {
            let tokens = case.tokens[comm.rank() as usize];
            let mut buffer = ElasticBuffer::new(&comm, case.config())?;
            let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, IndexType::I64)?;
            tensors.fill(&world, comm.rank())?;
            let stride = scale_stride(case.hidden);
            let codes = comm.empty::<u8>(u64::from(tokens * case.hidden))?;
            let scales = comm.empty::<f32>(u64::from(tokens * stride))?;
            let (mut codes, mut scales) = (codes, scales);
            Quantizer::new(&comm)?.quantize(&tensors.x, tokens.into(), case.hidden, &mut codes, &mut scales)?;
            comm.barrier()?;
            let want = world.arrivals(comm.rank());
            let brought = tensors.dispatch_rows(&mut buffer, tokens, Rows::fp8(&codes, &scales, stride))?;
            let brought = buffer.received(&brought)?;
            let inside = tensors.dispatch(&mut buffer, tokens)?;
            let inside = buffer.received(&inside)?;
            let support::exchange::Indices::I64(idx) = &tensors.topk_idx else { return Ok(Err("no i64".to_owned())) };
            let rows = RawRows::Fp8 { codes: codes.address(), scales: scales.address(), scale_stride: stride };
            let weights = tensors.topk_weights.address();
            let raw = RawDispatchInput::new(tokens, rows, idx.address(), IndexType::I64, weights);
            // SAFETY: tensors of `tokens` tokens, which live until the buffer is closed and which nobody writes.
            let raw = unsafe { buffer.dispatch_raw(&raw)? };
            let raw = buffer.received(&raw)?;
            buffer.close()?;
            let same = if brought == inside && raw == inside { Ok(()) } else { Err("they differ".to_owned()) };
            Ok(same.and(check_received(&world, &wires, &want, &inside)))
        });
        checked.unwrap();
    }
}

/// Rows of another form than the buffer takes, and scales that cannot be those of the rows: refused before anything is enqueued.
#[test]
fn rows_that_a_buffer_cannot_take_are_refused() {
    let mode = support::errors::schedules()[0];
    let results = run(1, mode, |comm| {
        let opaque = WireFormat::Opaque { row_bytes: 48, scale_words: 3 };
        let buffer = |format| ElasticBuffer::new(&comm, Config::new(2, 1, 256, 4).with_format(format).with_num_sms(1));
        let (mut bf16s, mut fp8s, mut opaques) = (buffer(WireFormat::Bf16)?, buffer(WireFormat::Fp8)?, buffer(opaque)?);
        let mut packeds = buffer(WireFormat::Mxfp8)?;
        let (x, bytes) = (comm.tensor(&[bf16::ONE; 4 * 256])?, comm.tensor(&[7u8; 5 * 256])?);
        let (f32s, words) = (comm.tensor(&[1.0f32; 40])?, comm.tensor(&[1u32; 40])?);
        let (idx, weights) = (comm.tensor(&[0i64, 1, 0, 1])?, comm.tensor(&[1.0f32; 4])?);
        let dispatch = |buffer: &mut ElasticBuffer, rows: Rows<'_>| {
            buffer.dispatch(&DispatchInput::new(4, rows, &idx, &weights)).map(|_| ())
        };
        let fp8 = |scales, stride| Rows::fp8(&bytes, scales, stride);
        let all = || f32s.slice(..);
        let mut refused = vec![
            // The wrong form.
            dispatch(&mut bf16s, fp8(all()?, 2)),
            dispatch(&mut bf16s, Rows::opaque(&bytes, &words, 3)),
            dispatch(&mut fp8s, Rows::opaque(&bytes, &words, 3)),
            dispatch(&mut opaques, (&x).into()),
            dispatch(&mut opaques, fp8(all()?, 3)),
            dispatch(&mut fp8s, Rows::fp8_packed(&bytes, &words, 1)),
            dispatch(&mut packeds, fp8(all()?, 2)),
            dispatch(&mut packeds, Rows::opaque(&bytes, &words, 3)),
            // Strides and lengths: three strides and two scales are read.
            dispatch(&mut fp8s, fp8(all()?, 1)),
            dispatch(&mut fp8s, fp8(f32s.prefix(3 * 5 + 1)?, 5)),
            dispatch(&mut opaques, Rows::opaque(&bytes, &words, 2)),
            // Eight scales of a row are two words.
            dispatch(&mut packeds, Rows::fp8_packed(&bytes, &words, 1)),
            dispatch(&mut opaques, Rows::opaque_without_scales(&bytes)),
            dispatch(&mut opaques, Rows::opaque(&bytes, words.prefix(3 * 4 + 2)?, 4)),
            dispatch(&mut opaques, Rows::opaque(bytes.prefix(4 * 48 - 1)?, &words, 3)),
            dispatch(&mut fp8s, Rows::fp8(bytes.prefix(4 * 256 - 1)?, &f32s, 2)),
            // Addresses.
            dispatch(&mut fp8s, Rows::fp8(bytes.slice(8..)?, &f32s, 2)),
            dispatch(&mut opaques, Rows::opaque(bytes.slice(4..)?, &words, 3)),
        ];
        let rows = RawRows::Opaque { rows: bytes.address(), scales: words.address() + 2, scale_stride: 3 };
        let raw = RawDispatchInput::new(4, rows, idx.address(), IndexType::I64, weights.address());
        // SAFETY: it is refused; else, tensors that outlive the buffer.
        refused.push(unsafe { opaques.dispatch_raw(&raw) }.map(|_| ()));
        // What is just enough.
        dispatch(&mut fp8s, fp8(f32s.prefix(3 * 5 + 2)?, 5))?;
        dispatch(&mut opaques, Rows::opaque(bytes.prefix(4 * 48)?, words.prefix(3 * 4 + 3)?, 4))?;
        let received = opaques.dispatch(&DispatchInput::new(4, Rows::opaque(&bytes, &words, 3), &idx, &weights))?;
        refused.push(opaques.received(&received)?.x.to_f32(256).map(|_| ()));
        for buffer in [bf16s, fp8s, opaques, packeds] {
            buffer.close()?;
        }
        Ok(refused)
    });
    let refused = results.into_iter().next().unwrap().unwrap();
    let mut refused = refused.into_iter().map(|r| r.expect_err("the call breaks a rule"));
    for (value, takes) in [
        ("FP8 rows with scales", "format is Bf16: it takes BF16 rows"),
        ("opaque rows", "format is Bf16: it takes BF16 rows"),
        ("opaque rows", "format is Fp8: it takes BF16 rows, and FP8 rows with scales"),
        ("BF16 rows", "scale_words: 3 }: it takes opaque rows"),
        ("FP8 rows with scales", "scale_words: 3 }: it takes opaque rows"),
        ("FP8 rows with packed scales", "format is Fp8: it takes BF16 rows, and FP8 rows with scales"),
        ("FP8 rows with scales", "format is Mxfp8: it takes BF16 rows, and FP8 rows with packed scales"),
        ("opaque rows", "format is Mxfp8: it takes BF16 rows, and FP8 rows with packed scales"),
    ] {
        assert_error!(
            refused.next().unwrap(),
            Error::InvalidArgument { argument: "rows", value: v, .. } if v == value,
            format!("rows = {value}"), takes
        );
    }
    let mut stride = |value: &str, words: &str| {
        assert_error!(
            refused.next().unwrap(),
            Error::InvalidArgument { argument: "scale_stride", value: v, .. } if v == value,
            format!("at least the {words} scales")
        );
        refused.next().unwrap()
    };
    assert_error!(
        stride("1", "2"),
        Error::BufferTooSmall { argument: "scales", region: "scales", needed: 68, given: 64, .. },
        "scales take 68 bytes"
    );
    assert_error!(
        stride("2", "3"),
        Error::InvalidArgument { argument: "scale_stride", value, .. } if value == "1",
        "at least the 2 scales"
    );
    assert_error!(
        refused.next().unwrap(),
        Error::InvalidArgument { argument: "scale_stride", value, .. } if value == "0",
        "at least the 3 scales"
    );
    for (name, needed_bytes, given_bytes) in [("scales", 60, 56), ("rows", 192, 191), ("codes", 1024, 1023)] {
        assert_error!(
            refused.next().unwrap(),
            Error::BufferTooSmall { argument, needed, given, .. }
                if *argument == name && *needed == needed_bytes && *given == given_bytes,
            needed_bytes.to_string()
        );
    }
    for (name, multiple) in [("codes", "multiple of 16"), ("rows", "multiple of 16"), ("scales", "multiple of 4")] {
        assert_error!(
            refused.next().unwrap(), Error::InvalidArgument { argument, .. } if *argument == name,
            format!("{name} = 0x"), multiple
        );
    }
    assert_error!(refused.next().unwrap(), Error::InvalidArgument { argument: "rows", .. }, "the caller's");
    assert!(refused.next().is_none());
}

/// The rules of the format itself.
#[test]
fn an_opaque_format_has_its_rules() {
    let refused = |row_bytes, scale_words| {
        let format = WireFormat::Opaque { row_bytes, scale_words };
        bytes_needed(&Config::new(2, 1, 24, 4).with_format(format), 2, 1).unwrap_err()
    };
    for row_bytes in [0, 8, 24, (1 << 21) + 16, u32::MAX] {
        assert_error!(
            refused(row_bytes, 0),
            Error::InvalidArgument { argument: "row_bytes", value, .. } if *value == row_bytes.to_string(),
            "a multiple of 16 bytes, 16 to 2097152"
        );
    }
    for words in [65_537, u32::MAX] {
        assert_error!(
            refused(16, words),
            Error::InvalidArgument { argument: "scale_words", value, .. } if *value == words.to_string(),
            "0 to 65536 words"
        );
    }
    // The expert outputs are BF16 all the same, of a width that need not be the row's.
    let odd = Config::new(2, 1, 12, 4).with_format(WireFormat::Opaque { row_bytes: 16, scale_words: 0 });
    assert_error!(
        bytes_needed(&odd, 2, 1).unwrap_err(),
        Error::InvalidArgument { argument: "hidden", .. },
        "multiple of 8"
    );
    // Two rows, with their scales, must fit where they are staged.
    let long = |row_bytes| {
        let format = WireFormat::Opaque { row_bytes, scale_words: 5 };
        Config::new(2, 1, 24, 4).with_format(format).check_row(2, 232_448)
    };
    assert!(long(115_712).is_ok());
    assert_error!(
        long(116_480).unwrap_err(),
        Error::InvalidArgument { argument: "row_bytes", value, .. } if value == "116480",
        "2 rows with their scales, 116608 bytes each", "232448 bytes of shared memory"
    );
}
