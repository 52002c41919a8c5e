//! A loaded module: PTX compiled by the driver, and the functions in it.
use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction_attribute, CUjit_option};

use super::context::PrimaryContext;
use super::driver::{Driver, Handle, check, check_for};
use crate::error::{Error, Result};

/// Room for what the driver's PTX compiler says when it refuses.
const LOG_BYTES: usize = 16 << 10;

/// A function that is loaded, with the dynamic shared memory that it may be launched with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    pub(super) handle: Handle<sys::CUfunc_st>,
    pub(super) shared_bytes: u32,
    /// Whether it waits for the launch before it by itself, so that it may be launched while that is still at work.
    pub(super) waits: bool,
}

/// A module of one GPU's primary context, unloaded when dropped.
#[derive(Debug)]
pub(super) struct Module {
    handle: Handle<sys::CUmod_st>,
    /// Kernels that begin with a wait for the launch before them.
    waiting: Vec<String>,
    context: Arc<PrimaryContext>,
}

impl Module {
    /// Compiles PTX for the context's GPU and loads it.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`] with the compiler's log; [`Error::InvalidArgument`] if the text holds a NUL.
    pub(super) fn load(context: &Arc<PrimaryContext>, ptx: &str) -> Result<Self> {
        let text = CString::new(ptx)
            .map_err(|nul| Error::argument("ptx", format!("NUL at {}", nul.nul_position()), "must be text"))?;
        context.bind()?;
        let mut log = vec![0_u8; LOG_BYTES];
        let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // A number is passed in place of the pointer, as cuda.h says. The last byte is kept from the driver, and stays zero.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(LOG_BYTES - 1)];
        let mut handle = ptr::null_mut();
        // SAFETY: `text` ends in NUL, as an image that is PTX must; the two options have their two values, whose buffer is as
        // long as stated and outlives the call; a valid place for the handle.
        let loaded = unsafe {
            sys::cuModuleLoadDataEx(&mut handle, text.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        check_for("cuModuleLoadDataEx", loaded, format_args!("GPU {}; {}", context.ordinal(), log_text(&log)))?;
        Ok(Self { handle: Handle(handle), waiting: waiting(ptx), context: Arc::clone(context) })
    }

    /// Loads a function's code. The context must be current.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`], which names the kernel.
    pub(super) fn function(&self, name: &'static str) -> Result<Function> {
        let symbol = CString::new(name).map_err(|_| Error::argument("kernel", name, "its name must not hold a NUL"))?;
        let mut handle = ptr::null_mut();
        // SAFETY: a loaded module, a NUL-terminated name and a valid place for the answer.
        let found = unsafe { sys::cuModuleGetFunction(&mut handle, self.handle.0, symbol.as_ptr()) };
        check_for("cuModuleGetFunction", found, format_args!("kernel {name}"))?;
        // SAFETY: the function was just found in this module.
        if !unsafe { Driver::get()?.func_load(handle) }? {
            // Before `cuFuncLoad` existed, asking for an attribute that only compiled code has was what loaded it.
            let mut registers = 0;
            // SAFETY: `cuModuleGetFunction` has just made the handle, the module is loaded, and the place for the answer is valid.
            let asked = unsafe {
                sys::cuFuncGetAttribute(&mut registers, CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS, handle)
            };
            check_for("cuFuncGetAttribute", asked, format_args!("kernel {name}"))?;
        }
        let waits = self.waiting.iter().any(|waiting| waiting == name);
        Ok(Function { handle: Handle(handle), shared_bytes: 0, waits })
    }
}

impl Function {
    /// Lets the function be launched with this much dynamic shared memory. The context must be current.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`], which names the kernel.
    pub(super) fn allow_shared(&mut self, name: &'static str, shared_bytes: u32) -> Result<()> {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(shared_bytes).unwrap_or(i32::MAX);
        // SAFETY: a function of a loaded module, whose context is current.
        let set = unsafe { sys::cuFuncSetAttribute(self.handle.0, attribute, bytes) };
        check_for("cuFuncSetAttribute", set, format_args!("kernel {name}, {bytes} bytes of shared memory"))?;
        self.shared_bytes = shared_bytes;
        Ok(())
    }

    /// Bytes of shared memory that its text declares, which a block has beside the dynamic ones. The context must be current.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`], which names the kernel.
    pub(super) fn declared_shared(self, name: &'static str) -> Result<u32> {
        let mut bytes = 0;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: a function of a loaded module, whose context is current, and a valid place for the answer.
        let asked = unsafe { sys::cuFuncGetAttribute(&mut bytes, attribute, self.handle.0) };
        check_for("cuFuncGetAttribute", asked, format_args!("kernel {name}"))?;
        Ok(u32::try_from(bytes).unwrap_or(0))
    }

    /// How many blocks of the function fit on one SM.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    pub(super) fn blocks_per_sm(self, threads: u32, shared_bytes: u32) -> Result<u32> {
        let mut blocks = 0;
        let threads = i32::try_from(threads).unwrap_or(i32::MAX);
        // SAFETY: a loaded function (the module outlives the call: whoever holds a `Function` holds its device), and a valid
        // place for the answer.
        let asked = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, self.handle.0, threads, shared_bytes as usize)
        };
        check("cuOccupancyMaxActiveBlocksPerMultiprocessor", asked)?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.may_free() {
            // SAFETY: loaded once by `load`, unloaded once here; nothing launches from it any more, and no rank left work
            // behind that may still run. A failure leaves it to the process's end.
            let _ = unsafe { sys::cuModuleUnload(self.handle.0) };
        }
    }
}

/// The kernels of a text that wait for the launch before them (`epoxide_dsl::grid::wait_for_the_one_before`, which `#[kernel]` puts first).
///
/// The text is asked, and not whoever has the source: a text may be older.
fn waiting(ptx: &str) -> Vec<String> {
    let kernels = ptx.split(".entry ").skip(1);
    let name = |kernel: &str| kernel.split(|c: char| c == '(' || c.is_whitespace()).next().map(str::to_owned);
    kernels.filter(|kernel| kernel.contains("griddepcontrol.wait;")).filter_map(name).collect()
}

/// The compiler's words, up to the NUL that ends them.
fn log_text(log: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(log).map(CStr::to_string_lossy).unwrap_or_default();
    match text.trim() {
        "" => "the PTX compiler left no log".into(),
        said => format!("the PTX compiler says: {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_says_which_of_its_kernels_wait_for_the_launch_before() {
        let wait = "griddepcontrol.wait;";
        let text =
            format!(".visible .entry one(\n.param\n)\n{{\n{wait}\nret;\n}}\n.visible .entry two(\n)\n{{ ret; }}\n");
        assert_eq!(waiting(&text), ["one"]);
        assert_eq!(waiting(&format!("{text}.visible .entry three (\n){{ {wait} }}")), ["one", "three"]);
        assert!(waiting("").is_empty());
    }

    #[test]
    fn a_log_ends_at_its_nul() {
        assert_eq!(log_text(b"ptxas fatal: no\n\0rest"), "the PTX compiler says: ptxas fatal: no");
        assert_eq!(log_text(b"\0"), "the PTX compiler left no log");
        assert_eq!(log_text(b""), "the PTX compiler left no log");
    }
}
