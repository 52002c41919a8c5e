//! What a report measures.
use super::routing::Routing;
use crate::buffer_layout::BufferLayout;
use crate::options::{Case, Format, Options};
use crate::sizes::is_for;

/// One thing to measure, in every mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    pub routing: Routing,
    pub format: Format,
    pub layout: BufferLayout,
    pub tokens: u32,
    pub sms: u32,
}

impl Cell {
    /// The same as the row of a table, whose buffers are of the same configuration.
    pub fn case(self) -> Case {
        let Self { format, layout, tokens, sms, .. } = self;
        Case { tokens, format, layout, sms }
    }
}

/// All of them: what is expected of tokens is the same in neighbours.
pub fn cells(options: &Options) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &routing in &options.routing {
        for &layout in &options.layout {
            for &format in &options.format {
                for &tokens in options.tokens.iter().filter(|tokens| is_for(layout, **tokens)) {
                    let sms = options.sms.iter().filter(|sms| is_measured(options, routing, layout, **sms));
                    cells.extend(sms.map(|&sms| Cell { routing, format, layout, tokens, sms }));
                }
            }
        }
    }
    cells
}

/// Whether a number of SMs says much: how times go over SMs is measured where rows are compact and routing is even, and beside
/// that only with few and with all.
fn is_measured(options: &Options, routing: Routing, layout: BufferLayout, sms: u32) -> bool {
    let usual = routing == Routing::Uniform && layout == BufferLayout::Compact;
    let most = options.sms.iter().max() == Some(&sms);
    !options.fewer_sms || usual || most || sms == 16
}
