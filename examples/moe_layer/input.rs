//! Where the tokens come from: a text's byte trigrams, or a real model's tensors from a safetensors file.
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use epoxide::bf16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::memory::zeroed;
use crate::parallel;
use crate::progress::Progress;
use crate::seeded::Sequence;

/// Names the embeddings among the seeded numbers. They do not depend on `--seed`: the same text is always the same input.
const EMBEDDING: u64 = 1;

/// The layer's input, of all ranks together.
pub struct Input {
    /// Tokens in all.
    pub tokens: usize,
    /// Elements of a row.
    pub hidden: usize,
    /// Experts.
    pub experts: usize,
    /// BF16 `[tokens, hidden]`.
    pub x: Vec<bf16>,
    /// What the router says of them.
    pub logits: Logits,
    /// Where all this is from, for the report.
    pub source: String,
}

/// Router logits.
pub enum Logits {
    /// f32 `[tokens, experts]`, from the file.
    Given(Vec<f32>),
    /// To be computed with seeded weights.
    Seeded,
}

impl Input {
    /// The largest absolute value.
    pub fn largest(&self) -> f32 {
        self.x.iter().map(|x| x.to_f32().abs()).fold(0.0, f32::max)
    }

    /// The rows of some tokens.
    pub fn rows(&self, tokens: Range<usize>) -> &[bf16] {
        &self.x[tokens.start * self.hidden..tokens.end * self.hidden]
    }

    /// The row of one token.
    pub fn row(&self, token: usize) -> &[bf16] {
        self.rows(token..token + 1)
    }

    /// Makes `tokens` tokens from the byte trigrams of a text, which is started over when it ends.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or has no trigram.
    pub fn from_text(path: &Path, tokens: usize, hidden: usize, experts: usize, progress: &Progress) -> Result<Self> {
        let mut text = Vec::new();
        // Two bytes more than trigrams; the rest of a longer file is not needed.
        let file = File::open(path).with_context(|| format!("cannot open the text {path:?} (--text names another)"))?;
        file.take(tokens as u64 + 2)
            .read_to_end(&mut text)
            .with_context(|| format!("cannot read the text {path:?}"))?;
        ensure!(text.len() >= 3, "the text {path:?} has {} bytes; a token is 3 bytes", text.len());
        let trigrams: Vec<&[u8]> = text.windows(3).collect();

        let mut x: Vec<bf16> = zeroed("the tokens' rows", tokens * hidden)?;
        parallel::for_each(x.chunks_exact_mut(hidden).enumerate(), |(token, row)| {
            let trigram = trigrams[token % trigrams.len()].iter().fold(0, |id, &byte| id << 8 | u64::from(byte));
            Sequence::new(&[EMBEDDING, trigram]).fill_normal(row);
            progress.rows(1);
        });

        let used = trigrams.len().min(tokens);
        let mut kinds: Vec<&[u8]> = trigrams[..used].to_vec();
        kinds.sort_unstable();
        kinds.dedup();
        let mut source = format!("{}: {used} byte trigrams, {} different ones", path.display(), kinds.len());
        if used < tokens {
            source += &format!("; the text was started over to fill {tokens} tokens");
        }
        Ok(Self { tokens, hidden, experts, x, logits: Logits::Seeded, source })
    }

    /// Reads `hidden_states` (BF16 `[tokens, hidden]`) and `router_logits` (F32 `[tokens, experts]`).
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is no safetensors file, or a tensor is missing or of another dtype or shape.
    pub fn from_safetensors(path: &Path) -> Result<Self> {
        let name = path.display();
        let about = std::fs::metadata(path).with_context(|| format!("cannot read {path:?}"))?;
        // A device may have no end, and a pipe nobody who writes.
        ensure!(about.is_file(), "cannot read {path:?}: it is no regular file");
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {path:?}"))?;
        let file = SafeTensors::deserialize(&bytes)
            .with_context(|| format!("{name} ({} bytes) is truncated, or not a safetensors file", bytes.len()))?;
        let states = matrix(&file, path, "hidden_states", Dtype::BF16, "[tokens, hidden]")?;
        let logits = matrix(&file, path, "router_logits", Dtype::F32, "[tokens, experts]")?;
        let (tokens, hidden, experts) = (states.shape()[0], states.shape()[1], logits.shape()[1]);
        if logits.shape()[0] != tokens {
            bail!(
                "{name}: router_logits has shape {:?}, expected [{tokens}, experts] because hidden_states has shape {:?}",
                logits.shape(),
                states.shape()
            );
        }
        let x: Vec<bf16> = states.data().chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect();
        let logits: Vec<f32> =
            logits.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        // A NaN has no order among the logits and no bits of its own in FP8: nothing could be checked.
        all(path, "hidden_states", &x, hidden, "finite numbers", |v| v.is_finite())?;
        // -inf is how a router masks an expert: the softmax makes a weight of 0 of it.
        let legal = |v: &f32| v.is_finite() || *v == f32::NEG_INFINITY;
        all(path, "router_logits", &logits, experts, "finite numbers, or -inf for an expert that is masked", legal)?;
        if let Some(token) = logits.chunks_exact(experts).position(|row| row.iter().all(|v| v.is_infinite())) {
            bail!(
                "{name}: router_logits[{token}, ..] are all -inf: a token has one expert at least that is not masked"
            );
        }
        let source = format!("{name}: hidden_states [{tokens}, {hidden}], router_logits [{tokens}, {experts}]");
        Ok(Self { tokens, hidden, experts, x, logits: Logits::Given(logits), source })
    }
}

/// A matrix of the file, with at least one row and column.
fn matrix<'a>(file: &SafeTensors<'a>, path: &Path, tensor: &str, dtype: Dtype, shape: &str) -> Result<TensorView<'a>> {
    let name = path.display();
    let Ok(view) = file.tensor(tensor) else {
        let mut names = file.names();
        names.sort_unstable();
        bail!("{name} has no tensor {tensor}, expected {dtype} {shape}; it has {names:?}");
    };
    if view.dtype() != dtype {
        bail!("{name}: {tensor} has dtype {}, expected {dtype}", view.dtype());
    }
    if view.shape().len() != 2 || view.shape().contains(&0) {
        bail!("{name}: {tensor} has shape {:?}, expected {shape}, none of them 0", view.shape());
    }
    Ok(view)
}

/// Checks that every number is legal.
fn all<T: std::fmt::Display>(
    path: &Path,
    tensor: &str,
    values: &[T],
    columns: usize,
    rule: &str,
    legal: impl Fn(&T) -> bool,
) -> Result<()> {
    match values.iter().position(|value| !legal(value)) {
        None => Ok(()),
        Some(i) => {
            bail!("{}: {tensor}[{}, {}] is {}, expected {rule}", path.display(), i / columns, i % columns, values[i])
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A file of this test's own, gone with it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, bytes: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("epoxide-{}-{name}", std::process::id()));
            std::fs::write(&path, bytes).expect("the temporary folder takes a file");
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// A safetensors file with these tensors, all zeros.
    fn file(tensors: &[(&str, Dtype, &[usize], usize)]) -> Vec<u8> {
        let data = vec![0u8; 4096];
        let views = tensors.iter().map(|(name, dtype, shape, size)| {
            let bytes = shape.iter().product::<usize>() * size;
            (*name, TensorView::new(*dtype, shape.to_vec(), &data[..bytes]).expect("the bytes fit the shape"))
        });
        safetensors::serialize(views, None).expect("valid tensors")
    }

    fn refusal(name: &str, bytes: &[u8]) -> String {
        let scratch = Scratch::new(name, bytes);
        match Input::from_safetensors(&scratch.0) {
            Ok(_) => panic!("{name} was accepted"),
            Err(error) => format!("{error:#}"),
        }
    }

    const STATES: (&str, Dtype, &[usize], usize) = ("hidden_states", Dtype::BF16, &[3, 16], 2);
    const LOGITS: (&str, Dtype, &[usize], usize) = ("router_logits", Dtype::F32, &[3, 4], 4);

    #[test]
    fn a_good_file_gives_tokens_hidden_and_experts() {
        let scratch = Scratch::new("good", &file(&[STATES, LOGITS]));
        let input = Input::from_safetensors(&scratch.0).expect("a good file");
        assert_eq!((input.tokens, input.hidden, input.experts, input.x.len()), (3, 16, 4, 48));
    }

    #[test]
    fn bad_tensors_are_named_with_what_was_found_and_what_was_expected() {
        let cases: [(&str, Vec<u8>, &[&str]); 5] = [
            ("no-logits", file(&[STATES]), &["no tensor router_logits", "F32 [tokens, experts]", "hidden_states"]),
            (
                "dtype",
                file(&[("hidden_states", Dtype::F32, &[3, 16], 4), LOGITS]),
                &["hidden_states has dtype F32", "expected BF16"],
            ),
            (
                "shape",
                file(&[("hidden_states", Dtype::BF16, &[3, 4, 4], 2), LOGITS]),
                &["hidden_states has shape [3, 4, 4]", "expected [tokens, hidden]"],
            ),
            (
                "rows",
                file(&[STATES, ("router_logits", Dtype::F32, &[2, 4], 4)]),
                &["router_logits has shape [2, 4]", "expected [3, experts]", "[3, 16]"],
            ),
            ("empty", file(&[STATES, ("router_logits", Dtype::F32, &[3, 0], 4)]), &["[3, 0]", "none of them 0"]),
        ];
        for (name, bytes, facts) in cases {
            let said = refusal(name, &bytes);
            assert!(facts.iter().all(|fact| said.contains(fact)), "{name}: {said}");
        }
    }

    /// A file of 3 tokens with these logits of 4 experts for the second one.
    fn with_logits(row: [f32; 4]) -> Vec<u8> {
        let logits: Vec<u8> = [[0.0; 4], row, [0.0; 4]].concat().iter().flat_map(|v: &f32| v.to_le_bytes()).collect();
        let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).expect("the bytes fit");
        let states = view(Dtype::BF16, &[3, 16], &[0; 96]);
        let logits = view(Dtype::F32, &[3, 4], &logits);
        safetensors::serialize([("hidden_states", states), ("router_logits", logits)], None).expect("valid tensors")
    }

    #[test]
    fn a_masked_expert_is_legal_and_what_is_no_logit_is_not() {
        let (low, high) = (f32::NEG_INFINITY, f32::INFINITY);
        for (name, row) in [("one-masked", [0.0, low, 1.0, 2.0]), ("three-masked", [low, low, low, -3.0])] {
            let scratch = Scratch::new(name, &with_logits(row));
            let input = Input::from_safetensors(&scratch.0).expect("masks are legal");
            assert!(matches!(input.logits, Logits::Given(logits) if logits[4..8] == row));
        }
        for (name, row, fact) in [
            ("all-masked", [low; 4], "router_logits[1, ..] are all -inf"),
            ("nan", [0.0, f32::NAN, 1.0, low], "router_logits[1, 1] is NaN"),
            ("infinite", [low, 0.0, 1.0, high], "router_logits[1, 3] is inf"),
        ] {
            let said = refusal(name, &with_logits(row));
            assert!(said.contains(fact), "{name}: {said}");
        }
    }

    #[test]
    fn truncated_malformed_and_missing_files_are_errors() {
        let whole = file(&[STATES, LOGITS]);
        for (name, bytes) in [("half", &whole[..whole.len() / 2]), ("junk", b"not a tensor in sight"), ("nothing", b"")]
        {
            let said = refusal(name, bytes);
            assert!(said.contains("truncated, or not a safetensors file") && said.contains(name), "{said}");
        }
        let said = format!("{:#}", Input::from_safetensors(Path::new("/no/such/file")).err().expect("no such file"));
        assert!(said.contains("cannot read \"/no/such/file\""), "{said}");
        let said = format!("{:#}", Input::from_safetensors(Path::new("/dev/zero")).err().expect("it has no end"));
        assert!(said.contains("\"/dev/zero\": it is no regular file"), "{said}");
    }
}
