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
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
    pub fn all(self) -> Option<Error> {
        self.0
    }
    /// These errors and `more`, of which there is at least one.
    pub fn and(mut self, more: Self) -> Error {
        if let Some(error) = more.0 {
            self.push(error);
        }
        self.0.unwrap_or_else(|| Self::here("this item could not be read"))
    }
}
