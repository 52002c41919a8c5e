//! Where the kernels are, and how their PTX is built: the one place that knows.

use std::path::{Path, PathBuf};

use epoxide_ptx_build::{Families, PtxBuilder};

/// The oldest GPU the committed PTX runs on, as the architecture it is compiled for.
pub const BASE_ARCH: &str = "sm_90";

/// The lowest PTX ISA that has the kernels' instructions. It sets the oldest driver.
pub const ISA: u32 = 80;

/// The architectures that CI assembles the PTX for.
pub const ASSEMBLED: [&str; 3] = ["sm_90", "sm_100", "sm_120"];

/// The folders of our crates that reach the device, the kernels first.
pub const SOURCES: [&str; 3] = ["gpu-kernels", "dsl", "dsl-macros"];

/// The workspace's folder.
pub fn root() -> PathBuf {
    // As `cargo run` says at run time: two checkouts that share a target folder may share this program too.
    let own =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map_or_else(|| own.clone(), Path::to_owned)
}

/// What is committed of the PTX: the texts, and the files that they are compared with.
pub fn ptx_dir() -> PathBuf {
    root().join("gpu-kernels/ptx")
}

/// The committed PTX of a family.
pub fn family_file(family: &str) -> PathBuf {
    ptx_dir().join(format!("{family}_{BASE_ARCH}.ptx"))
}

/// Which kernel is in which family.
pub fn families_file() -> PathBuf {
    ptx_dir().join("families.txt")
}

/// The families for the kernels' users, in Rust.
pub fn families_table() -> PathBuf {
    ptx_dir().join("families.rs")
}

/// The committed numbers of collectives.
pub fn collectives_file() -> PathBuf {
    ptx_dir().join("collectives.txt")
}

/// The committed table of what each kernel takes: registers, and bytes of machine code.
pub fn sizes_file() -> PathBuf {
    ptx_dir().join("sizes.txt")
}

/// The builder of the kernels' PTX.
pub fn builder(families: &Families) -> PtxBuilder {
    let root = root();
    let [kernels, others @ ..] = SOURCES.map(|folder| root.join(folder));
    let builder = others.into_iter().fold(PtxBuilder::new(kernels), PtxBuilder::source);
    // In the tests of `dsl` only.
    let builder = builder.host_only("trybuild");
    builder.families(families.clone()).arch(BASE_ARCH).isa(ISA).target_dir(root.join("gpu-kernels/target")).locked(true)
}

/// A path as a reader at the root of the workspace would write it.
pub fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
