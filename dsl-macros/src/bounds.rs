//! The arguments of `#[kernel]`: the launch bounds.
use proc_macro2::TokenStream;
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{Error, Expr, Ident, Lit, Meta, MetaNameValue, Token};

use crate::errors::Errors;

/// What `#[kernel]` says of a launch.
pub struct Bounds {
    pub threads: u32,
    pub blocks_per_sm: u32,
    pub cooperative: bool,
}

const ARGUMENTS: &str = "#[kernel] takes `threads = N`, `blocks_per_sm = N` and `cooperative`";

impl Bounds {
    /// Reads and checks the attribute's arguments. In place of what is wrong stands a bound that is right.
    pub fn parse(attributes: TokenStream, errors: &mut Errors) -> Self {
        let (mut threads, mut blocks_per_sm, mut cooperative) = (None, Some(1), false);
        let metas = match Punctuated::<Meta, Token![,]>::parse_terminated.parse2(attributes) {
            Ok(metas) => metas,
            Err(error) => {
                errors.push(Error::new(error.span(), format!("{error}; {ARGUMENTS}")));
                return Self { threads: 32, blocks_per_sm: 1, cooperative };
            }
        };
        let mut seen: Vec<&Ident> = Vec::new();
        // The product is judged where the second factor is written.
        let mut product = None;
        for meta in &metas {
            let name = meta.path().get_ident();
            match name.map(Ident::to_string).unwrap_or_default().as_str() {
                "threads" => {
                    let rule = "a block has a multiple of 32 threads, from 32 to 1024";
                    threads = number(meta, rule, |n| (32..=1024).contains(&n) && n % 32 == 0, errors);
                }
                "blocks_per_sm" => {
                    blocks_per_sm = number(meta, "an SM holds 1 to 32 blocks", |n| (1..=32).contains(&n), errors);
                    product = Some(meta);
                }
                "cooperative" => {
                    cooperative = true;
                    if !matches!(meta, Meta::Path(_)) {
                        errors.at(meta, "`cooperative` has no value: write the word, or leave it out");
                    }
                }
                _ => errors.at(meta, format!("unknown argument; {ARGUMENTS}")),
            }
            if let Some(name) = name {
                if seen.contains(&name) {
                    errors.at(meta, format!("`{name}` is given twice"));
                }
                seen.push(name);
            }
        }
        if !seen.iter().any(|name| *name == "threads") {
            errors.push(Errors::here("#[kernel] needs the block size: `#[kernel(threads = 128)]`"));
        }
        let (threads, blocks_per_sm) = (threads.unwrap_or(32), blocks_per_sm.unwrap_or(1));
        if let Some(meta) = product
            && threads * blocks_per_sm > 2048
        {
            let asked = threads * blocks_per_sm;
            errors.at(meta, format!("threads x blocks_per_sm = {asked}: an SM holds at most 2048 threads"));
        }
        Self { threads, blocks_per_sm, cooperative }
    }
}

/// Reads `name = N` and checks N against its rule.
fn number(meta: &Meta, rule: &str, fits: impl Fn(u32) -> bool, errors: &mut Errors) -> Option<u32> {
    let Meta::NameValue(MetaNameValue { path, value, .. }) = meta else {
        let name = meta.path().get_ident().map(Ident::to_string).unwrap_or_default();
        errors.at(meta, format!("write it with its number: `{name} = N`"));
        return None;
    };
    let Expr::Lit(literal) = value else {
        errors.at(value, "write a number: launch bounds go into the PTX text, before constants are known");
        return None;
    };
    let Lit::Int(int) = &literal.lit else {
        errors.at(value, "write a whole number");
        return None;
    };
    let name = path.get_ident().map(Ident::to_string).unwrap_or_default();
    // Too large for a u32 is too large for the rule.
    let number = int.base10_parse().ok().filter(|&n| fits(n));
    if number.is_none() {
        errors.at(value, format!("{name} = {int}: {rule}"));
    }
    number
}
