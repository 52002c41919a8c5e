//! The checked model of a `#[derive(KernelArg)]` struct.
use proc_macro2::TokenStream;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Fields, Ident, Type};

use crate::model::Errors;

/// What the derive needs to know of a struct.
pub struct ArgModel {
    pub name: Ident,
    pub field_types: Vec<Type>,
}

impl ArgModel {
    /// Reads and checks the struct.
    pub fn parse(item: TokenStream) -> Result<Self, Error> {
        let input: DeriveInput = syn::parse2(item)?;
        let mut errors = Errors::default();
        let mut field_types = Vec::new();
        if !is_repr_c(&input) {
            errors.at(
                input.ident.span(),
                "a kernel argument is `#[repr(C)]`, so that the host and the GPU agree on its layout",
            );
        }
        if !input.generics.params.is_empty() {
            errors.at(
                input.generics.span(),
                "a kernel argument has no generic parameters: an entry point has one signature",
            );
        }
        match &input.data {
            Data::Struct(data) => {
                if let Fields::Unit = data.fields {
                    errors.at(input.ident.span(), "a kernel argument has at least one field");
                }
                for field in &data.fields {
                    check_field(&field.ty, &mut errors);
                    field_types.push(field.ty.clone());
                }
            }
            Data::Enum(_) | Data::Union(_) => {
                errors.at(input.ident.span(), "a kernel argument is a struct; pass an enum as a u32");
            }
        }
        errors.finish()?;
        Ok(Self { name: input.ident, field_types })
    }
}

fn is_repr_c(input: &DeriveInput) -> bool {
    let mut found = false;
    for attribute in input.attrs.iter().filter(|a| a.path().is_ident("repr")) {
        // A malformed repr is rustc's to report.
        let _ = attribute.parse_nested_meta(|meta| {
            found |= meta.path.is_ident("C");
            Ok(())
        });
    }
    found
}

fn check_field(ty: &Type, errors: &mut Errors) {
    let advice = match ty {
        Type::Reference(_) => {
            "a reference becomes a non-coherent load on the GPU: use `Global<T>`, or `Symmetric<T>` for memory that peers touch"
        }
        Type::Ptr(_) => "use `Global<T>`, whose accesses name their strength, in place of a raw pointer",
        Type::Array(_) => {
            "an array in the argument is copied to local memory when indexed: put it in device memory and pass a `Global<T>`"
        }
        Type::Slice(_) | Type::Tuple(_) => "use a `Global<T>` and a length, or a `#[derive(KernelArg)]` struct",
        Type::Path(path) if path.path.is_ident("bool") || path.path.is_ident("char") => {
            "not every bit pattern is valid: pass a u32"
        }
        Type::Path(path) if path.path.is_ident("usize") || path.path.is_ident("isize") => {
            "its size is the target's: pass a u64"
        }
        _ => return,
    };
    errors.at(ty.span(), advice);
}
