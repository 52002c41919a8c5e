//! `epoxide bytes`.
use epoxide::plan::Gpu;
use epoxide::{Config, Error, bytes_needed};

use crate::args::BytesArgs;
use crate::buffer_layout::{BufferLayout, check_alignment};

/// Prints what a buffer takes.
pub(crate) fn run(args: &BytesArgs) -> anyhow::Result<String> {
    let shape = &args.shape;
    check_alignment(args.alignment, args.layout.pads()).map_err(|error| anyhow::anyhow!(error))?;
    if args.fp8_combine && matches!(args.layout, BufferLayout::Expand | BufferLayout::Slab) {
        anyhow::bail!("--fp8-combine: only compact rows take a region for it (--layout compact)");
    }
    let config = Config::new(shape.experts, shape.top_k, shape.hidden, shape.tokens).with_format(shape.format.into());
    let mut config = args.layout.of(config, args.ranks, args.alignment, args.capacity).with_row_slots(args.row_slots);
    config.scale_layout = shape.scales.into();
    if let Some(slots) = args.routing_slots {
        config = config.with_routing_slots(slots);
    }
    config.returned_weights = args.returned_weights;
    (config.fp8_combine, config.expert_index) = (args.fp8_combine, args.expert_index);
    (config.expert_statistics, config.graphs_across_masks) = (args.expert_statistics, args.graphs_across_masks);
    let bytes = bytes_needed(&config, args.ranks, args.num_sms).map_err(|error| match error {
        // What the library calls otherwise.
        Error::InvalidArgument { argument: "max_tokens_per_rank" | "rows", .. } => {
            anyhow::anyhow!("{error} (--tokens)")
        }
        Error::InvalidArgument { argument: "routing_slots", .. } => anyhow::anyhow!("{error} (--routing-slots)"),
        error => error.into(),
    })?;
    // No buffer is made where a block cannot hold a row, not on the GPU that has most shared memory.
    let gpus = Gpu::names().into_iter().filter_map(|name| Gpu::named(&name).ok());
    let most = gpus.map(|gpu| gpu.shared_memory.value).fold(0.0, f64::max);
    config.check_row(args.ranks, most as u32)?;
    let mib = bytes.total() as f64 / f64::from(1 << 20);
    Ok(format!("bytes on each of {} ranks:\n{bytes}\n         = {mib:.1} MiB", args.ranks))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::{Cli, Command};

    #[test]
    fn bytes_are_printed_by_region_and_errors_name_the_rule() {
        let run = |args: &[&str]| match Cli::parse_from(args).command {
            Command::Bytes(shape) => super::run(&shape),
            _ => panic!("it is bytes that are asked for"),
        };
        let text = run(&["epoxide", "bytes", "--tokens", "128"]).expect("a valid shape");
        // 8 ranks x 128 tokens x 7168 x 2 bytes.
        assert!(text.contains("received rows") && text.contains("14680064"), "{text}");
        // Every token's 8 selections on each of 8 ranks, and what pads 32 experts' rows.
        let by_expert = ["epoxide", "bytes", "--tokens", "128", "--layout", "expand", "--alignment", "128"];
        let text = run(&by_expert).expect("a valid shape");
        let rows = (8 * 128 * 8 + 32 * 127) / 128 * 128 * 14336;
        assert!(text.contains(&rows.to_string()) && text.contains("sums of expert outputs"), "{text}");
        // Bounds: rows of a rank, or of each of its 32 experts.
        let rows = |bounds: &[&str], rows: u64| {
            let text = run(&[&["epoxide", "bytes", "--tokens", "128"], bounds].concat()).expect("a valid shape");
            assert!(text.contains(&format!(" {}\n", rows * 14336)), "{text}");
        };
        rows(&["--capacity", "300"], 300);
        rows(&["--layout", "expand", "--capacity", "2000"], 2000);
        rows(&["--layout", "slab", "--capacity", "50"], 32 * 50);
        rows(&["--layout", "slab"], 32 * 8 * 128);
        // Packed rows: each has a place and an output.
        rows(&["--layout", "rank-major-slab"], 32 * 8 * 128);
        rows(&["--layout", "rank-major-expand"], 8 * 128 * 8);
        // What the library's own documents say of a slot, and of weights of 8 x 4096 rows and 8 selections.
        let total = |more: &[&str]| {
            let text = run(&[&["epoxide", "bytes"], more].concat()).expect("a valid shape");
            let line = text.lines().find(|line| line.starts_with("total")).expect("the total").to_owned();
            line.split_whitespace().last().and_then(|bytes| bytes.parse::<u64>().ok()).expect("a number")
        };
        assert_eq!((total(&["--routing-slots", "3"]) - total(&["--routing-slots", "2"])) / 10_000, 262);
        assert_eq!(total(&["--returned-weights"]) - total(&[]), 8 * 4096 * 8 * 4);
        // What options take beside: codes and scales of each row, a word for each selection, for each entry of the index, for each expert two.
        let more = |option: &[&str]| total(option) - total(&[]);
        assert_eq!(more(&["--fp8-combine"]) / 10_000, 8 * 4096 * (7168 + 56 * 4) / 10_000);
        assert_eq!(more(&["--graphs-across-masks"]), 256 + 4096 * 8 * 4);
        assert_eq!(more(&["--expert-statistics"]), 32 * 8);
        // Each region is a multiple of 256 bytes long.
        let entries: u64 = 8 * 4096 * 8 + 32 * 127;
        assert_eq!(more(&["--expert-index", "128"]), (4 * entries).next_multiple_of(256) + 256);
        let by_place = ["--layout", "rank-major", "--tokens", "64", "--routing-slots", "1"];
        let padded = |rows| total(&[&by_place[..], &["--alignment", rows]].concat());
        assert_eq!((padded("9") - padded("1")).next_multiple_of(256), 32 * 8 * 4);
        let error = run(&["epoxide", "bytes", "--routing-slots", "0"]).expect_err("no slot").to_string();
        assert!(error.starts_with("routing_slots = 0: ") && error.ends_with(" (--routing-slots)"), "{error}");
        // What a dispatch brings and its experts make, once for each that may be there at once.
        let text = run(&["epoxide", "bytes", "--tokens", "128", "--row-slots", "3"]).expect("a valid shape");
        assert_eq!(text.matches(&(3 * 8 * 128 * 14336).to_string()).count(), 2, "{text}");
        let error = run(&["epoxide", "bytes", "--row-slots", "65"]).expect_err("65 > 64").to_string();
        assert_eq!(error, "row_slots = 65: a buffer has 1 to 64 row slots");
        let by_column =
            |format| run(&["epoxide", "bytes", "--tokens", "128", "--format", format, "--scales", "column-major"]);
        // 56 scales of 8 x 128 rows.
        let text = by_column("fp8").expect("a valid shape");
        assert!(text.contains(&format!("{:<24} {:>16}\n", "scales by column", 56 * 8 * 128 * 4)), "{text}");
        let error = by_column("bf16").expect_err("BF16 has no scales").to_string();
        assert_eq!(error, "scale_layout = ColumnMajor: rows in Bf16 have no scales that could lie so");
        let error = run(&["epoxide", "bytes", "--alignment", "8"]).expect_err("nothing is aligned").to_string();
        assert!(error.ends_with("(--layout expand, rank-major-expand, or rank-major)"), "{error}");
        let error = run(&["epoxide", "bytes", "--top-k", "33"]).expect_err("33 > 32");
        assert_eq!(error.to_string(), "top_k = 33: a token selects 1 to 32 experts");
        let error = run(&["epoxide", "bytes", "--tokens", "0"]).expect_err("no token").to_string();
        assert_eq!(error, "max_tokens_per_rank = 0: 1 to 16777215 tokens (--tokens)");
        let error = run(&["epoxide", "bytes", "--hidden", "1048576"]).expect_err("2 MiB a row").to_string();
        assert!(error.starts_with("hidden = 1048576: a row, 2097152 bytes, must fit in the 232448 bytes"), "{error}");
    }
}
