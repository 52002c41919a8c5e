//! Kernels that measure, in families of their own.
use epoxide::kernels::Family;
use epoxide_kernels::families;

/// The family of this name, of these kernels; without a text, on the simulated GPU alone, where none was made.
pub fn family(name: &'static str, kernels: &'static [&'static str]) -> Family {
    families::ALL.iter().find(|family| family.name == name).copied().unwrap_or(Family::new(name, kernels, ""))
}
