//! The builder: one kernel crate in, one PTX module out.

use std::path::{Path, PathBuf};

use crate::backend::absolute;
use crate::toolchain::{Toolchain, install_command};
use crate::{Backend, BuildError, DEVICE_TOOLCHAIN, Families, lock, source};

/// The release profile of a device build, whatever the workspace says.
pub(crate) const PROFILE: [&str; 10] = [
    "opt-level=3",
    "lto=\"fat\"",
    "codegen-units=1",
    "panic=\"abort\"",
    "debug=false",
    "debug-assertions=false",
    "overflow-checks=false",
    "incremental=false",
    "strip=\"none\"",
    "rpath=false",
];

/// Builds a kernel crate to PTX.
///
/// ```no_run
/// use epoxide_ptx_build::PtxBuilder;
///
/// let ptx = PtxBuilder::new("gpu-kernels").source("dsl").arch("sm_90").isa(80).build()?;
/// ptx.write("gpu-kernels/ptx/kernels_sm_90.ptx")?;
/// # Ok::<(), epoxide_ptx_build::BuildError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PtxBuilder {
    pub(crate) crate_dir: PathBuf,
    pub(crate) sources: Vec<PathBuf>,
    pub(crate) host_only: Vec<String>,
    pub(crate) arch: String,
    pub(crate) isa: u32,
    pub(crate) toolchain: String,
    pub(crate) backend: Backend,
    pub(crate) families: Families,
    pub(crate) allow_f64: bool,
    pub(crate) target_dir: Option<PathBuf>,
    pub(crate) locked: bool,
}

impl PtxBuilder {
    /// Starts with the folder of a kernel crate (the one with its `Cargo.toml`), for `sm_90` at PTX ISA 8.0.
    pub fn new(crate_dir: impl Into<PathBuf>) -> Self {
        Self {
            crate_dir: crate_dir.into(),
            sources: Vec::new(),
            host_only: vec![lock::SIMULATOR.to_owned()],
            arch: "sm_90".to_owned(),
            isa: 80,
            toolchain: DEVICE_TOOLCHAIN.to_owned(),
            backend: Backend::Rustc,
            families: Families::default(),
            allow_f64: false,
            target_dir: None,
            locked: false,
        }
    }

    /// Adds the folder of another crate whose sources reach the device, so that the source hash covers it.
    #[must_use]
    pub fn source(mut self, crate_dir: impl Into<PathBuf>) -> Self {
        self.sources.push(crate_dir.into());
        self
    }

    /// Names a package in `Cargo.lock` that never reaches the device, so that the source hash leaves out its version and those
    /// of its own dependencies: one for tests, say. The simulator is named from the start.
    #[must_use]
    pub fn host_only(mut self, package: impl Into<String>) -> Self {
        self.host_only.push(package.into());
        self
    }

    /// Chooses the base architecture, such as `sm_90`: the oldest GPU that can run the PTX.
    #[must_use]
    pub fn arch(mut self, arch: impl Into<String>) -> Self {
        self.arch = arch.into();
        self
    }

    /// Chooses the PTX ISA, such as 80 for 8.0. It sets the oldest driver: choose the lowest that the instructions need.
    #[must_use]
    pub fn isa(mut self, isa: u32) -> Self {
        self.isa = isa;
        self
    }

    /// Chooses the device toolchain, by rustup's name ([`DEVICE_TOOLCHAIN`] if not called).
    #[must_use]
    pub fn toolchain(mut self, toolchain: impl Into<String>) -> Self {
        self.toolchain = toolchain.into();
        self
    }

    /// Chooses the code generator.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Names the families of the crate's kernels, each of which is to be a text of its own. The build then checks that every
    /// kernel is in one, and the source hash covers them; [`crate::Ptx::split`] cuts what was built. Without families there is one
    /// text.
    #[must_use]
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// Lets kernels have `f64` arithmetic: [`PtxBuilder::lint`] and [`PtxBuilder::check`] find none of it then.
    #[must_use]
    pub fn allow_f64(mut self, allow: bool) -> Self {
        self.allow_f64 = allow;
        self
    }

    /// Chooses the target folder of the inner cargo. It must not be the outer cargo's, whose lock is held.
    ///
    /// By default it is `OUT_DIR/epoxide-ptx` in a build script, and `target/epoxide-ptx` in the kernel crate elsewhere.
    #[must_use]
    pub fn target_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.target_dir = Some(dir.into());
        self
    }

    /// Refuses to change the kernel crate's `Cargo.lock`.
    #[must_use]
    pub fn locked(mut self, locked: bool) -> Self {
        self.locked = locked;
        self
    }

    /// Hashes everything the PTX is made from: the kernel crate, the crates named by [`PtxBuilder::source`], what the
    /// kernel crate's dependencies from elsewhere resolve to in `Cargo.lock` (macros' dependencies too, as these write device
    /// code; not those of [`PtxBuilder::host_only`]), and the settings. Needs no device toolchain.
    ///
    /// Two things that could matter are not in it: what the crates' manifests inherit from a workspace's (the edition), and
    /// features of dependencies. Building again and comparing the text finds what these change.
    ///
    /// # Errors
    ///
    /// [`BuildError::Io`] if a source, or the lock file, cannot be read.
    pub fn source_hash(&self) -> Result<String, BuildError> {
        Ok(self.stamp(&self.crate_hashes()?, &self.resolved()?))
    }

    /// Lists what the source hash takes from `Cargo.lock`: `name version source checksum` of every dependency of the kernel
    /// crate that reaches the device and whose source is not at hand.
    ///
    /// # Errors
    ///
    /// [`BuildError::Io`] if the lock file cannot be read.
    pub fn resolved(&self) -> Result<Vec<String>, BuildError> {
        lock::resolved(&absolute(&self.crate_dir), &self.host_only)
    }

    pub(crate) fn crate_hashes(&self) -> Result<Vec<String>, BuildError> {
        source::crate_hashes(&self.source_dirs().map(Path::to_owned).collect::<Vec<_>>())
    }

    pub(crate) fn stamp(&self, crates: &[String], resolved: &[String]) -> String {
        let mut settings =
            vec![self.backend.name().to_owned(), self.toolchain.clone(), self.arch.clone(), format!("ptx{}", self.isa)];
        settings.extend(PROFILE.map(str::to_owned));
        settings.extend(self.families.settings());
        source::combine(&[crates, resolved, &settings])
    }

    /// The command that installs the device toolchain.
    pub fn install_command(&self) -> String {
        install_command(&self.toolchain)
    }

    /// Tells whether the device toolchain is installed, with all it needs.
    ///
    /// # Errors
    ///
    /// [`BuildError::NoRustup`], [`BuildError::NoToolchain`], [`BuildError::NoComponents`]: what is missing.
    pub fn check_toolchain(&self) -> Result<(), BuildError> {
        Toolchain::find(&self.toolchain, &self.backend).map(drop)
    }

    pub(crate) fn source_dirs(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.crate_dir).chain(&self.sources).map(PathBuf::as_path)
    }
}
