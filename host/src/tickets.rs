//! Tickets, which stand for what is in flight between the halves of an operation.
use std::fmt;

use crate::buffer::Dispatched;
#[cfg(doc)]
use crate::buffer::ElasticBuffer;
use crate::error::Error;

/// Stands for a dispatch that was sent and is to be received: [`ElasticBuffer::dispatch_receive`] takes it, so that it is received once.
///
/// ```compile_fail,E0382
/// # use epoxide::{DispatchTicket, Dispatched, ElasticBuffer, Result};
/// fn twice(buffer: &mut ElasticBuffer, ticket: DispatchTicket) -> Result<(Dispatched, Dispatched)> {
///     Ok((buffer.dispatch_receive(ticket)?, buffer.dispatch_receive(ticket)?))
/// }
/// ```
///
/// Until then its row slot is held: no other dispatch goes there, and a buffer that is closed meanwhile says so ([`Error::InFlight`]). Of a ticket that was
/// dropped the slot is free again behind a [reset](ElasticBuffer::reset).
#[derive(Debug)]
#[must_use = "a dispatch that was sent holds its row slot until it is received"]
pub struct DispatchTicket(pub(crate) Dispatched);

/// Stands for a combine that was sent and is to be received: [`ElasticBuffer::combine_receive`] takes it. Otherwise as a [`DispatchTicket`].
///
/// ```compile_fail,E0382
/// # use epoxide::{CombineTicket, DeviceTensor, ElasticBuffer, Result, bf16};
/// fn twice(buffer: &mut ElasticBuffer, ticket: CombineTicket, y: &mut DeviceTensor<bf16>) -> Result<()> {
///     buffer.combine_receive(ticket, &mut *y)?;
///     Ok(buffer.combine_receive(ticket, y)?)
/// }
/// ```
#[derive(Debug)]
#[must_use = "a combine that was sent holds its row slot until it is received"]
pub struct CombineTicket(pub(crate) Dispatched);

impl DispatchTicket {
    /// The row slot that it holds.
    pub fn row_slot(&self) -> u32 {
        self.0.row_slot
    }

    /// The dispatch's number among the buffer's operations, by which errors name it.
    pub fn operation(&self) -> u64 {
        self.0.operation
    }
}

impl CombineTicket {
    /// The row slot that it holds.
    pub fn row_slot(&self) -> u32 {
        self.0.row_slot
    }

    /// The number, among the buffer's operations, of the dispatch that it combines, by which errors name it.
    pub fn operation(&self) -> u64 {
        self.0.operation
    }
}

/// Why a receive half was refused, and the ticket that it was given: what was sent is in flight as before, and can be received by it, with
/// a right argument, or by the buffer that it is of. It turns into an [`Error`], so that `?` passes that on, and drops the ticket.
///
/// ```
/// use epoxide::{CombineTicket, DeviceTensor, ElasticBuffer, Error, Result, bf16};
///
/// /// Sums into the second tensor where the first is too small.
/// fn receive(buffer: &mut ElasticBuffer, ticket: CombineTicket, ys: [&mut DeviceTensor<bf16>; 2]) -> Result<()> {
///     let [first, second] = ys;
///     match buffer.combine_receive(ticket, first).map_err(|refused| refused.into_parts()) {
///         Err((Error::BufferTooSmall { .. }, Some(ticket))) => Ok(buffer.combine_receive(ticket, second)?),
///         Err((error, _)) => Err(error),
///         Ok(()) => Ok(()),
///     }
/// }
/// ```
pub struct Refused<T>(Box<(Error, Option<T>)>);

impl<T> Refused<T> {
    /// Nothing was enqueued.
    pub(crate) fn with(error: Error, ticket: T) -> Self {
        Self(Box::new((error, Some(ticket))))
    }

    /// The half is enqueued, and what comes behind it is not.
    pub(crate) fn without(error: Error) -> Self {
        Self(Box::new((error, None)))
    }

    /// Why.
    pub fn error(&self) -> &Error {
        &self.0.0
    }

    /// Why, and the ticket; none where the half was enqueued all the same, and what goes with it failed: then the row slot is given back.
    pub fn into_parts(self) -> (Error, Option<T>) {
        *self.0
    }
}

impl<T> fmt::Debug for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Refused").field(self.error()).finish()
    }
}

impl<T> fmt::Display for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error().fmt(f)
    }
}

impl<T> std::error::Error for Refused<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error().source()
    }
}

impl<T> From<Refused<T>> for Error {
    fn from(refused: Refused<T>) -> Self {
        refused.into_parts().0
    }
}
