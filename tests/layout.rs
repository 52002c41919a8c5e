//! What a buffer takes: laws of its layout, and that a buffer really lies so.
use crate::support;

use epoxide::{BytesNeeded, Config, DispatchInput, ElasticBuffer, Error, WireFormat, bf16, bytes_needed};
use epoxide_kernels::layout::{PrivateLayout, Sizes, WindowLayout};
use epoxide_kernels::shape::{Layout, ScaleLayout, Shape};
use proptest::prelude::*;
use support::laws::{regions_lie_well, require};
use support::{Device, replay};

#[derive(Clone, Debug)]
struct Case {
    config: Config,
    ranks: u32,
    num_sms: u32,
}

fn cases(ranks: u32, hidden: u32, tokens: u32) -> impl Strategy<Value = Case> {
    let opaque = (1..=1024u32, 0..=300u32)
        .prop_map(|(sixteens, scale_words)| WireFormat::Opaque { row_bytes: 16 * sixteens, scale_words });
    let packed = prop_oneof![Just(WireFormat::Fp8Ue8m0), Just(WireFormat::Mxfp8)];
    let format = prop_oneof![Just(WireFormat::Bf16), Just(WireFormat::Fp8), packed, opaque];
    let slots = (1..=9u32, 1..=3u32);
    (1..=ranks, 1..=2048u32, 1..=32u32, 1..=hidden / 16, 1..=tokens, 1..=132u32, format, slots).prop_map(
        |(ranks, experts, top_k, sixteens, tokens, num_sms, format, (slots, row_slots))| Case {
            config: Config::new(experts, top_k.min(experts), sixteens * 16, tokens)
                .with_format(format)
                .with_routing_slots(slots)
                .with_row_slots(row_slots),
            ranks,
            num_sms,
        },
    )
}

fn needed(case: &Case) -> Result<BytesNeeded, String> {
    bytes_needed(&case.config, case.ranks, case.num_sms).map_err(|e| e.to_string())
}

#[test]
fn regions_are_aligned_disjoint_and_inside() {
    replay::law(module_path!(), "regions_are_aligned_disjoint_and_inside", 500, cases(64, 32_768, 100_000), |case| {
        let bytes = needed(&case)?;
        regions_lie_well(&bytes.regions, bytes.window, bytes.private)?;
        require(bytes.total() == bytes.window + bytes.private, || "the total is not the sum".to_owned())
    });
}

#[test]
fn regions_are_as_large_as_what_they_hold() {
    replay::law(module_path!(), "regions_are_as_large_as_what_they_hold", 300, cases(64, 32_768, 100_000), |case| {
        let bytes = needed(&case)?;
        let of = |name: &str| bytes.regions.iter().find(|r| r.name == name).map(|r| r.bytes);
        let (c, ranks) = (&case.config, u64::from(case.ranks));
        let (rows, slots) = (ranks * u64::from(c.max_tokens_per_rank), u64::from(c.routing_slots));
        let (wire, scales) = match c.format {
            WireFormat::Bf16 => (u64::from(c.hidden) * 2, 0),
            WireFormat::Fp8 => (u64::from(c.hidden), u64::from(support::reference::scale_stride(c.hidden)) * 4),
            WireFormat::Opaque { row_bytes, scale_words } => {
                (row_bytes.into(), u64::from(scale_words.div_ceil(4)) * 16)
            }
            WireFormat::Fp8Ue8m0 => (u64::from(c.hidden), u64::from(c.hidden.div_ceil(2048)) * 16),
            WireFormat::Mxfp8 => (u64::from(c.hidden), u64::from(c.hidden.div_ceil(512)) * 16),
            other => return Err(format!("the test knows no {other:?}")),
        };
        let selections = u64::from(c.top_k).div_ceil(4) * 16;
        let tokens_top_k = u64::from(c.max_tokens_per_rank) * u64::from(c.top_k);
        // Where there are several, each begins where a region may.
        let of_rows = |bytes: u64| match u64::from(c.row_slots) {
            1 => bytes,
            slots => slots * bytes.next_multiple_of(256),
        };
        for (name, want) in [
            ("received rows", of_rows(rows * wire)),
            ("received scales", of_rows(rows * scales)),
            ("received selections", slots * rows * selections),
            ("received gate weights", slots * rows * selections),
            ("received sources", slots * rows * 8),
            ("expert outputs", of_rows(rows * u64::from(c.hidden) * 2)),
            ("entry words", of_rows(2 * ranks * 8)),
            ("landed words", of_rows(2 * ranks * 8)),
            ("done words", of_rows(ranks * 8)),
            ("handle: dispatches", slots * 8),
            ("handle: ranks", slots * tokens_top_k * 4),
            ("handle: rows", slots * tokens_top_k * 4),
            ("received counts", slots * (1 + ranks + u64::from(c.experts.div_ceil(case.ranks))) * 4),
        ] {
            require(of(name) == Some(want), || format!("{name}: {:?} bytes, expected {want}", of(name)))?;
        }
        Ok(())
    });
}

#[test]
fn more_of_anything_never_takes_less() {
    let pairs = (cases(32, 16_384, 50_000), 0..8u32);
    replay::law(module_path!(), "more_of_anything_never_takes_less", 300, pairs, |(case, what)| {
        let mut more = case.clone();
        match what {
            0 => more.ranks += 1,
            1 => more.config.experts = (more.config.experts + 1).min(2048),
            2 => more.config.top_k = (more.config.top_k + 1).min(32).min(more.config.experts),
            3 => more.config.hidden += 16,
            4 => more.config.max_tokens_per_rank += 1,
            5 => more.config.routing_slots += 1,
            6 => more.config = more.config.with_row_slots(case.config.row_slots + 1),
            _ => more.num_sms += 1,
        }
        let (less, more) = (needed(&case)?, needed(&more)?);
        // More ranks have fewer experts each, so their private memory may shrink; the window never does.
        let private = what == 0 || more.private >= less.private;
        require(more.window >= less.window, || format!("window {} then {}", less.window, more.window))?;
        require(private, || format!("private {} then {}", less.private, more.private))
    });
}

#[test]
fn a_limit_is_kept_or_named() {
    let limits = (cases(16, 8192, 10_000), 1..200u64);
    replay::law(module_path!(), "a_limit_is_kept_or_named", 200, limits, |(case, percent)| {
        let bytes = needed(&case)?;
        let limit = (bytes.window * percent / 100).max(1);
        let config = case.config.clone().with_max_window_bytes(limit);
        match bytes_needed(&config, case.ranks, case.num_sms) {
            Ok(kept) => require(kept == bytes && limit + 256 > bytes.window, || format!("{limit} bytes are enough?")),
            Err(Error::BufferTooSmall { argument, region, needed, given, .. }) => {
                let of = bytes.regions.iter().find(|r| r.name == region && r.symmetric);
                let end = of.map(|r| r.offset + r.bytes);
                require(argument == "max_window_bytes" && given == limit, || format!("{argument} {given}"))?;
                require(end == Some(needed) && needed > limit, || format!("{region} ends at {end:?}, not {needed}"))
            }
            Err(other) => Err(other.to_string()),
        }
    });
}

/// The addresses that a buffer gives out lie where `bytes_needed` says, on every rank.
#[test]
fn a_buffer_lies_as_its_layout_says() {
    let device = Device::from_env();
    for format in [WireFormat::Bf16, WireFormat::Fp8] {
        let config = Config::new(7, 3, 48, 5).with_format(format).with_num_sms(2);
        let want = bytes_needed(&config, 3, 2).unwrap();
        let at = |name: &str| want.regions.iter().find(|r| r.name == name).map(|r| r.offset).unwrap();
        let mode = device.schedules([])[0];
        let checked = device.check(3, mode, |comm| {
            let mut buffer = ElasticBuffer::new(&comm, config.clone())?;
            let (x, idx) = (comm.tensor::<bf16>(&[])?, comm.tensor::<i64>(&[])?);
            let weights = comm.tensor::<f32>(&[])?;
            comm.barrier()?;
            let handle = buffer.dispatch(&DispatchInput::new(0, &x, &idx, &weights))?;
            let view = buffer.recv_view(&handle)?;
            let bytes = buffer.bytes()?;
            let (num_sms, local) = (buffer.num_sms(), buffer.local_experts());
            buffer.close()?;
            let window = view.x - at("received rows");
            let places = [
                ("received scales", view.scales),
                ("received selections", view.topk_idx),
                ("received gate weights", view.topk_weights),
                ("received sources", view.sources),
                ("expert outputs", view.expert_outputs),
            ];
            let check = || {
                require(bytes == want, || format!("{bytes} instead of {want}"))?;
                require(num_sms == 2, || format!("{num_sms} SMs"))?;
                require(view.max_rows == 15 && view.top_k_stride == 4, || format!("{view:?}"))?;
                require(window.is_multiple_of(256), || format!("the window is at {window:#x}"))?;
                let range = support::reference::owned(7, 3)[comm.rank() as usize].clone();
                require(local == (range.start, range.len() as u32), || format!("local experts {local:?}"))?;
                for (name, address) in places {
                    require(address == window + at(name), || format!("{name} is at {:#x}", address - window))?;
                }
                Ok(())
            };
            Ok(check())
        });
        checked.unwrap();
    }
}

#[test]
fn sizes_that_do_not_fit_in_64_bits_have_no_layout() {
    let (ranks, experts, top_k, hidden, max_tokens, blocks, format) = (1, 8, 2, 256, 16, 1, WireFormat::Bf16);
    let (layout, routing_slots, row_slots, returned_weights) = (Layout::Compact, 1, 1, false);
    let shape = |rows| Shape {
        ranks,
        experts,
        top_k,
        hidden,
        max_tokens,
        rows,
        blocks,
        format,
        layout,
        routing_slots,
        row_slots,
        returned_weights,
        scale_layout: ScaleLayout::RowMajor,
        fp8_combine: false,
        packing: epoxide_kernels::shape::Packing::None,
        expert_index: 0,
    };
    let fits = Sizes { shape: shape(1 << 50), counters: 9 };
    assert!(WindowLayout::of(&fits).is_some() && PrivateLayout::of(&fits).is_some());
    for rows in [1 << 55, u64::MAX / 512, u64::MAX] {
        assert_eq!(WindowLayout::of(&Sizes { shape: shape(rows), ..fits }), None, "{rows} rows");
    }
    for counters in [1 << 62, u64::MAX - 1, u64::MAX] {
        let sizes = Sizes { counters, ..fits };
        assert!(WindowLayout::of(&sizes).is_none() && PrivateLayout::of(&sizes).is_none(), "{counters} counters");
    }
}

/// A word for each row and selection, at the window's end, and nothing else.
#[test]
fn weights_that_travel_back_take_a_word_for_each_selection_of_a_row() {
    for (layout, stride) in [(Layout::Compact, 8), (Layout::ExpertContiguous { alignment: 16 }, 1)] {
        let config = Config::new(16, 5, 64, 10).with_layout(layout);
        let [without, with] = [config.clone(), config.with_returned_weights()].map(|c| bytes_needed(&c, 4, 2).unwrap());
        let bytes = |name: &str| with.regions.iter().find(|region| region.name == name).unwrap().bytes;
        assert_eq!(bytes("returned weights"), bytes("expert outputs") / 128 * stride * 4, "{layout:?}");
        assert_eq!(with.window - without.window, bytes("returned weights").next_multiple_of(256), "{layout:?}");
        assert_eq!(with.private, without.private);
    }
}

#[test]
fn the_largest_buffer_that_the_rules_allow_fits_in_64_bits() {
    // 64 ranks x 16777215 tokens x 1048576 elements.
    let largest = Config::new(2048, 32, 1 << 20, (1 << 24) - 1);
    let bytes = bytes_needed(&largest, 64, 1024).unwrap();
    assert!(bytes.total() > 1 << 51);
    let table = bytes.to_string();
    for region in &bytes.regions {
        assert!(table.contains(region.name) && table.contains(&region.bytes.to_string()), "{table}");
    }
    assert!(table.contains(&bytes.total().to_string()), "{table}");
}
