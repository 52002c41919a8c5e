//! The kernels of one GPU: a module for each family, loaded when one of its kernels is first prepared.
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use epoxide_kernels::families::Family;

use super::context::PrimaryContext;
use super::module::{Function, Module};
use crate::error::{Error, Result};

/// Families of kernels, of which those that ranks asked for are loaded; shared by the ranks on the GPU.
#[derive(Debug)]
pub(super) struct Kernels {
    families: &'static [Family],
    loaded: Mutex<Loaded>,
    context: Arc<PrimaryContext>,
}

#[derive(Debug, Default)]
struct Loaded {
    /// By the name of the kernel. A function's attributes are the module's, not a rank's.
    functions: HashMap<&'static str, Function>,
    /// By the name of the family.
    modules: HashMap<&'static str, Module>,
    /// Of families of callers', by their text: names are theirs to choose, and two may choose the same.
    guests: HashMap<&'static str, Module>,
}

impl Kernels {
    /// Loads nothing yet.
    pub(super) fn new(context: &Arc<PrimaryContext>, families: &'static [Family]) -> Self {
        Self { families, loaded: Mutex::default(), context: Arc::clone(context) }
    }

    /// Loads a kernel, with its family unless that is loaded, and lets it be launched with `shared_bytes` of dynamic shared
    /// memory, or with what an earlier call asked for if that is more: another rank on the GPU may rely on it.
    ///
    /// After this, no launch of the kernel loads anything. (With lazy loading, the driver's default, the first launch would,
    /// and would wait for running kernels; CUDA Programming Guide, "Lazy Loading", "Concurrent execution".)
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if no family has the kernel; [`Error::Cuda`], which names it, or has the compiler's log.
    pub(super) fn prepare(&self, name: &'static str, shared_bytes: u32) -> Result<Function> {
        let has = |family: &&Family| family.entries.contains(&name);
        let family = self.families.iter().find(has).ok_or_else(|| {
            let families: Vec<_> = self.families.iter().map(|family| family.name).collect();
            Error::argument("kernel", name, format!("is in none of the families {}", families.join(", ")))
        })?;
        self.context.bind()?;
        // Held throughout: of several ranks that ask for one family at once, one compiles it and the others wait for it, and
        // two may prepare the same kernel with different sizes.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let Loaded { functions, modules, .. } = &mut *loaded;
        let module = match modules.entry(family.name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Module::load(&self.context, family.ptx)?),
        };
        let known = functions.get(name).copied();
        let mut function = match known {
            Some(function) => function,
            None => module.function(name)?,
        };
        if known.is_none() || shared_bytes > function.shared_bytes {
            function.allow_shared(name, shared_bytes)?;
        }
        functions.insert(name, function);
        Ok(function)
    }

    /// Loads a family of the caller's, unless that text is loaded, and its functions, which may be launched with all the dynamic shared
    /// memory that they can have where a block has `most` bytes. It stays loaded as long as the GPU is open, whoever is gone: unloading
    /// waits for what runs.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if it has no text; [`Error::Cuda`], which names the kernel, or has the compiler's log.
    pub(super) fn load_guests(&self, family: &Family, most: u32) -> Result<Vec<(&'static str, Function)>> {
        if family.ptx.is_empty() {
            return Err(Error::argument(
                "family",
                family.name,
                "has no PTX: its kernels run on the simulated GPU alone",
            ));
        }
        self.context.bind()?;
        // Held throughout, as in `prepare`.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match loaded.guests.entry(family.ptx) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Module::load(&self.context, family.ptx)?),
        };
        let function = |name: &&'static str| -> Result<_> {
            let mut function = module.function(name)?;
            let declared = function.declared_shared(name)?;
            function.allow_shared(name, most.saturating_sub(declared))?;
            Ok((*name, function))
        };
        family.entries.iter().map(function).collect()
    }

    /// A kernel that some rank on this GPU prepared.
    pub(super) fn prepared(&self, name: &str) -> Option<Function> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).functions.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use epoxide_kernels::families;

    use super::*;
    use crate::runtime::cuda::CudaDevice;

    /// All texts in one, as a crate without families has it.
    fn joined() -> String {
        let mut text = String::new();
        for line in families::ALL.iter().flat_map(|family| family.ptx.lines()) {
            let once = [".version", ".target", ".address_size", ".extern"].iter().any(|word| line.starts_with(word));
            if !once || !text.contains(line) {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }

    /// Prints how long the driver takes to load each family, all of them, and one text of all:
    /// `CUDA_CACHE_DISABLE=1 cargo test --release -p epoxide --lib how_long_loading_takes -- --ignored --nocapture`.
    #[test]
    #[ignore = "needs an NVIDIA GPU, and measures"]
    fn how_long_loading_takes() {
        const CACHE: &str = "CUDA_CACHE_DISABLE";
        assert_eq!(
            std::env::var(CACHE).as_deref(),
            Ok("1"),
            "else the driver takes the last run's code: set {CACHE}=1"
        );
        // Retained throughout: making a context is no part of loading.
        let device = CudaDevice::open(0).unwrap();
        println!(
            "{}\n{:<12} {:>9} {:>9} {:>17}",
            device.description(),
            "family",
            "PTX KB",
            "load ms",
            "with functions ms"
        );
        let (mut sums, mut bytes) = ([0.0; 2], 0);
        for family in families::ALL {
            let ms = median_ms(&device, family.ptx, family.entries);
            println!("{:<12} {:>9.1} {:>9.2} {:>17.2}", family.name, family.ptx.len() as f64 / 1e3, ms[0], ms[1]);
            sums = [sums[0] + ms[0], sums[1] + ms[1]];
            bytes += family.ptx.len();
        }
        println!("{:<12} {:>9.1} {:>9.2} {:>17.2}", "all", bytes as f64 / 1e3, sums[0], sums[1]);
        let joined = joined();
        let entries: Vec<_> = families::ALL.iter().flat_map(|family| family.entries).copied().collect();
        let ms = median_ms(&device, &joined, &entries);
        println!("{:<12} {:>9.1} {:>9.2} {:>17.2}", "one text", joined.len() as f64 / 1e3, ms[0], ms[1]);
    }

    /// Medians of five: `cuModuleLoadDataEx` alone, and with every function loaded (the driver may leave work for that).
    fn median_ms(device: &CudaDevice, ptx: &str, entries: &[&'static str]) -> [f64; 2] {
        let runs: [[f64; 2]; 5] = std::array::from_fn(|_| {
            let start = Instant::now();
            let module = Module::load(device.context(), ptx).unwrap();
            let loaded = start.elapsed();
            entries.iter().for_each(|name| assert!(module.function(name).is_ok(), "{name}"));
            [loaded, start.elapsed()].map(|time| time.as_secs_f64() * 1e3)
        });
        [0, 1].map(|which| {
            let mut ms = runs.map(|run| run[which]);
            ms.sort_by(f64::total_cmp);
            ms[2]
        })
    }

    #[test]
    fn one_text_of_all_families_has_each_kernel_and_the_header_once() {
        let text = joined();
        for line in [".version 8.0\n", ".target sm_90\n", ".address_size 64\n", ".extern .shared "] {
            assert_eq!(text.matches(line).count(), 1, "{line}");
        }
        let entries = families::ALL.iter().map(|family| family.entries.len()).sum();
        assert_eq!(text.matches(".visible .entry ").count(), entries);
    }
}
