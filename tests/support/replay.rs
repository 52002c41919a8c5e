//! Random cases: each follows from one seed, and a failure prints the line that runs it again.
use std::hash::{BuildHasher, RandomState};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

/// Checks a law on `cases` random values of `strategy`, new ones in every run.
///
/// `binary` is the test's `module_path!()`, `test` its function's name. `EPOXIDE_TEST_SEED` runs the one case of that seed,
/// `EPOXIDE_TEST_CASES` sets how many are tried, `EPOXIDE_TEST_TIMES` how many times as many as else.
pub fn law<S: Strategy>(
    binary: &str,
    test: &str,
    cases: u32,
    strategy: S,
    check: impl Fn(S::Value) -> Result<(), String>,
) {
    let binary = binary.split(':').next().unwrap_or(binary);
    for seed in seeds(cases) {
        let config = Config {
            cases: 1,
            failure_persistence: None,
            rng_seed: RngSeed::Fixed(seed),
            max_shrink_iters: 300,
            max_shrink_time: 20_000,
            ..Config::default()
        };
        let outcome = TestRunner::new(config).run(&strategy, |value| check(value).map_err(TestCaseError::fail));
        let replay = line(binary, test, seed);
        match outcome {
            Ok(()) => {}
            Err(TestError::Fail(why, smallest)) => panic!("{why}\nsmallest: {smallest:?}\nreplay: {replay}"),
            Err(TestError::Abort(why)) => panic!("no value to try: {why}\nreplay: {replay}"),
        }
    }
}

/// The seed that the environment names.
pub fn named_seed() -> Option<u64> {
    number("EPOXIDE_TEST_SEED")
}

/// The seeds of a random test: the one of the environment, or `cases` new ones.
pub fn seeds(cases: u32) -> Vec<u64> {
    if let Some(seed) = named_seed() {
        return vec![seed];
    }
    let run = RandomState::new().hash_one(0u8);
    let times = number("EPOXIDE_TEST_TIMES").unwrap_or(1);
    let cases = number("EPOXIDE_TEST_CASES").unwrap_or_else(|| times * u64::from(cases));
    (0..cases).map(|case| run.wrapping_add(case.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect()
}

/// The line that runs one seed again.
pub fn line(binary: &str, test: &str, seed: u64) -> String {
    let device = match std::env::var("EPOXIDE_TEST_DEVICE") {
        Ok(device) if !device.is_empty() => format!("EPOXIDE_TEST_DEVICE={device} "),
        _ => String::new(),
    };
    // Most files are modules of one binary.
    let (binary, module) = match module_path!().starts_with("behaviour::") {
        true => ("behaviour", format!("{binary}::")),
        false => (binary, String::new()),
    };
    format!(
        "{device}EPOXIDE_TEST_SEED={seed} cargo test -p epoxide --test {binary} -- --exact {module}{test} --include-ignored"
    )
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} = {text}: it is a number")))
}
