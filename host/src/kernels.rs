//! Kernels of your own on a rank's stream, between the operations: written in `epoxide-dsl`, in a crate that commits its PTX.
//!
//! [`Comm::load`](crate::Comm::load) loads them, [`Comm::launch`](crate::Comm::launch) launches one. What is here is what a caller has to
//! name for that: the crate of kernels depends on `epoxide-dsl` alone, and its user on this crate and on that one.
//! [`ElasticBuffer::recv_arrays`](crate::ElasticBuffer::recv_arrays) has what a dispatch brought as arguments for them.
//!
//! ```
//! use epoxide::kernels::{Family, Global};
//! use epoxide::{LocalGroup, Mode};
//! # mod my_kernels {
//! use epoxide_dsl::prelude::*;
//!
//! /// Doubles `n` numbers. Contract: `x` is valid for `n` floats that nothing else touches.
//! #[derive(Clone, Copy, KernelArg)]
//! #[repr(C)]
//! pub struct DoubleArgs {
//!     pub x: Global<f32>,
//!     pub n: u64,
//! }
//!
//! #[kernel(threads = 128)]
//! pub fn double(args: DoubleArgs) {
//!     for i in thread::strided(thread::index(), args.n as u32, thread::block_threads()) {
//!         args.x.store_weak(i, args.x.load_weak(i) * 2.0);
//!     }
//! }
//! # }
//! # use my_kernels::{DoubleArgs, double};
//!
//! // With `include_str!("../kernels/ptx/kernels_sm_90.ptx")` as its text it runs on a GPU too.
//! const KERNELS: &[Family] = &[Family::new("my kernels", &["double"], "")];
//!
//! LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
//!     comm.load(KERNELS)?;
//!     let x = comm.tensor(&[1.0f32, 2.0, 3.0])?;
//!     // SAFETY: the tensor has three floats, and lives until the stream has passed the kernel, which alone uses it.
//!     unsafe { comm.launch(&double, 1, 0, &DoubleArgs { x: Global::from_raw(x.address()), n: 3 })? };
//!     assert_eq!(x.to_vec()?, [2.0, 4.0, 6.0]);
//!     Ok(())
//! })?;
//! # Ok::<(), epoxide::Error>(())
//! ```
//!
//! A [`Family`] is a PTX text with the names of the kernels in it. Without a text (`""`) its kernels run on the simulated GPU alone.
use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::runtime::MOST_BLOCKS;

pub use epoxide_dsl::memory::Global;
pub use epoxide_dsl::{Kernel, KernelArg};
pub use epoxide_kernels::families::Family;

/// The families that a rank has loaded. It knows a kernel by its name, as a driver does.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    families: Vec<Family>,
    kernels: HashMap<&'static str, Known>,
}

/// What a launch of a kernel is checked by.
#[derive(Debug)]
struct Known {
    family: &'static str,
    /// Of its argument, as the text says; none where it does not.
    bytes: Option<usize>,
}

impl Loaded {
    /// Those of `families` that are not loaded yet.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a kernel that is in two families, or not in the text of its own.
    pub(crate) fn missing(&self, families: &[Family]) -> Result<Vec<Family>> {
        let mut missing: Vec<Family> = Vec::new();
        for family in families {
            if self.families.iter().chain(&missing).any(|other| is_same(other, family)) {
                continue;
            }
            for (number, entry) in family.entries.iter().enumerate() {
                let twice = self.families.iter().chain(&missing).find(|other| other.entries.contains(entry));
                let twice = twice.or(family.entries[..number].contains(entry).then_some(family));
                if let Some(other) = twice {
                    let rule = format!(
                        "is in the family {:?} and in {:?}: a rank knows a kernel by its name, so it is there once",
                        other.name, family.name
                    );
                    return Err(Error::argument("kernel", entry, rule));
                }
                if !family.ptx.is_empty() && parameters(family.ptx, entry).is_none() {
                    let rule = format!("is in the family {:?}, and not in its PTX", family.name);
                    return Err(Error::argument("kernel", entry, rule));
                }
            }
            missing.push(*family);
        }
        Ok(missing)
    }

    /// Remembers one of [`Self::missing`].
    pub(crate) fn add(&mut self, family: Family) {
        for entry in family.entries {
            let bytes = parameters(family.ptx, entry).and_then(parameter_bytes);
            self.kernels.insert(entry, Known { family: family.name, bytes });
        }
        self.families.push(family);
    }

    /// Checks that a kernel with an argument of so many bytes may be launched.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when it is not loaded, or when its text is of another source.
    pub(crate) fn check(&self, kernel: &'static str, bytes: usize) -> Result<()> {
        let Known { family, bytes: takes } = self.kernels.get(kernel).ok_or_else(|| {
            let names: Vec<_> = self.families.iter().map(|family| format!("{:?}", family.name)).collect();
            let has = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let rule = format!("is of a family that Comm::load has loaded on this rank, and those are: {has}");
            Error::argument("kernel", kernel, rule)
        })?;
        match takes {
            Some(takes) if *takes != bytes => {
                let rule = format!(
                    "{kernel} takes {takes} bytes in the PTX of the family {family:?}: its text is of another source"
                );
                Err(Error::argument("args", format!("{bytes} bytes"), rule))
            }
            _ => Ok(()),
        }
    }
}

/// Checks a launch's numbers of blocks and of bytes of shared memory, of which a block has at most `most`.
///
/// # Errors
///
/// [`Error::InvalidArgument`], which names the kernel.
pub(crate) fn check_sizes(kernel: &'static str, grid: u32, shared_bytes: u32, most: u32) -> Result<()> {
    if grid == 0 || grid > MOST_BLOCKS {
        return Err(Error::argument("grid", grid, format!("a launch of {kernel} has 1 to {MOST_BLOCKS} blocks")));
    }
    if shared_bytes > most {
        let rule = format!("a block of {kernel} may have {most} bytes of shared memory on this device");
        return Err(Error::argument("shared_bytes", shared_bytes, rule));
    }
    Ok(())
}

/// Whether two families are one: the same text with the same kernels, wherever it lies.
fn is_same(one: &Family, other: &Family) -> bool {
    one.name == other.name && one.entries == other.entries && one.ptx == other.ptx
}

/// An entry's list of parameters in a PTX text (PTX ISA, "Kernel and Function Directives: .entry").
fn parameters<'t>(ptx: &'t str, entry: &str) -> Option<&'t str> {
    // A name ends where its list begins, so that none is taken for a longer one.
    let begins = |rest: &'t str| rest.trim_start().strip_prefix(entry)?.trim_start().strip_prefix('(');
    ptx.split(".entry ").skip(1).find_map(begins)?.split(')').next()
}

/// The bytes of an entry's one parameter: an array of bytes, as a struct is, or a number. None for what `#[kernel]` does not make.
fn parameter_bytes(parameters: &str) -> Option<usize> {
    let [parameter] = parameters.split(',').collect::<Vec<_>>()[..] else { return None };
    if let Some((_, array)) = parameter.split_once('[') {
        return array.split(']').next()?.trim().parse().ok();
    }
    let bits = |word: &str| word.strip_prefix(['.'])?.strip_prefix(['b', 'u', 's', 'f'])?.parse::<usize>().ok();
    parameter.split_whitespace().find_map(bits).map(|bits| bits / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = ".visible .entry rows_of(\n\t.param .align 8 .b8 rows_of_param_0[48]\n)\n{ ret; }\n\
        .visible .entry rows(\n\t.param .b32 rows_param_0\n)\n{ ret; }\n.entry two(.param .b64 a, .param .b64 b) { ret; }";
    const FAMILY: Family = Family::new("mine", &["rows_of", "rows", "two"], TEXT);

    fn loaded(families: &[Family]) -> Loaded {
        let mut loaded = Loaded::default();
        loaded.missing(families).unwrap().into_iter().for_each(|family| loaded.add(family));
        loaded
    }

    #[test]
    fn an_argument_of_another_size_is_refused() {
        let loaded = loaded(&[FAMILY]);
        loaded.check("rows_of", 48).unwrap();
        loaded.check("rows", 4).unwrap();
        loaded.check("two", 1).unwrap();
        let refused = loaded.check("rows_of", 40).unwrap_err().to_string();
        let rule = "rows_of takes 48 bytes in the PTX of the family \"mine\": its text is of another source";
        assert_eq!(refused, format!("args = 40 bytes: {rule}"));
        assert!(loaded.check("rows", 8).is_err());
    }

    #[test]
    fn the_texts_of_our_own_kernels_are_read_as_they_are_made() {
        use epoxide_kernels::dispatch::DispatchArgs;
        use epoxide_kernels::measure::delay::DelayArgs;
        let loaded = loaded(epoxide_kernels::families::ALL);
        for (kernel, bytes) in [("dispatch_copied", size_of::<DispatchArgs>()), ("delay", size_of::<DelayArgs>())] {
            loaded.check(kernel, bytes).unwrap();
            assert!(loaded.check(kernel, bytes + 8).is_err(), "{kernel}");
        }
    }

    #[test]
    fn a_family_is_loaded_once_and_a_name_is_of_one_kernel() {
        let loaded = loaded(&[FAMILY]);
        assert!(loaded.missing(&[FAMILY, FAMILY]).unwrap().is_empty());
        let refused = loaded.missing(&[Family::new("other", &["rows"], "")]).unwrap_err().to_string();
        assert!(refused.starts_with("kernel = rows: is in the family \"mine\" and in \"other\""), "{refused}");
        for twice in
            [&[Family::new("a", &["k"], ""), Family::new("b", &["k"], "")][..], &[Family::new("a", &["k", "k"], "")]]
        {
            assert!(loaded.missing(twice).is_err());
        }
    }

    #[test]
    fn a_kernel_that_the_text_has_not_is_refused() {
        let refused = Loaded::default().missing(&[Family::new("mine", &["row"], TEXT)]).unwrap_err();
        assert_eq!(refused.to_string(), "kernel = row: is in the family \"mine\", and not in its PTX");
        assert!(Loaded::default().missing(&[Family::new("sim", &["row"], "")]).is_ok());
    }

    #[test]
    fn a_kernel_that_is_not_loaded_is_named_with_the_families_that_are() {
        let said = |loaded: &Loaded| loaded.check("gone", 8).unwrap_err().to_string();
        assert!(said(&Loaded::default()).ends_with("those are: none"));
        assert!(said(&loaded(&[FAMILY])).ends_with("those are: \"mine\""));
    }
}
