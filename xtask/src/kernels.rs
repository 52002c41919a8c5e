//! Where the kernels are, and how their PTX is built: the one place that knows.

use std::path::{Path, PathBuf};

use epoxide_ptx_build::PtxBuilder;

/// The oldest GPU the committed PTX runs on, as the architecture it is compiled for.
pub const BASE_ARCH: &str = "sm_90";

/// The lowest PTX ISA that has the kernels' instructions. It sets the oldest driver.
pub const ISA: u32 = 80;

/// The architectures that CI assembles the PTX for.
pub const ASSEMBLED: [&str; 3] = ["sm_90", "sm_100", "sm_120"];

/// The workspace's folder.
pub fn root() -> PathBuf {
    // As `cargo run` says at run time: two checkouts that share a target folder may share this program too.
    let own =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map_or_else(|| own.clone(), Path::to_owned)
}

/// The committed PTX.
pub fn ptx_file() -> PathBuf {
    root().join("gpu-kernels/ptx").join(format!("epoxide_{BASE_ARCH}.ptx"))
}

/// The committed numbers of collectives.
pub fn collectives_file() -> PathBuf {
    root().join("gpu-kernels/ptx/collectives.txt")
}

/// The builder of the kernels' PTX. The crates named are those whose sources reach the device.
pub fn builder() -> PtxBuilder {
    let root = root();
    PtxBuilder::new(root.join("gpu-kernels"))
        .source(root.join("dsl"))
        .source(root.join("dsl-macros"))
        .arch(BASE_ARCH)
        .isa(ISA)
        .target_dir(root.join("gpu-kernels/target"))
}

/// A path as a reader at the root of the workspace would write it.
pub fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
