//! The command `epoxide`: answers about a configuration and about a machine, with or without a GPU.
mod args;
mod bytes;
mod figures;
mod hardware_file;
mod machine;
mod page;
mod plan;
mod plot;
mod preflight;
mod report;
mod request;
mod simulation;
mod sweep;
mod table;
mod units;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

/// What a command prints, and whether its answer is a good one.
struct Answer {
    text: String,
    success: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(answer) => {
            // Whoever reads may stop early (`| head`): that is no error of ours.
            let _ = writeln!(std::io::stdout(), "{}", answer.text.trim_end());
            if answer.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<Answer> {
    let text = match &cli.command {
        Command::Bytes(shape) => bytes::run(shape)?,
        Command::Plan(args) => plan::run(args)?,
        Command::Preflight(args) => return preflight::run(args),
    };
    Ok(Answer { text, success: true })
}
