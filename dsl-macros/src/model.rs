//! The checked model of a `#[kernel]` function.
use proc_macro2::{Span, TokenStream};
use syn::parse::Parser;
use syn::spanned::Spanned;
use syn::{Attribute, Block, Error, Expr, FnArg, Ident, ItemFn, Lit, Meta, Pat, ReturnType, Token, Type, Visibility};

/// What `#[kernel]` needs to know of a function.
pub struct KernelModel {
    pub attributes: Vec<Attribute>,
    pub visibility: Visibility,
    pub name: Ident,
    pub argument: Pat,
    pub argument_type: Type,
    pub body: Block,
    pub threads: u32,
    pub blocks_per_sm: u32,
    pub cooperative: bool,
}

/// Collects errors, so that all of an item are reported at once.
#[derive(Default)]
pub struct Errors(Option<Error>);

impl Errors {
    pub fn push(&mut self, error: Error) {
        match &mut self.0 {
            Some(all) => all.combine(error),
            None => self.0 = Some(error),
        }
    }
    pub fn at(&mut self, span: Span, message: impl std::fmt::Display) {
        self.push(Error::new(span, message));
    }
    pub fn finish(self) -> Result<(), Error> {
        self.0.map_or(Ok(()), Err)
    }
}

struct Bounds {
    threads: Option<u32>,
    blocks_per_sm: u32,
    cooperative: bool,
}

impl KernelModel {
    /// Reads and checks the function and the macro's own arguments.
    pub fn parse(attributes: TokenStream, item: TokenStream) -> Result<Self, Error> {
        let function: ItemFn = syn::parse2(item.clone()).map_err(|_| {
            Error::new(item.span(), "#[kernel] stands on a free function: `pub fn name(args: Args) { ... }`")
        })?;
        let mut errors = Errors::default();
        let bounds = parse_bounds(attributes, &mut errors);
        let argument = check_signature(&function, &mut errors);
        errors.finish()?;
        // Both are present when no error was found.
        let (Some(threads), Some((argument, argument_type))) = (bounds.threads, argument) else {
            return Err(Error::new(Span::call_site(), "#[kernel] could not read this function"));
        };
        Ok(Self {
            attributes: function.attrs,
            visibility: function.vis,
            name: function.sig.ident,
            argument,
            argument_type,
            body: *function.block,
            threads,
            blocks_per_sm: bounds.blocks_per_sm,
            cooperative: bounds.cooperative,
        })
    }
}

fn parse_bounds(attributes: TokenStream, errors: &mut Errors) -> Bounds {
    let mut bounds = Bounds { threads: None, blocks_per_sm: 1, cooperative: false };
    let metas = match syn::punctuated::Punctuated::<Meta, Token![,]>::parse_terminated.parse2(attributes) {
        Ok(metas) => metas,
        Err(error) => {
            errors.push(error);
            return bounds;
        }
    };
    let mut threads_seen = false;
    for meta in &metas {
        match meta {
            Meta::Path(path) if path.is_ident("cooperative") => bounds.cooperative = true,
            Meta::NameValue(pair) if pair.path.is_ident("threads") => {
                threads_seen = true;
                bounds.threads = number(&pair.value, errors).filter(|&n| {
                    let fits = (32..=1024).contains(&n) && n % 32 == 0;
                    if !fits {
                        errors.at(
                            pair.value.span(),
                            format!("threads = {n}: a block has a multiple of 32 threads, from 32 to 1024"),
                        );
                    }
                    fits
                });
            }
            Meta::NameValue(pair) if pair.path.is_ident("blocks_per_sm") => {
                if let Some(n) = number(&pair.value, errors) {
                    if !(1..=32).contains(&n) {
                        errors.at(pair.value.span(), format!("blocks_per_sm = {n}: an SM holds 1 to 32 blocks"));
                    }
                    bounds.blocks_per_sm = n;
                }
            }
            other => errors.at(
                other.span(),
                "unknown argument; #[kernel] takes `threads = N`, `blocks_per_sm = N` and `cooperative`",
            ),
        }
    }
    if !threads_seen {
        errors.at(Span::call_site(), "#[kernel] needs the block size: `#[kernel(threads = 128)]`");
    }
    if let Some(threads) = bounds.threads
        && threads.saturating_mul(bounds.blocks_per_sm) > 2048
    {
        let asked = threads * bounds.blocks_per_sm;
        errors.at(Span::call_site(), format!("threads x blocks_per_sm = {asked}: an SM holds at most 2048 threads"));
    }
    bounds
}

fn number(value: &Expr, errors: &mut Errors) -> Option<u32> {
    if let Expr::Lit(literal) = value
        && let Lit::Int(int) = &literal.lit
    {
        return int.base10_parse().map_err(|error| errors.push(error)).ok();
    }
    errors.at(value.span(), "write a number: launch bounds go into the PTX text, before constants are known");
    None
}

fn check_signature(function: &ItemFn, errors: &mut Errors) -> Option<(Pat, Type)> {
    let sig = &function.sig;
    for (present, what) in [
        (sig.constness.map(|t| t.span), "const"),
        (sig.asyncness.map(|t| t.span), "async"),
        (sig.unsafety.map(|t| t.span), "unsafe"),
    ] {
        if let Some(span) = present {
            errors.at(span, format!("a kernel is a plain `fn`: remove `{what}` (launching it is what is unsafe)"));
        }
    }
    if let Some(abi) = &sig.abi {
        errors.at(abi.span(), "#[kernel] chooses the ABI: remove `extern`");
    }
    if !sig.generics.params.is_empty() {
        errors.at(
            sig.generics.span(),
            "a kernel has no generic parameters: an entry point has one name; call a generic function from it",
        );
    }
    if let ReturnType::Type(_, t) = &sig.output {
        errors.at(t.span(), "a kernel returns nothing: write the result through a pointer in the argument struct");
    }
    let mut inputs = sig.inputs.iter();
    let first = match inputs.next() {
        Some(FnArg::Typed(typed)) => {
            if let Type::Reference(_) | Type::Ptr(_) | Type::Slice(_) | Type::Tuple(_) | Type::Array(_) = &*typed.ty {
                errors.at(
                    typed.ty.span(),
                    "a kernel takes one `#[derive(KernelArg)]` struct by value; put pointers in it as `Global<T>`",
                );
            }
            Some(((*typed.pat).clone(), (*typed.ty).clone()))
        }
        Some(FnArg::Receiver(receiver)) => {
            errors.at(receiver.span(), "a kernel is not a method: take one `#[derive(KernelArg)]` struct by value");
            None
        }
        None => {
            errors.at(
                sig.paren_token.span.join(),
                "a kernel takes one `#[derive(KernelArg)]` struct by value: `fn name(args: Args)`",
            );
            None
        }
    };
    for extra in inputs {
        errors.at(extra.span(), "a kernel takes one argument: move this into the argument struct");
    }
    first
}
