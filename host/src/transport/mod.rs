//! Transports: whose windows a rank sees, and who owns them.
pub(crate) mod local;
pub(crate) mod nccl;
pub(crate) mod teams;
pub(crate) mod windows;
