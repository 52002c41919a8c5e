//! The code that the macros write.
use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;

use crate::arg::ArgModel;
use crate::model::KernelModel;

/// An entry point for nvptx64, a descriptor for everything else.
pub fn kernel(model: &KernelModel) -> TokenStream {
    let KernelModel {
        attributes,
        visibility,
        name,
        argument,
        argument_type,
        body,
        threads,
        blocks_per_sm,
        cooperative,
    } = model;
    let name_text = name.to_string();
    // The launch bounds travel in the PTX as a comment that epoxide-ptx-build turns into directives.
    let marker = format!("// epoxide-entry threads={threads} blocks_per_sm={blocks_per_sm}");
    quote! {
        #[cfg(target_arch = "nvptx64")]
        const _: () = {
            #(#attributes)*
            #[unsafe(no_mangle)]
            pub unsafe extern "ptx-kernel" fn #name(#argument: #argument_type) {
                // SAFETY: a comment in the PTX text.
                unsafe { ::core::arch::asm!(#marker, options(nomem, nostack, preserves_flags)) };
                #body
            }
        };
        #[cfg(not(target_arch = "nvptx64"))]
        #(#attributes)*
        #[allow(non_upper_case_globals)]
        #visibility const #name: ::epoxide_dsl::Kernel<#argument_type> = {
            fn #name(#argument: #argument_type) #body
            ::epoxide_dsl::Kernel::new(#name_text, #threads, #blocks_per_sm, #cooperative, #name)
        };
    }
}

/// The implementation, and one assertion per field at the field's own place.
pub fn kernel_arg(model: &ArgModel) -> TokenStream {
    let ArgModel { name, field_types } = model;
    let checks = field_types.iter().map(|ty| quote_spanned! { ty.span() => assert_kernel_arg::<#ty>(); });
    quote! {
        const _: () = {
            const fn assert_kernel_arg<T: ::epoxide_dsl::KernelArg>() {}
            #(#checks)*
        };
        // SAFETY: `#[repr(C)]` and made of `KernelArg` fields only, both checked by the derive.
        unsafe impl ::epoxide_dsl::KernelArg for #name {}
    }
}
