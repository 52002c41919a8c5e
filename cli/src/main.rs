//! The command `epoxide`: answers about a configuration and about a machine, with or without a GPU.
mod answer;
mod args;
mod bytes;
mod figures;
mod given;
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
mod visible;

#[cfg(test)]
#[path = "../../tests/support/command_line.rs"]
mod command_line;
#[cfg(test)]
mod every_option;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use answer::{Answer, Unwritten};
use args::{Cli, Command};

/// The exit code of what went wrong, and of an answer that is not a good one.
const FAILED: u8 = 1;
/// The exit code of what the caller gave and cannot be.
const BAD_INPUT: u8 = 2;

fn main() -> ExitCode {
    program(std::env::args_os()).into()
}

/// The program; its exit code.
fn program(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::read(args) {
        Ok(cli) => cli,
        Err(said) => {
            let printed = said.print().and_then(|()| io::stdout().flush());
            return if said.use_stderr() { BAD_INPUT } else { ended(printed, 0) };
        }
    };
    match run(&cli) {
        Ok(answer) => {
            let mut out = io::stdout().lock();
            let written = writeln!(out, "{}", answer.text.trim_end()).and_then(|()| out.flush());
            ended(written, if answer.success { 0 } else { FAILED })
        }
        // A file that cannot be written is nothing that the caller gave.
        Err(error) if error.is::<Unwritten>() => fail(format_args!("{error:#}"), FAILED),
        Err(error) => fail(format_args!("{error:#}"), BAD_INPUT),
    }
}

/// Says what is wrong. (`eprintln!` panics where standard error is full.)
fn fail(error: impl Display, code: u8) -> u8 {
    let _ = writeln!(io::stderr(), "error: {}", visible::escaped(&error.to_string()));
    code
}

/// The exit code after the answer was written, or was not. Whoever reads may stop early (`| head`): that is no error of ours, but
/// anything else is.
fn ended(written: io::Result<()>, code: u8) -> u8 {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            fail(format_args!("cannot write to standard output: {error}"), code.max(FAILED))
        }
        _ => code,
    }
}

fn run(cli: &Cli) -> anyhow::Result<Answer> {
    match &cli.command {
        Command::Bytes(shape) => Ok(Answer { text: bytes::run(shape)?, success: true }),
        Command::Plan(args) => plan::run(args),
        Command::Preflight(args) => preflight::run(args),
    }
}
