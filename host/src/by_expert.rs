//! Received rows grouped by expert, for experts that run on the host.
use crate::error::{Error, Result};
use crate::received::Received;
use crate::tensor::filled;

/// Which of the received rows each local expert works on, and with which gate weight.
///
/// A row that selected several experts of this rank is with each of them. Its output is one row all the same: the sum over
/// these experts of weight times output, which is what [combine](crate::ElasticBuffer::combine) takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ByExpert {
    /// `[local experts + 1]`: expert `e` has the selections `offsets[e]..offsets[e + 1]`.
    pub offsets: Vec<usize>,
    /// `[selections]`: numbers of received rows, ascending within an expert.
    pub rows: Vec<u32>,
    /// `[selections]`: the gate weight of that selection.
    pub weights: Vec<f32>,
}

impl ByExpert {
    /// Local experts.
    pub fn experts(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// The rows of a local expert and their gate weights; none where there is no such expert.
    pub fn rows_of(&self, expert: usize) -> impl Iterator<Item = (usize, f32)> {
        let next = expert.checked_add(1).and_then(|next| self.offsets.get(next));
        let range = next.map_or(0..0, |end| self.offsets[expert]..*end);
        let rows = self.rows.get(range.clone()).unwrap_or_default().iter().map(|row| *row as usize);
        rows.zip(self.weights.get(range).unwrap_or_default().iter().copied())
    }
}

impl Received {
    /// The rows grouped by local expert.
    ///
    /// ```
    /// # use epoxide::{Received, RecvCounts};
    /// # let mut counts = RecvCounts::default();
    /// # (counts.rows, counts.by_expert) = (3, vec![2, 0, 2]);
    /// // Three rows, top-2, three local experts: row 1 selected two of them.
    /// let topk_idx = vec![2, -1, 0, 2, -1, 0];
    /// let topk_weights = vec![0.5, 0.0, 0.25, 0.75, 0.0, 1.0];
    /// let received = Received { counts, topk_idx, topk_weights, ..Received::default() };
    /// let by_expert = received.by_expert()?;
    /// assert_eq!(by_expert.offsets, [0, 2, 2, 4]);
    /// assert_eq!(by_expert.rows_of(0).collect::<Vec<_>>(), [(1, 0.25), (2, 1.0)]);
    /// assert_eq!(by_expert.rows_of(2).collect::<Vec<_>>(), [(0, 0.5), (1, 0.75)]);
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::HostMemory`]; [`Error::InvalidArgument`] when this is nothing that a dispatch brought: selections that are not whole rows,
    /// or of experts that are not there.
    pub fn by_expert(&self) -> Result<ByExpert> {
        let (rows, experts) = (self.counts.rows as usize, self.counts.by_expert.len());
        let selections = self.topk_idx.len();
        if !selections.is_multiple_of(rows.max(1)) || (rows == 0 && selections > 0) {
            return Err(Error::argument("topk_idx", format!("{selections} selections"), format!("of {rows} rows")));
        }
        if self.topk_weights.len() != selections {
            let value = format!("{} gate weights", self.topk_weights.len());
            return Err(Error::argument("topk_weights", value, format!("one for each of {selections} selections")));
        }
        // Counted one place further, the sums up to an expert are where its first row goes; that place moves on to its end, which
        // is the next one's first.
        let mut offsets = filled("rows by expert", experts + 2, 0usize)?;
        for &expert in &self.topk_idx {
            if let Some(expert) = local(expert, experts)? {
                offsets[expert + 2] += 1;
            }
        }
        for expert in 1..offsets.len() {
            offsets[expert] += offsets[expert - 1];
        }
        let taken = offsets.last().copied().unwrap_or(0);
        let (mut by_row, mut weights) = (filled("rows by expert", taken, 0)?, filled("rows by expert", taken, 0.0)?);
        let top_k = selections / rows.max(1);
        for (at, (&expert, &weight)) in self.topk_idx.iter().zip(&self.topk_weights).enumerate() {
            if let Some(expert) = local(expert, experts)? {
                let place = &mut offsets[expert + 1];
                by_row[*place] = (at / top_k) as u32;
                weights[*place] = weight;
                *place += 1;
            }
        }
        offsets.truncate(experts + 1);
        Ok(ByExpert { offsets, rows: by_row, weights })
    }
}

/// The local expert of a selection; none for -1.
fn local(selection: i32, experts: usize) -> Result<Option<usize>> {
    match usize::try_from(selection) {
        Ok(expert) if expert < experts => Ok(Some(expert)),
        Err(_) if selection == -1 => Ok(None),
        _ => Err(Error::argument("topk_idx", selection, format!("-1 or one of {experts} local experts"))),
    }
}
