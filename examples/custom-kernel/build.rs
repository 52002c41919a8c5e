//! Makes the kernels' PTX, or takes the committed one where the device toolchain is not installed.
use std::error::Error;
use std::fs;
use std::path::Path;

use epoxide_ptx_build::PtxBuilder;

fn main() -> Result<(), Box<dyn Error>> {
    // The manifest in `kernels` fixes the DSL's version, and is part of the hash by which stale PTX is recognised. Who works
    // on a checkout of the DSL names its folder here, too: `.source("../../dsl")`.
    let builder = PtxBuilder::new("kernels").arch("sm_90").isa(80);
    let ptx = builder.build_or_committed("kernels/ptx/kernels_sm_90.ptx")?;

    // A kernel must have no local memory, call or panic path, and the number of collectives that somebody approved.
    builder.check(&ptx, "kernels/ptx/collectives.txt")?;

    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    fs::write(Path::new(&out).join("kernels.ptx"), &ptx.text)?;
    Ok(())
}
