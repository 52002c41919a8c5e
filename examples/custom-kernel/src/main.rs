//! Runs the kernel on the simulated GPU and compares it with plain Rust.
use std::io::{self, Write};

use custom_kernel::{PTX, numbers, rms_norm_reference, rms_norm_simulated};
use epoxide_sim::Mode;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const ROWS: usize = 256;
    const HIDDEN: usize = 4096;
    let (x, weight) = (numbers(ROWS * HIDDEN, 1), numbers(HIDDEN, 2));
    let y = rms_norm_simulated(&x, &weight, 1e-6, Mode::Fast { workers: 0 })?;
    let expected = rms_norm_reference(&x, &weight, 1e-6);
    let wrong = y.iter().zip(&expected).filter(|(a, b)| a != b).count();
    let found = format!(
        "rms_norm of {ROWS} rows of {HIDDEN} on the simulated GPU: {wrong} of {} elements differ\n\
         its PTX for a real one: {} lines, for sm_90 and newer\n",
        y.len(),
        PTX.lines().count()
    );
    match io::stdout().write_all(found.as_bytes()) {
        // A reader that has left is no error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    if wrong == 0 { Ok(()) } else { Err("the kernel is wrong".into()) }
}
