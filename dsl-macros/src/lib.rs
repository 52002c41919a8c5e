//! # The macros of epoxide-dsl
//!
//! `#[kernel]` turns a function into a GPU entry point and a typed descriptor; `#[derive(KernelArg)]` proves that a struct
//! may cross from the host to the GPU. Use them through `epoxide_dsl`, which documents them where they are used.
//!
//! Both are parse → checked model → generate: `model` (with `bounds`, the attribute's arguments) and `arg` are the checked
//! models, `expand` writes the code. All errors of one item are reported at once, each at its own place; each has a test
//! in `dsl/tests/ui`.
mod arg;
mod bounds;
mod errors;
mod expand;
mod model;

use proc_macro::TokenStream;

/// Makes a kernel of a function that every GPU thread runs.
///
/// ```text
/// #[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
/// pub fn name(args: Args) { ... }
/// ```
///
/// * `threads`: threads in a block, a multiple of 32 from 32 to 1024. Required; it becomes `.maxntid`.
/// * `blocks_per_sm`: blocks that must fit on one SM at once, default 1; it becomes `.minnctapersm`.
/// * `cooperative`: the kernel has a grid barrier, so all its blocks are resident together.
///
/// On `nvptx64` the result is an entry point of that name; elsewhere it is a constant `name: Kernel<Args>`. A crate of kernels
/// begins with `#![cfg_attr(target_arch = "nvptx64", no_std, feature(abi_ptx, asm_experimental_arch))]`.
#[proc_macro_attribute]
pub fn kernel(attributes: TokenStream, item: TokenStream) -> TokenStream {
    model::KernelModel::parse(attributes.into(), item.into())
        .map_or_else(syn::Error::into_compile_error, |model| expand::kernel(&model))
        .into()
}

/// Implements `KernelArg` for a `#[repr(C)]` struct whose fields all are `KernelArg`.
#[proc_macro_derive(KernelArg)]
pub fn derive_kernel_arg(item: TokenStream) -> TokenStream {
    arg::ArgModel::parse(item.into())
        .map_or_else(syn::Error::into_compile_error, |model| expand::kernel_arg(&model))
        .into()
}
