//! The checked model of a `#[kernel]` function.
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::{Attribute, Block, Error, FnArg, Ident, ItemFn, Pat, ReturnType, Signature, Type, Visibility};

use crate::bounds::Bounds;
use crate::errors::Errors;

/// What `#[kernel]` needs to know of a function.
pub struct KernelModel {
    pub attributes: Vec<Attribute>,
    pub visibility: Visibility,
    pub name: Ident,
    pub argument: Pat,
    pub argument_type: Type,
    pub body: Block,
    pub bounds: Bounds,
    /// Errors that leave the kernel's type whole. They go beside the code, so that what names the kernel does not fail too.
    pub errors: Option<Error>,
}

impl KernelModel {
    /// Reads and checks the function and the macro's own arguments.
    pub fn parse(attributes: TokenStream, item: TokenStream) -> Result<Self, Error> {
        let is_function = has_function_form(&item);
        let function: ItemFn = syn::parse2(item).map_err(|error| {
            // A function that syn cannot read has an error of its own.
            if is_function {
                error
            } else {
                Errors::here("#[kernel] stands on a free function: `pub fn name(args: Args) { ... }`")
            }
        })?;
        let mut errors = Errors::default();
        let bounds = Bounds::parse(attributes, &mut errors);
        check_attributes(&function.attrs, &mut errors);
        let mut grave = Errors::default();
        check_signature(&function.sig, &mut grave);
        let (argument, argument_type) = match check_argument(&function.sig, &mut grave) {
            Some(argument) if grave.is_empty() => argument,
            _ => return Err(errors.and(grave)),
        };
        Ok(Self {
            attributes: function.attrs.into_iter().filter(|attribute| !is_decided(attribute)).collect(),
            visibility: function.vis,
            name: function.sig.ident,
            argument,
            argument_type,
            body: *function.block,
            bounds,
            errors: errors.all(),
        })
    }
}

/// Whether the item is `... fn ... { ... }`, whatever stands between.
fn has_function_form(item: &TokenStream) -> bool {
    let mut tokens = item.clone().into_iter();
    let named = tokens.any(|token| matches!(token, TokenTree::Ident(word) if word == "fn"));
    named && matches!(tokens.last(), Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace)
}

/// Whether an attribute says how a function is compiled, called or linked: that is what `#[kernel]` decides.
fn is_decided(attribute: &Attribute) -> bool {
    [
        "inline",
        "cold",
        "track_caller",
        "target_feature",
        "must_use",
        "no_mangle",
        "export_name",
        "link_section",
        "unsafe",
    ]
    .iter()
    .any(|name| attribute.path().is_ident(name))
}

fn check_attributes(attributes: &[Attribute], errors: &mut Errors) {
    for attribute in attributes.iter().filter(|attribute| is_decided(attribute)) {
        errors.at(attribute, "#[kernel] decides how the entry point is named and compiled: remove this attribute");
    }
}

fn check_signature(sig: &Signature, errors: &mut Errors) {
    let plain = |what: &str| format!("a kernel is a plain `fn`: remove `{what}` (launching it is what is unsafe)");
    if let Some(token) = &sig.constness {
        errors.at(token, plain("const"));
    }
    if let Some(token) = &sig.asyncness {
        errors.at(token, plain("async"));
    }
    if let Some(token) = &sig.unsafety {
        errors.at(token, plain("unsafe"));
    }
    if let Some(abi) = &sig.abi {
        errors.at(abi, "#[kernel] chooses the ABI: remove `extern`");
    }
    if !sig.generics.params.is_empty() {
        errors.at(
            &sig.generics,
            "a kernel has no generic parameters: an entry point has one name; call a generic function from it",
        );
    } else if let Some(clause) = &sig.generics.where_clause {
        errors.at(clause, "a kernel has no generic parameters, so there is nothing to say of them: remove `where`");
    }
    if let ReturnType::Type(_, ty) = &sig.output {
        errors.at(ty, "a kernel returns nothing: write the result through a pointer in the argument struct");
    }
    if let Some(variadic) = &sig.variadic {
        errors.at(variadic, "a kernel takes one argument: remove `...`");
    }
}

/// Checks that there is one argument, by value, and returns it.
fn check_argument(sig: &Signature, errors: &mut Errors) -> Option<(Pat, Type)> {
    let mut inputs = sig.inputs.iter();
    let first = match inputs.next() {
        Some(FnArg::Typed(typed)) => {
            // Named types are for the trait bound of `Kernel` to judge.
            if !matches!(&*typed.ty, Type::Path(_) | Type::Group(_) | Type::Paren(_) | Type::Macro(_)) {
                errors.at(
                    &typed.ty,
                    "a kernel takes one `#[derive(KernelArg)]` struct by value; put pointers in it as `Global<T>`",
                );
            }
            Some(((*typed.pat).clone(), (*typed.ty).clone()))
        }
        Some(FnArg::Receiver(receiver)) => {
            errors.at(receiver, "a kernel is not a method: take one `#[derive(KernelArg)]` struct by value");
            None
        }
        None => {
            errors.at(&sig.ident, "a kernel takes one `#[derive(KernelArg)]` struct by value: `fn name(args: Args)`");
            None
        }
    };
    for extra in inputs {
        errors.at(extra, "a kernel takes one argument: move this into the argument struct");
    }
    first
}
