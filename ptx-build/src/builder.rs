//! The builder: one kernel crate in, one PTX module out.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::backend::absolute;
use crate::environment::refuse_nesting;
use crate::toolchain::{Toolchain, command, install_command};
use crate::{Backend, BuildError, DEVICE_TOOLCHAIN, Families, Ptx, RECURSION_GUARD, TARGET, finish, lock, source};

/// The release profile of a device build, whatever the workspace says.
const PROFILE: [&str; 10] = [
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
/// ptx.write("gpu-kernels/ptx/epoxide_sm_90.ptx")?;
/// # Ok::<(), epoxide_ptx_build::BuildError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PtxBuilder {
    crate_dir: PathBuf,
    sources: Vec<PathBuf>,
    host_only: Vec<String>,
    arch: String,
    isa: u32,
    toolchain: String,
    backend: Backend,
    families: Families,
    target_dir: Option<PathBuf>,
    locked: bool,
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
        self.backend.check()?;
        let toolchain = Toolchain::find(&self.toolchain, &self.backend)?;
        // What is edited during the build makes its PTX stale, never fresh.
        let crates = self.crate_hashes()?;
        let out = self.output_dir(&crate_dir).join(TARGET).join("release");
        // A file of a former name would be a second one; cargo puts back what is fresh.
        for stale in ptx_files(&out) {
            std::fs::remove_file(&stale).map_err(BuildError::io("remove", &stale))?;
        }
        self.compile(&crate_dir, &toolchain)?;
        let files = ptx_files(&out);
        let [file] = files.as_slice() else {
            return Err(BuildError::Artifact { dir: out, found: files.len(), crate_dir });
        };
        let raw = std::fs::read_to_string(file).map_err(BuildError::io("read", file))?;
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
    /// [`BuildError::Io`] if there is no committed file, [`BuildError::Stale`] if it was made from other sources,
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
                if Ptx::read(committed).ok().as_ref() != Some(&built) {
                    if refresh == "check" {
                        return Err(BuildError::Differs { path: committed.to_owned() });
                    }
                    let path = committed.display();
                    directive(&format!("warning={path} is not what its sources build to; {REFRESH}=1 writes it"));
                }
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
    /// [`BuildError::Stale`] if it was made from other sources, and those of [`Ptx::read`] and
    /// [`PtxBuilder::source_hash`].
    pub fn committed(&self, path: impl AsRef<Path>) -> Result<Ptx, BuildError> {
        let path = path.as_ref();
        let ptx = Ptx::read(path)?;
        let expected = self.source_hash()?;
        if ptx.source_hash == expected {
            Ok(ptx)
        } else {
            let (path, install) = (path.to_owned(), self.install_command());
            Err(BuildError::Stale { path, expected, found: ptx.source_hash, install })
        }
    }

    fn source_dirs(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.crate_dir).chain(&self.sources).map(PathBuf::as_path)
    }

    fn output_dir(&self, crate_dir: &Path) -> PathBuf {
        let default = || match std::env::var_os("OUT_DIR") {
            Some(out) => PathBuf::from(out).join("epoxide-ptx"),
            None => crate_dir.join("target/epoxide-ptx"),
        };
        absolute(&self.target_dir.clone().unwrap_or_else(default))
    }

    /// Runs the device toolchain's cargo.
    fn compile(&self, crate_dir: &Path, toolchain: &Toolchain) -> Result<(), BuildError> {
        let mut cargo = command(&toolchain.name, "cargo");
        cargo.current_dir(crate_dir).args([
            "rustc",
            "--lib",
            "--crate-type",
            "cdylib",
            "--release",
            "--target",
            TARGET,
        ]);
        cargo.arg(self.backend.build_std()).arg("--target-dir").arg(self.output_dir(crate_dir));
        for setting in PROFILE {
            cargo.arg("--config").arg(format!("profile.release.{setting}"));
        }
        if self.locked {
            cargo.arg("--locked");
        }
        cargo.env("CARGO_ENCODED_RUSTFLAGS", self.rustflags(crate_dir, toolchain)).env(RECURSION_GUARD, crate_dir);
        let start = BuildError::io("start the device toolchain in", crate_dir);
        let mut child = cargo.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(start)?;
        let messages = child.stderr.take().map(|pipe| relay(BufReader::new(pipe))).unwrap_or_default();
        let status = child.wait().map_err(BuildError::io("wait for the device toolchain in", crate_dir))?;
        if status.success() {
            Ok(())
        } else {
            Err(BuildError::Compile { crate_dir: crate_dir.to_owned(), status, messages })
        }
    }

    /// The flags for rustc, in cargo's encoding: separated by 0x1f, so that paths may have spaces.
    fn rustflags(&self, crate_dir: &Path, toolchain: &Toolchain) -> OsString {
        let mut flags: Vec<OsString> =
            self.backend.rustflags(&self.arch, self.isa).into_iter().map(OsString::from).collect();
        let mut remap = |from: &Path, to: &str| {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(from);
            flag.push("=");
            flag.push(to);
            flags.push(flag);
        };
        // rustc takes the last prefix that fits, so the widest come first.
        if let Some(home) =
            std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cargo")))
        {
            remap(&home, "/cargo");
        }
        remap(&toolchain.sysroot, "/toolchain");
        for dir in self.sources.iter().map(|dir| absolute(dir)).chain([crate_dir.to_owned()]) {
            // Crates side by side, as in a workspace, keep their own names.
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            remap(&dir, &format!("/{name}"));
        }
        flags.join("\u{1f}".as_ref())
    }
}

/// Copies what the compiler says to standard error, line by line, and keeps the last lines.
fn relay(mut pipe: impl BufRead) -> String {
    const KEPT: usize = 40;
    let mut lines = std::collections::VecDeque::with_capacity(KEPT);
    let mut line = Vec::new();
    while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line).into_owned();
        // Not `stderr().write`: the test harness captures this and not that.
        eprint!("{text}");
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(text);
        line.clear();
    }
    lines.into_iter().collect::<String>().trim_end().to_owned()
}

/// Tells cargo something, if a build script is running.
fn directive(text: &str) {
    if std::env::var_os("OUT_DIR").is_some() {
        println!("cargo::{}", text.replace('\n', " "));
    }
}

/// The PTX files of a folder; none if there is no such folder.
fn ptx_files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|ext| ext == "ptx")).collect()
}
