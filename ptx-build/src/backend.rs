//! Who turns a kernel crate into PTX: the compiler flags that differ between them.

use std::path::{Path, PathBuf};

use crate::BuildError;

/// The code generator of a device build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// rustc's own LLVM backend, through `llvm-bitcode-linker`.
    #[default]
    Rustc,
    /// rust-cuda's `rustc_codegen_nvvm`, built by the caller for the toolchain named to the builder.
    ///
    /// This is a seam, kept so that kernels which stay in the portable subset can be compiled by it where somebody has
    /// it: it needs LLVM 7 and CUDA's libNVVM, neither of which this project requires. The flags are those of
    /// rust-cuda's `cuda_builder`; this project's CI does not run it.
    #[non_exhaustive]
    CodegenNvvm {
        /// The path of `librustc_codegen_nvvm.so`.
        path: PathBuf,
    },
}

impl Backend {
    /// Chooses rust-cuda's backend, at the path of its library.
    pub fn codegen_nvvm(path: impl Into<PathBuf>) -> Self {
        Self::CodegenNvvm { path: path.into() }
    }

    /// Tells whether the backend needs a component of the toolchain.
    pub(crate) fn needs(&self, component: &str) -> bool {
        match self {
            Self::Rustc => true,
            Self::CodegenNvvm { .. } => component == "rust-src",
        }
    }

    /// Refuses a backend that is not there.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        match self {
            Self::CodegenNvvm { path } if !path.is_file() => Err(BuildError::NoBackend { path: path.clone() }),
            _ => Ok(()),
        }
    }

    /// The flags for rustc that choose the backend and its target.
    pub(crate) fn rustflags(&self, arch: &str, isa: u32) -> Vec<String> {
        match self {
            Self::Rustc => vec![format!("-Ctarget-cpu={arch}"), format!("-Ctarget-feature=+ptx{isa}")],
            Self::CodegenNvvm { path } => vec![
                format!("-Zcodegen-backend={}", absolute(path).display()),
                "-Zcrate-attr=feature(register_tool)".to_owned(),
                "-Zcrate-attr=register_tool(nvvm_internal)".to_owned(),
                "-Zcrate-attr=no_std".to_owned(),
                "-Zsaturating_float_casts=false".to_owned(),
                // libNVVM chooses the PTX ISA by itself: the lowest that its CUDA release writes.
                format!("-Cllvm-args=-arch={}", arch.replace("sm_", "compute_")),
            ],
        }
    }

    /// The crates of the standard library that cargo builds.
    pub(crate) fn build_std(&self) -> &'static str {
        match self {
            Self::Rustc => "-Zbuild-std=core",
            Self::CodegenNvvm { .. } => "-Zbuild-std=core,alloc",
        }
    }

    /// The name that goes into the source hash.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Rustc => "rustc",
            Self::CodegenNvvm { .. } => "rustc_codegen_nvvm",
        }
    }
}

/// The path from the root of the file system; as it is, if there is no current folder.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_backend_names_the_architecture_its_way() {
        assert_eq!(Backend::Rustc.rustflags("sm_90", 86), ["-Ctarget-cpu=sm_90", "-Ctarget-feature=+ptx86"]);
        let nvvm = Backend::codegen_nvvm("/opt/librustc_codegen_nvvm.so").rustflags("sm_90", 86);
        assert_eq!(nvvm[0], "-Zcodegen-backend=/opt/librustc_codegen_nvvm.so");
        assert!(nvvm.contains(&"-Cllvm-args=-arch=compute_90".to_owned()), "{nvvm:?}");
    }

    #[test]
    fn a_backend_that_is_not_there_is_named() {
        let error = Backend::codegen_nvvm("/nowhere/lib.so").check().expect_err("not there").to_string();
        assert!(error.starts_with("no codegen backend at /nowhere/lib.so"), "{error}");
    }
}
