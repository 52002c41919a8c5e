//! The command `epoxide`: answers about a configuration without a GPU.
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use epoxide::{Config, WireFormat, bytes_needed};

/// Expert-parallel communication for mixture-of-experts models.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what a buffer takes on every rank, by region
    Bytes(Shape),
}

/// The configuration of a buffer.
#[derive(Debug, Args)]
struct Shape {
    /// Ranks of one NVLink domain
    #[arg(long, default_value_t = 8)]
    ranks: u32,
    /// Most tokens that a rank dispatches at once
    #[arg(long, default_value_t = 4096)]
    tokens: u32,
    /// Elements of a row
    #[arg(long, default_value_t = 7168)]
    hidden: u32,
    /// Experts in all
    #[arg(long, default_value_t = 256)]
    experts: u32,
    /// Experts of a token
    #[arg(long, default_value_t = 8)]
    top_k: u32,
    /// How rows travel in dispatch
    #[arg(long, value_enum, default_value_t = Format::Bf16)]
    format: Format,
    /// SMs of an operation
    #[arg(long, default_value_t = 16)]
    num_sms: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Bf16,
    Fp8,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> epoxide::Result<String> {
    match &cli.command {
        Command::Bytes(shape) => {
            let format = match shape.format {
                Format::Bf16 => WireFormat::Bf16,
                Format::Fp8 => WireFormat::Fp8,
            };
            let config = Config::new(shape.experts, shape.top_k, shape.hidden, shape.tokens).with_format(format);
            let bytes = bytes_needed(&config, shape.ranks, shape.num_sms)?;
            let mib = bytes.total() as f64 / f64::from(1 << 20);
            Ok(format!("bytes on each of {} ranks:\n{bytes}\n         = {mib:.1} MiB", shape.ranks))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, run};

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bytes_are_printed_by_region_and_errors_name_the_rule() {
        let text = run(&Cli::parse_from(["epoxide", "bytes", "--tokens", "128"])).expect("a valid shape");
        // 8 ranks x 128 tokens x 7168 x 2 bytes.
        assert!(text.contains("received rows") && text.contains("14680064"), "{text}");
        let error = run(&Cli::parse_from(["epoxide", "bytes", "--top-k", "33"])).expect_err("33 > 32");
        assert_eq!(error.to_string(), "top_k = 33: a token selects 1 to 32 experts");
    }
}
