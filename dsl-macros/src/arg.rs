//! The checked model of a `#[derive(KernelArg)]` struct.
use proc_macro2::TokenStream;
use syn::punctuated::Punctuated;
use syn::{Attribute, Data, DeriveInput, Error, Ident, Meta, Token, Type};

use crate::errors::Errors;

/// What the derive needs to know of a struct.
pub struct ArgModel {
    pub name: Ident,
    /// The fields' types that the trait bound must judge.
    pub field_types: Vec<Type>,
    /// What is wrong with it. It goes beside the code, so that the kernels that take the struct do not fail too.
    pub errors: Option<Error>,
}

impl ArgModel {
    /// Reads and checks the struct.
    pub fn parse(item: TokenStream) -> Result<Self, Error> {
        let input: DeriveInput = syn::parse2(item)?;
        let mut errors = Errors::default();
        let mut field_types = Vec::new();
        match &input.data {
            Data::Struct(data) => {
                check_repr(&input.ident, &input.attrs, &mut errors);
                if data.fields.is_empty() {
                    errors.at(&input.ident, "a kernel argument has at least one field");
                }
                for field in &data.fields {
                    if let Some(advice) = advice(&field.ty) {
                        errors.at(&field.ty, advice);
                    } else {
                        field_types.push(field.ty.clone());
                    }
                }
            }
            Data::Enum(_) => errors.at(&input.ident, "a kernel argument is a struct; pass an enum as a u32"),
            Data::Union(_) => {
                errors.at(&input.ident, "a kernel argument is a struct; pass what a union may hold as fields");
            }
        }
        if !input.generics.params.is_empty() {
            errors.at(&input.generics, "a kernel argument has no generic parameters: an entry point has one signature");
        }
        if input.generics.params.is_empty() {
            Ok(Self { name: input.ident, field_types, errors: errors.all() })
        } else {
            Err(errors.and(Errors::default()))
        }
    }
}

/// Checks that the struct is `#[repr(C)]`, alignment allowed, packing not.
fn check_repr(name: &Ident, attributes: &[Attribute], errors: &mut Errors) {
    let mut found = false;
    for attribute in attributes.iter().filter(|a| a.path().is_ident("repr")) {
        // A malformed repr is rustc's to report.
        let metas = attribute.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).unwrap_or_default();
        for meta in &metas {
            found |= meta.path().is_ident("C");
            if meta.path().is_ident("packed") {
                errors.at(meta, "a kernel argument is not packed: the GPU reads each field at its own alignment");
            }
        }
    }
    if !found {
        errors.at(name, "a kernel argument is `#[repr(C)]`, so that the host and the GPU agree on its layout");
    }
}

/// Says what to write in place of a type that is known to be wrong. The trait bound judges the others.
fn advice(ty: &Type) -> Option<&'static str> {
    Some(match ty {
        Type::Group(group) => return advice(&group.elem),
        Type::Paren(paren) => return advice(&paren.elem),
        Type::Reference(_) => {
            "a reference becomes a non-coherent load on the GPU: use `Global<T>`, or `Symmetric<T>` for memory that peers touch"
        }
        Type::Ptr(_) => "use `Global<T>`, whose accesses name their strength, in place of a raw pointer",
        Type::Array(_) => {
            "an array in the argument is copied to local memory when indexed: put it in device memory and pass a `Global<T>`"
        }
        Type::Slice(_) | Type::Tuple(_) => "use a `Global<T>` and a length, or a `#[derive(KernelArg)]` struct",
        Type::BareFn(_) => "a function of the host means nothing on the GPU: pass a number and match on it",
        Type::Path(path) => match path.path.get_ident()?.to_string().as_str() {
            "bool" | "char" => "not every bit pattern is valid: pass a u32",
            "usize" | "isize" => "its size is the target's: pass a u64",
            "u8" | "i8" | "u16" | "i16" | "f16" => "it would leave padding beside it: pass a u32, or an f32",
            "u128" | "i128" => "no GPU access moves it at once: pass two u64",
            _ => return None,
        },
        _ => return None,
    })
}
