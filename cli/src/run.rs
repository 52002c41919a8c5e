//! `epoxide run`: starts the ranks of this host.
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use epoxide::launcher::Launch;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::args::RunArgs;
use crate::ending::{BAD_INPUT, FAILED, fail};
use crate::standard_output;

/// What is passed on. Who stops this process stops only this one.
const PASSED_ON: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];

/// Runs the command, and returns the ranks' exit code.
pub(crate) fn run(args: &RunArgs) -> u8 {
    let Some(grace) = Duration::try_from_secs_f64(args.grace).ok().filter(|grace| grace.as_secs() <= 24 * 3600) else {
        return fail(format_args!("--grace = {}: 0 to 86400 seconds", args.grace), BAD_INPUT);
    };
    let [program, rest @ ..] = &args.command[..] else {
        return fail("no command is given", BAD_INPUT);
    };
    // As a file, which hides no error; and nowhere to write is one from the start.
    let written = standard_output::write("").and_then(|()| Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?)));
    let out = match written {
        Ok(out) => out,
        Err(error) => return fail(format_args!("cannot write to standard output: {error}"), FAILED),
    };
    // Before there is anybody to pass them on to: none is lost in between.
    let mut signals = match Signals::new(PASSED_ON) {
        Ok(signals) => signals,
        Err(error) => return fail(format_args!("cannot receive signals: {error}"), FAILED),
    };
    let launch = Launch::new(program, rest).with_ranks(args.ranks).with_keep_going(args.keep_going).with_grace(grace);
    let running = match launch.start(out, io::stderr()) {
        Ok(running) => running,
        Err(error) => return fail(error, BAD_INPUT),
    };
    let ranks = running.signals();
    // It ends with the process.
    let passes = std::thread::Builder::new().name("signals".to_owned());
    let passes = passes.spawn(move || signals.forever().for_each(|signal| ranks.send(signal)));
    if let Err(error) = passes {
        return fail(format_args!("cannot receive signals: {error}"), FAILED);
    }
    let outcome = running.wait();
    match outcome.output_error() {
        // A reader that leaves has what it wanted.
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(format_args!("cannot write to standard output: {error}"), outcome.code().max(FAILED))
        }
        _ => outcome.code(),
    }
}
