//! The builder: one kernel crate in, one PTX module out.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::backend::absolute;
use crate::compile::{PROFILE, Purpose};
use crate::environment::refuse_nesting;
use crate::toolchain::{Toolchain, install_command};
use crate::{Backend, BuildError, DEVICE_TOOLCHAIN, Families, Ptx, finish, lock, source};

/// Builds a kernel crate to PTX.
///
/// ```no_run
/// use epoxide_ptx_build::PtxBuilder;
///
/// let ptx = PtxBuilder::new("gpu-kernels").source("dsl").arch("sm_90").isa(80).build()?;
/// ptx.write("gpu-kernels/ptx/epoxide_sm_90.ptx")?;
/// # Ok::<(), epoxide_ptx_build::BuildError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PtxBuilder {
    pub(crate) crate_dir: PathBuf,
    pub(crate) sources: Vec<PathBuf>,
    host_only: Vec<String>,
    pub(crate) arch: String,
    pub(crate) isa: u32,
    pub(crate) toolchain: String,
    pub(crate) backend: Backend,
    families: Families,
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
    /// kernel is in one, and the source hash covers them; [`Ptx::split`] cuts what was built. Without families there is one
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

    fn crate_hashes(&self) -> Result<Vec<String>, BuildError> {
        source::crate_hashes(&self.source_dirs().map(Path::to_owned).collect::<Vec<_>>())
    }

    fn stamp(&self, crates: &[String], resolved: &[String]) -> String {
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

    /// Compiles the crate and finishes its PTX. The compiler's messages go to standard error as they come.
    ///
    /// # Errors
    ///
    /// What [`PtxBuilder::check_toolchain`], [`PtxBuilder::source_hash`] and [`finish`] return, and [`Families::check`] if
    /// there are families; [`BuildError::Nested`] inside another PTX build; [`BuildError::NoBackend`]; [`BuildError::Compile`]
    /// if the compiler refuses the crate; [`BuildError::Artifact`] if it leaves no PTX.
    pub fn build(&self) -> Result<Ptx, BuildError> {
        let crate_dir = absolute(&self.crate_dir);
        refuse_nesting(&crate_dir)?;
        // What is edited during the build makes its PTX stale, never fresh.
        let crates = self.crate_hashes()?;
        let raw = self.compile(&crate_dir, Purpose::Ship)?;
        // Only now there is a lock file for certain: cargo makes what is missing.
        let ptx = finish(&raw, &self.stamp(&crates, &self.resolved()?))?;
        if !self.families.is_empty() {
            self.families.check(&ptx)?;
        }
        Ok(ptx)
    }

    /// Builds where the device toolchain is installed, and takes the committed PTX where it is not. For build scripts.
    ///
    /// In a build script it also tells cargo which files to watch, and warns when the committed file was taken, or is
    /// not what was built. `EPOXIDE_PTX_REFRESH=1` in the environment makes it write what was built to `committed`:
    /// that is how the file is made. `EPOXIDE_PTX_REFRESH=check` makes an error of a difference: that is for CI.
    ///
    /// # Errors
    ///
    /// Those of [`PtxBuilder::build`] but for a missing toolchain, and [`BuildError::Differs`]. With the toolchain missing:
    /// [`BuildError::NoCommitted`] if there is no committed file, [`BuildError::Stale`] if it was made from other sources,
    /// [`BuildError::Edited`] if it was changed by hand.
    pub fn build_or_committed(&self, committed: impl AsRef<Path>) -> Result<Ptx, BuildError> {
        const REFRESH: &str = "EPOXIDE_PTX_REFRESH";
        let committed = committed.as_ref();
        for dir in self.source_dirs() {
            ["src", "Cargo.toml", "build.rs", "rust-toolchain.toml"].map(|name| dir.join(name)).iter().for_each(
                |path| {
                    if path.exists() {
                        directive(&format!("rerun-if-changed={}", path.display()));
                    }
                },
            );
        }
        let lock = lock::file(&absolute(&self.crate_dir))?;
        for file in lock.as_deref().into_iter().chain([committed]) {
            directive(&format!("rerun-if-changed={}", file.display()));
        }
        directive(&format!("rerun-if-env-changed={REFRESH}"));
        let refresh = std::env::var_os(REFRESH).unwrap_or_default();
        match self.build() {
            Ok(built) if refresh == "1" => {
                built.write(committed)?;
                Ok(built)
            }
            Ok(built) => {
                let differs = match self.read_committed(committed) {
                    Ok(same) if same == built => return Ok(built),
                    Err(missing @ BuildError::NoCommitted { .. }) => missing,
                    _ => BuildError::Differs { path: committed.to_owned() },
                };
                if refresh == "check" {
                    return Err(differs);
                }
                directive(&format!("warning={differs}"));
                Ok(built)
            }
            Err(error) if error.is_missing_toolchain() => {
                let ptx = self.committed(committed)?;
                directive(&format!("warning=taking the committed PTX, {}: {error}", committed.display()));
                Ok(ptx)
            }
            Err(error) => Err(error),
        }
    }

    /// Reads committed PTX and checks that it was made from the sources at hand. Needs no device toolchain.
    ///
    /// # Errors
    ///
    /// [`BuildError::NoCommitted`] if there is none, [`BuildError::Stale`] if it was made from other sources, and those of
    /// [`Ptx::read`] and [`PtxBuilder::source_hash`].
    pub fn committed(&self, path: impl AsRef<Path>) -> Result<Ptx, BuildError> {
        let path = path.as_ref();
        let ptx = self.read_committed(path)?;
        let expected = self.source_hash()?;
        if ptx.source_hash == expected {
            Ok(ptx)
        } else {
            let (path, install) = (path.to_owned(), self.install_command());
            Err(BuildError::Stale { path, expected, found: ptx.source_hash, install })
        }
    }

    /// Reads the committed file, and says what to do where there is none: it is not stale.
    fn read_committed(&self, path: &Path) -> Result<Ptx, BuildError> {
        Ptx::read(path).map_err(|error| match error {
            BuildError::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
                BuildError::NoCommitted { path: path.to_owned(), install: self.install_command(), source }
            }
            other => other,
        })
    }

    fn source_dirs(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.crate_dir).chain(&self.sources).map(PathBuf::as_path)
    }
}

/// Tells cargo something, if a build script is running.
pub(crate) fn directive(text: &str) {
    if std::env::var_os("OUT_DIR").is_some() {
        println!("cargo::{}", text.replace('\n', " "));
    }
}
