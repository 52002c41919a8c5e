//! Errors of one item, collected, so that all are reported at once.
use proc_macro2::Span;
use quote::ToTokens;
use syn::Error;

/// The errors found so far.
#[derive(Default)]
pub struct Errors(Option<Error>);

impl Errors {
    /// An error at the macro's own attribute.
    pub fn here(message: impl std::fmt::Display) -> Error {
        Error::new(Span::call_site(), message)
    }
    pub fn push(&mut self, error: Error) {
        match &mut self.0 {
            Some(all) => all.combine(error),
            None => self.0 = Some(error),
        }
    }
    /// Reports at the whole of `place`; its span alone would be the first token's.
    pub fn at(&mut self, place: impl ToTokens, message: impl std::fmt::Display) {
        self.push(Error::new_spanned(place, message));
    }
    pub fn finish(self) -> Result<(), Error> {
        self.0.map_or(Ok(()), Err)
    }
}
