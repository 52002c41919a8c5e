//! The code that the macros write.
use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, Ident};

use crate::arg::ArgModel;
use crate::bounds::Bounds;
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
        bounds: Bounds { threads, blocks_per_sm, cooperative },
        errors,
    } = model;
    let name_text = name.to_string();
    // The launch bounds travel in the PTX as a comment that epoxide-ptx-build turns into directives.
    let marker = format!("// epoxide-entry threads={threads} blocks_per_sm={blocks_per_sm}");
    let errors = errors.as_ref().map(Error::to_compile_error);
    // At the type's place, where "not a KernelArg" is reported.
    let place = argument_type.span();
    let descriptor = quote_spanned! { place => ::epoxide_dsl::Kernel<#argument_type> };
    let entry = Ident::new(&name_text, place.resolved_at(name.span()));
    quote! {
        #errors
        #[cfg(target_arch = "nvptx64")]
        const _: () = {
            #(#attributes)*
            #[unsafe(no_mangle)]
            pub unsafe extern "ptx-kernel" fn #name(#argument: #argument_type) {
                // SAFETY: a comment in the PTX text.
                unsafe { ::core::arch::asm!(#marker, options(nomem, nostack, preserves_flags)) };
                // A launch may begin while the one before is still at work: nothing of it is touched before it is over.
                ::epoxide_dsl::grid::wait_for_the_one_before();
                #body
            }
        };
        #[cfg(not(target_arch = "nvptx64"))]
        #(#attributes)*
        #[allow(non_upper_case_globals)]
        #visibility const #name: #descriptor = {
            fn #name(#argument: #argument_type) #body
            ::epoxide_dsl::Kernel::new(#name_text, #threads, #blocks_per_sm, #cooperative, #entry)
        };
    }
}

/// The implementation, and one assertion per field at the field's own place.
pub fn kernel_arg(model: &ArgModel) -> TokenStream {
    let ArgModel { name, field_types, errors } = model;
    let errors = errors.as_ref().map(Error::to_compile_error);
    let checks = field_types.iter().map(|ty| quote_spanned! { ty.span() => assert_kernel_arg::<#ty>(); });
    quote! {
        #errors
        const _: () = {
            const fn assert_kernel_arg<T: ::epoxide_dsl::KernelArg>() {}
            #(#checks)*
        };
        // SAFETY: `#[repr(C)]` and made of `KernelArg` fields only, both checked by the derive.
        unsafe impl ::epoxide_dsl::KernelArg for #name {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use syn::{Attribute, Item, ItemConst, ItemFn, Stmt};

    /// Expands a kernel to its two items: the entry for the GPU, and the descriptor for the host.
    fn expand(attributes: TokenStream, item: TokenStream) -> (ItemConst, ItemConst) {
        let model = KernelModel::parse(attributes, item).expect("a good kernel");
        let file: syn::File = syn::parse2(kernel(&model)).expect("items");
        match file.items.as_slice() {
            [Item::Const(device), Item::Const(host)] => (device.clone(), host.clone()),
            _ => panic!("two constants: {}", text(&file)),
        }
    }

    fn text(tokens: impl quote::ToTokens) -> String {
        tokens.to_token_stream().to_string()
    }

    fn docs(attributes: &[Attribute]) -> usize {
        attributes.iter().filter(|a| a.path().is_ident("doc")).count()
    }

    fn entry(device: &ItemConst) -> &ItemFn {
        let syn::Expr::Block(block) = &*device.expr else { panic!("a block: {}", text(device)) };
        let [Stmt::Item(Item::Fn(entry))] = block.block.stmts.as_slice() else {
            panic!("one function: {}", text(device))
        };
        entry
    }

    #[test]
    fn the_descriptor_has_the_functions_name_visibility_and_documentation() {
        let (_, host) = expand(
            quote!(threads = 96, blocks_per_sm = 3, cooperative),
            quote! {
                /// Adds.
                ///
                /// Much.
                #[doc(alias = "plus")]
                pub(crate) fn add(mut args: AddArgs) { args.n += 1; }
            },
        );
        assert_eq!((host.ident.to_string().as_str(), text(&host.vis).as_str()), ("add", "pub (crate)"));
        assert_eq!(docs(&host.attrs), 4);
        assert_eq!(text(&host.ty), ":: epoxide_dsl :: Kernel < AddArgs >");
        assert!(text(&host.attrs[0]).contains("not (target_arch = \"nvptx64\")"), "{}", text(&host));
        let value = text(&host.expr);
        assert!(value.contains("fn add (mut args : AddArgs) { args . n += 1 ; }"), "{value}");
        assert!(value.contains("Kernel :: new (\"add\" , 96u32 , 3u32 , true , add)"), "{value}");
    }

    #[test]
    fn the_entry_has_the_abi_the_name_and_the_launch_bounds() {
        let (device, _) = expand(quote!(threads = 0x40), quote! { fn quiet(Args { n, .. }: Args) { n; } });
        assert!(text(&device.attrs[0]).contains("(target_arch = \"nvptx64\")"), "{}", text(&device));
        let entry = entry(&device);
        assert_eq!(text(&entry.sig), "unsafe extern \"ptx-kernel\" fn quiet (Args { n , .. } : Args)");
        // Whoever may name it in Rust, the driver must find it.
        assert!(matches!(entry.vis, syn::Visibility::Public(_)));
        assert!(entry.attrs.iter().any(|a| text(a) == "# [unsafe (no_mangle)]"), "{}", text(entry));
        let body = text(&entry.block);
        assert!(body.contains("\"// epoxide-entry threads=64 blocks_per_sm=1\""), "{body}");
        // Before it nothing is touched, whatever the kernel does.
        assert!(body.ends_with(":: epoxide_dsl :: grid :: wait_for_the_one_before () ; { n ; } }"), "{body}");
    }

    #[test]
    fn every_field_of_an_argument_is_asserted() {
        let model = ArgModel::parse(quote! {
            #[repr(align(16), C)]
            struct Args { a: Global<f32>, b: u64 }
        });
        let code = text(kernel_arg(&model.expect("a good argument")));
        for part in ["< Global < f32 > >", "< u64 >", "unsafe impl :: epoxide_dsl :: KernelArg for Args"] {
            assert!(code.contains(part), "{part}: {code}");
        }
    }

    #[test]
    fn all_errors_of_an_item_are_found_at_once() {
        let kernel = KernelModel::parse(
            quote!(threads = 33, threads = 64, blocks_per_sm = N, grid = 2),
            quote! { #[inline] pub async unsafe fn bad<T>(&self, n: u32) -> u32 { n } },
        );
        assert_eq!(kernel.err().map(|e| e.into_iter().count()), Some(11));
        let arg = ArgModel::parse(quote! { struct Bad<T>(bool, &'static T, [u32; 4]); });
        assert_eq!(arg.err().map(|e| e.into_iter().count()), Some(5));
    }

    #[test]
    fn what_names_a_wrong_item_does_not_fail_too() {
        let model = KernelModel::parse(quote!(threads = 33), quote! { #[inline] #[doc = "d"] fn k(args: Args) {} });
        let code = text(kernel(&model.expect("its type is known")));
        assert!(
            code.contains("compile_error") && code.contains("const k : :: epoxide_dsl :: Kernel < Args >"),
            "{code}"
        );
        assert!(code.contains("doc") && !code.contains("inline"), "{code}");
        let model = ArgModel::parse(quote! { #[repr(C)] struct Args { on: bool, n: u64 } });
        let code = text(kernel_arg(&model.expect("its name is known")));
        assert!(code.contains("compile_error") && code.contains("KernelArg for Args"), "{code}");
        assert!(code.contains("< u64 >") && !code.contains("< bool >"), "{code}");
    }
}
