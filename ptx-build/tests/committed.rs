//! Freshness of committed PTX, and the fallback to it: all that must work with no device toolchain.

use std::path::{Path, PathBuf};

use epoxide_ptx_build::{BuildError, COMPONENTS, DEVICE_TOOLCHAIN, Families, PtxBuilder, finish};

/// A toolchain that nobody has.
const MISSING: &str = "nightly-2015-05-16";

const RAW: &str = "\
.version 8.0
.target sm_90
.address_size 64
.visible .entry k()
{
\t// begin inline asm
\t// epoxide-entry threads=128 blocks_per_sm=1
\t// end inline asm
\tbarrier.sync 0;
\tret;
}
";

/// Writes a kernel crate, with PTX that says it was made from it, and returns its folder and the PTX's path.
fn kernels(folder: &str) -> (PathBuf, PathBuf) {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("committed").join(folder);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(dir.join("src/kernels")).expect("the test's own folder");
    std::fs::write(dir.join("Cargo.toml"), "[package]\nname = \"k\"\n").expect("writable");
    std::fs::write(dir.join("src/lib.rs"), "mod kernels;\n").expect("writable");
    std::fs::write(dir.join("src/kernels/mod.rs"), "pub fn k() {}\n").expect("writable");
    let file = dir.join("ptx/k.ptx");
    let hash = builder(&dir).source_hash().expect("readable");
    finish(RAW, &hash).expect("good").write(&file).expect("writable");
    (dir, file)
}

fn builder(dir: &Path) -> PtxBuilder {
    PtxBuilder::new(dir).toolchain(MISSING)
}

#[test]
fn fresh_ptx_is_taken_where_the_toolchain_is_missing() {
    let (dir, file) = kernels("fresh");
    assert!(builder(&dir).check_toolchain().expect_err("nobody has it").is_missing_toolchain());
    let ptx = builder(&dir).build_or_committed(&file).expect("fresh");
    assert_eq!((ptx.entries[0].name.as_str(), ptx.entries[0].threads), ("k", 128));
}

/// Run by [`a_variable_in_the_environment_spares_the_build`].
#[test]
#[ignore = "started by another test"]
fn sparing_build() {
    let (dir, file) = kernels("spared");
    // As with the toolchain that is installed, if any is; what is there has no kernel to build.
    let hash = PtxBuilder::new(&dir).source_hash().expect("readable");
    finish(RAW, &hash).expect("good").write(&file).expect("writable");
    let ptx = PtxBuilder::new(&dir).build_or_committed(&file).expect("fresh");
    assert_eq!(ptx.entries[0].name, "k");
    std::fs::write(dir.join("src/kernels/mod.rs"), "pub fn k() { }\n").expect("writable");
    let error = PtxBuilder::new(&dir).build_or_committed(&file).expect_err("stale");
    assert!(matches!(error, BuildError::Stale { .. }), "{error}");
}

#[test]
fn a_variable_in_the_environment_spares_the_build() {
    let mut again = std::process::Command::new(std::env::current_exe().expect("this test"));
    let again = again.args(["--exact", "sparing_build", "--ignored"]).env("EPOXIDE_PTX_REFRESH", "0").status();
    assert!(again.expect("this test again").success());
}

#[test]
fn stale_ptx_is_refused_with_both_hashes() {
    let (dir, file) = kernels("stale");
    let before = builder(&dir).source_hash().expect("readable");
    std::fs::write(dir.join("src/kernels/mod.rs"), "pub fn k() { }\n").expect("writable");
    let after = builder(&dir).source_hash().expect("readable");
    let error = builder(&dir).build_or_committed(&file).expect_err("stale");
    assert!(matches!(error, BuildError::Stale { .. }), "{error}");
    let message = error.to_string();
    let facts = [&before, &after, MISSING, "k.ptx is stale"];
    assert!(facts.iter().all(|fact| message.contains(*fact)), "{message}");
}

#[test]
fn edited_or_missing_ptx_is_refused() {
    let (dir, file) = kernels("edited");
    let text = std::fs::read_to_string(&file).expect("written");
    std::fs::write(&file, text.replace("barrier.sync", "bar.sync")).expect("writable");
    let error = builder(&dir).build_or_committed(&file).expect_err("edited");
    assert!(matches!(error, BuildError::Edited { .. }), "{error}");
    std::fs::remove_file(&file).expect("there");
    let error = builder(&dir).build_or_committed(&file).expect_err("gone");
    assert!(matches!(error, BuildError::NoCommitted { .. }), "{error}");
    let error = error.to_string();
    assert!(error.starts_with("cannot read") && error.contains("k.ptx"), "{error}");
    let facts = ["no PTX is committed yet", "EPOXIDE_PTX_REFRESH=1", MISSING];
    assert!(facts.iter().all(|fact| error.contains(fact)) && !error.contains("stale"), "{error}");
}

#[test]
fn a_check_fails_with_every_finding_on_a_line_of_its_own() {
    let (dir, file) = kernels("findings");
    let ptx = builder(&dir).committed(&file).expect("fresh");
    let approved = dir.join("ptx/collectives.txt");
    let missing = builder(&dir).check(&ptx, &approved).expect_err("no such file").to_string();
    let facts = ["there is no ", "collectives.txt", "EPOXIDE_PTX_ACCEPT_COLLECTIVES=1"];
    assert!(facts.iter().all(|fact| missing.contains(fact)), "{missing}");
    std::fs::write(&approved, "k barrier 2\nk shfl 1\n").expect("writable");
    let error = builder(&dir).check(&ptx, &approved).expect_err("other numbers");
    assert!(matches!(error, BuildError::Lint { .. }), "{error}");
    // As the standard library shows what `main` returns.
    let shown = format!("Error: {:?}", Box::<dyn std::error::Error>::from(error));
    let [head, barrier, shuffle, hint] = shown.lines().collect::<Vec<_>>()[..] else { panic!("{shown}") };
    assert!(head.starts_with("Error: 2 finding(s) in the PTX of ") && head.ends_with("findings:"), "{shown}");
    assert!(barrier.contains("barrier: 1, committed: 2") && shuffle.contains("shfl: 0, committed: 1"), "{shown}");
    assert!(hint.contains("EPOXIDE_PTX_ACCEPT_COLLECTIVES=1") && hint.contains("collectives.txt"), "{shown}");
    std::fs::write(&approved, "k barrier 1\n").expect("writable");
    builder(&dir).check(&ptx, &approved).expect("the approved number");
}

/// Run by [`a_variable_in_the_environment_approves_the_numbers`].
#[test]
#[ignore = "started by another test"]
fn approving_check() {
    let (dir, file) = kernels("approved");
    let ptx = builder(&dir).committed(&file).expect("fresh");
    builder(&dir).check(&ptx, dir.join("new folder/collectives.txt")).expect("approved");
}

#[test]
fn a_variable_in_the_environment_approves_the_numbers() {
    let inner = |value: &str| {
        let mut command = std::process::Command::new(std::env::current_exe().expect("this test"));
        command.args(["--exact", "approving_check", "--ignored"]).env("EPOXIDE_PTX_ACCEPT_COLLECTIVES", value);
        command.output().expect("this test again").status.success()
    };
    assert!(!inner(""), "there is no file");
    assert!(inner("1"));
    let written = Path::new(env!("CARGO_TARGET_TMPDIR")).join("committed/approved/new folder/collectives.txt");
    let written = std::fs::read_to_string(written).expect("written");
    assert!(written.contains("\nk barrier 1\n"), "{written}");
}

#[test]
fn the_text_of_a_family_is_fresh_or_stale_by_itself() {
    let (dir, file) = kernels("families");
    let builder = builder(&dir).families(Families::parse("all k").expect("good"));
    let whole = finish(RAW, &builder.source_hash().expect("readable")).expect("good");
    let [family] = &whole.split(&Families::parse("all k").expect("good")).expect("of this kernel")[..] else {
        panic!("one family");
    };
    family.ptx.write(&file).expect("writable");
    assert_eq!(builder.committed(&file).expect("fresh"), family.ptx);
    let other = builder.families(Families::parse("other k").expect("good"));
    assert!(matches!(other.committed(&file).expect_err("another family"), BuildError::Stale { .. }));
}

#[test]
fn the_source_hash_sees_what_matters_and_nothing_else() {
    let (dir, _) = kernels("hash");
    let (twin, _) = kernels("hash-twin");
    let hash = |builder: PtxBuilder| builder.source_hash().expect("readable");
    let base = hash(builder(&dir));
    assert_eq!(base, hash(builder(&twin)), "where the checkout lies");
    std::fs::create_dir_all(dir.join("target")).expect("writable");
    std::fs::write(dir.join("target/junk"), "x").expect("writable");
    std::fs::write(dir.join("src/.lib.rs.swp"), "x").expect("writable");
    std::fs::write(dir.join("src/lib.rs"), "mod kernels;\r\n").expect("writable");
    assert_eq!(base, hash(builder(&dir)), "build output, editors' files, line ends");
    for (what, other) in [
        ("architecture", builder(&dir).arch("sm_100")),
        ("ISA", builder(&dir).isa(87)),
        ("toolchain", builder(&dir).toolchain("nightly")),
        ("another crate", builder(&dir).source(&twin)),
        ("families", builder(&dir).families(Families::parse("all k").expect("good"))),
    ] {
        assert_ne!(base, hash(other), "{what}");
    }
    std::fs::write(dir.join("Cargo.toml"), "[package]\nname = \"k2\"\n").expect("writable");
    assert_ne!(base, hash(builder(&dir)), "manifest");
    std::fs::rename(dir.join("src/kernels/mod.rs"), dir.join("src/kernels.rs")).expect("there");
    let moved = hash(builder(&dir));
    std::fs::rename(dir.join("src/kernels.rs"), dir.join("src/other.rs")).expect("there");
    assert_ne!(moved, hash(builder(&dir)), "a file's name");
}

#[test]
fn the_source_hash_sees_the_resolved_dependencies() {
    let (dir, file) = kernels("lock");
    let lock = |k: &str, syn: &str| {
        let own = format!("[[package]]\nname = \"{k}\"\nversion = \"0.1.0\"\ndependencies = [\n \"syn\",\n]\n");
        let registry = "source = \"registry+https://example.org\"\nchecksum = \"00\"";
        let text = format!("version = 4\n\n{own}\n[[package]]\nname = \"syn\"\nversion = \"{syn}\"\n{registry}\n");
        std::fs::write(dir.join("Cargo.lock"), text).expect("writable");
        builder(&dir).source_hash().expect("readable")
    };
    let without = builder(&dir).source_hash().expect("readable");
    assert_eq!(without, lock("another", "2.0.0"), "a lock file of others");
    let locked = lock("k", "2.0.0");
    assert_ne!(without, locked, "a dependency");
    assert_eq!(builder(&dir).resolved().expect("readable"), ["syn 2.0.0 registry+https://example.org 00"]);
    assert_eq!(without, builder(&dir).host_only("syn").source_hash().expect("readable"), "not on the device");
    assert_ne!(locked, lock("k", "2.0.1"), "its version");
    let error = builder(&dir).committed(&file).expect_err("made before there was a lock file");
    assert!(matches!(error, BuildError::Stale { .. }), "{error}");
}

/// The workspace names the device toolchain twice: here, for the builder, and in `gpu-kernels/rust-toolchain.toml`, for
/// people and editors. (The published crate has no such neighbour, and nothing to compare.)
#[test]
fn the_toolchain_file_names_the_same_toolchain() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gpu-kernels/rust-toolchain.toml");
    let Ok(text) = std::fs::read_to_string(&file) else {
        eprintln!("SKIPPED: no {}", file.display());
        return;
    };
    assert!(text.contains(&format!("channel = \"{DEVICE_TOOLCHAIN}\"")), "{text}");
    for component in COMPONENTS {
        assert!(text.contains(&format!("\"{component}\"")), "{component}: {text}");
    }
}
