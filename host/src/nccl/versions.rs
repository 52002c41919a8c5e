//! What each version of NCCL has of what is used here. Made by `cargo xtask nccl`, from the headers and the library of each wheel
//! (nvidia-nccl-cu13 on PyPI), and not by hand.

/// A version.
#[allow(dead_code, reason = "what the declarations are compared with, in tests and by `cargo xtask nccl`")]
pub(super) struct Row {
    /// NCCL's own number.
    pub version: i32,
    /// Of the wheel.
    pub sha256: &'static str,
    /// `NCCL_API_MAGIC`.
    pub magic: u32,
    /// Of `ncclUniqueId`.
    pub unique_id_bytes: usize,
    /// Of `ncclConfig_t`.
    pub config_bytes: usize,
    /// Where its fields are.
    pub config: [(&'static str, usize); 7],
}

/// All versions that do and have a wheel, the oldest first.
#[rustfmt::skip]
pub(super) const VERSIONS: &[Row] = &[
    Row { version: 22902, sha256: "86b997b315df0fb2874fd6062f2930d317bfa6434823351f287936d5ed616fc9", magic: 0xcafebeef, unique_id_bytes: 128, config_bytes: 88, config: [("size", 0), ("magic", 8), ("version", 12), ("blocking", 16), ("netName", 32), ("commName", 48), ("numRmaCtx", 84)] },
    Row { version: 22903, sha256: "2a321629f49490e4e0122ecb578a4b4a6f89e72740dd988e04dfa4758fab7fc3", magic: 0xcafebeef, unique_id_bytes: 128, config_bytes: 88, config: [("size", 0), ("magic", 8), ("version", 12), ("blocking", 16), ("netName", 32), ("commName", 48), ("numRmaCtx", 84)] },
    Row { version: 22907, sha256: "edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d", magic: 0xcafebeef, unique_id_bytes: 128, config_bytes: 88, config: [("size", 0), ("magic", 8), ("version", 12), ("blocking", 16), ("netName", 32), ("commName", 48), ("numRmaCtx", 84)] },
    Row { version: 23003, sha256: "f685ca1adcdf5f8a84ec3ce96bb924047819ee946354827cd06f2134e028e252", magic: 0xcafebeef, unique_id_bytes: 128, config_bytes: 96, config: [("size", 0), ("magic", 8), ("version", 12), ("blocking", 16), ("netName", 32), ("commName", 48), ("numRmaCtx", 84)] },
    Row { version: 23004, sha256: "534dbf3058cadb625f08ab0d17f1dffad3b961a2bfa360d66633fcf21be53f57", magic: 0xcafebeef, unique_id_bytes: 128, config_bytes: 96, config: [("size", 0), ("magic", 8), ("version", 12), ("blocking", 16), ("netName", 32), ("commName", 48), ("numRmaCtx", 84)] },
    Row { version: 23007, sha256: "cefa7fdb9710efd0f39c5f1be1d61ff6fc9a996c451265bd7fbdcf9455ed4b50", magic: 0xcafebeef, unique_id_bytes: 128, config_bytes: 96, config: [("size", 0), ("magic", 8), ("version", 12), ("blocking", 16), ("netName", 32), ("commName", 48), ("numRmaCtx", 84)] },
    Row { version: 23102, sha256: "0bcaf0308854cb55fcc35af72e2c83143f3b71e65a4e865e2c586b1cdcdb5ae0", magic: 0xcafebeef, unique_id_bytes: 128, config_bytes: 112, config: [("size", 0), ("magic", 8), ("version", 12), ("blocking", 16), ("netName", 32), ("commName", 48), ("numRmaCtx", 84)] },
    Row { version: 23203, sha256: "1459723080ac889d73a26edfa3e04383a7928ab31ac8f0ec43b3ea9548b04ff3", magic: 0xcafebeef, unique_id_bytes: 128, config_bytes: 120, config: [("size", 0), ("magic", 8), ("version", 12), ("blocking", 16), ("netName", 32), ("commName", 48), ("numRmaCtx", 84)] },
];
