//! The command `epoxide`: answers about a configuration and about a machine, with or without a GPU.
mod answer;
mod args;
mod buffer_layout;
mod bytes;
mod draw;
mod ending;
mod figures;
mod given;
mod hardware_file;
mod machine;
mod named_file;
mod option_values;
mod page;
mod panel;
mod plan;
mod planned;
mod plot;
mod preflight;
mod progress;
mod report;
mod request;
mod run;
mod simulation;
mod standard_output;
mod sweep;
mod swept;
mod table;
mod units;
mod visible;

#[cfg(test)]
#[path = "../../tests/support/command_line.rs"]
mod command_line;
#[cfg(test)]
mod every_option;

use std::ffi::OsString;
use std::process::ExitCode;

use answer::{Answer, Unwritten};
use args::{Cli, Command};
use ending::{BAD_INPUT, FAILED, fail};

fn main() -> ExitCode {
    program(std::env::args_os()).into()
}

/// The program; its exit code.
fn program(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::read(args) {
        Ok(cli) => cli,
        Err(said) => return ending::answer_options(said),
    };
    let answer = match &cli.command {
        Command::Run(args) => return run::run(args),
        Command::Bytes(shape) => bytes::run(shape).map(Answer::good),
        Command::Plan(args) => plan::run(args),
        Command::Preflight(args) => preflight::run(args),
    };
    match answer {
        Ok(answer) => {
            answer.notes.iter().for_each(|note| ending::say("note", note));
            ending::end(&(answer.text.trim_end().to_owned() + "\n"), if answer.success { 0 } else { FAILED })
        }
        // A file that cannot be written is nothing that the caller gave.
        Err(error) if error.is::<Unwritten>() => fail(format_args!("{error:#}"), FAILED),
        Err(error) => fail(format_args!("{error:#}"), BAD_INPUT),
    }
}
