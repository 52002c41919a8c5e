//! What developers of Epoxide run: `cargo xtask <task>`. Every habit of the project is a task, so that nobody needs to
//! remember a command line, and CI runs exactly what people run.

mod assemble;
mod ci;
mod circles;
mod families;
mod kernels;
mod kill;
mod matrix;
mod nccl;
mod ptx;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Epoxide's development tasks.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Rebuild the committed PTX from the kernels' sources, or check that it is what they build to.
    Ptx(ptx::Args),
    /// Assemble the committed PTX with ptxas for every supported architecture; fail on spills, stack frames and growth.
    Assemble(assemble::Args),
    /// Find files that use each other, around; fail on a circle that is not in the list of known ones.
    Circles(circles::Args),
    /// Test every combination of layouts, formats, routings and the rest: what an ordinary test run takes a sample of.
    Matrix(matrix::Args),
    /// Kill ranks that are processes, wherever they happen to be, many more times than an ordinary test run does.
    Kill(kill::Args),
    /// Rebuild the table of NCCL's versions from NVIDIA's wheels, or check the newest of them.
    Nccl(nccl::Args),
    /// Run everything that must hold before a change lands.
    Ci(ci::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().task {
        Task::Ptx(args) => ptx::run(&args),
        Task::Assemble(args) => assemble::run(&args),
        Task::Circles(args) => circles::run(&args),
        Task::Matrix(args) => matrix::run(&args),
        Task::Kill(args) => kill::run(&args),
        Task::Nccl(args) => nccl::run(&args),
        Task::Ci(args) => ci::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
