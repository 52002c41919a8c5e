//! The committed PTX: taken where the device toolchain is not installed, compared where it is.

use std::io::ErrorKind;
use std::path::Path;

use crate::backend::absolute;
use crate::environment::directive;
use crate::names::REFRESH;
use crate::{BuildError, Ptx, PtxBuilder, lock};

impl PtxBuilder {
    /// Builds where the device toolchain is installed, and takes the committed PTX where it is not. For build scripts.
    ///
    /// In a build script it also tells cargo which files to watch, and warns when the committed file was taken, or is
    /// not what was built. `EPOXIDE_PTX_REFRESH=1` in the environment makes it write what was built to `committed`:
    /// that is how the file is made. `EPOXIDE_PTX_REFRESH=check` makes an error of a difference: that is for CI. `EPOXIDE_PTX_REFRESH=0` makes it take
    /// the committed file, if that was made from these sources, whatever is installed: that is for `cargo clippy` and editors, for whom cargo runs a build
    /// script anew.
    ///
    /// # Errors
    ///
    /// Those of [`PtxBuilder::build`] but for a missing toolchain, and [`BuildError::Differs`]. With the toolchain missing, or not asked for:
    /// [`BuildError::NoCommitted`] if there is no committed file, [`BuildError::Stale`] if it was made from other sources,
    /// [`BuildError::Edited`] if it was changed by hand.
    pub fn build_or_committed(&self, committed: impl AsRef<Path>) -> Result<Ptx, BuildError> {
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
        if refresh == "0" {
            return self.committed(committed);
        }
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
}
