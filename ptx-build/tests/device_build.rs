//! Compiles a small kernel crate with the device toolchain, and looks at what comes out.
//!
//! Where the toolchain is not installed, each test says so, loudly, and passes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use epoxide_ptx_build::{
    BuildError, Collectives, DEVICE_TOOLCHAIN, Finding, Ptx, PtxBuilder, RECURSION_GUARD, Rule, lint,
};

/// One build at a time: they share a target folder and, but for one, a crate, so that `core` is compiled only twice.
static ONE_BUILD: Mutex<()> = Mutex::new(());

/// What both kernel crates begin with.
const PRELUDE: &str = r##"
#![no_std]
#![feature(abi_ptx, asm_experimental_arch, link_llvm_intrinsics)]
#![allow(internal_features)]
use core::arch::asm;
unsafe extern "C" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.all"]
    fn barrier(id: i32);
    #[link_name = "llvm.nvvm.read.ptx.sreg.tid.x"]
    fn tid() -> i32;
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    fn shuffle(mask: i32, v: i32, lane: i32, clamp: i32) -> i32;
}
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Args { pub x: *mut u32, pub table: [u64; 8] }
"##;

const GOOD: &str = r##"
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn good(args: Args) {
    unsafe {
        asm!("// epoxide-entry threads=512 blocks_per_sm=2", options(nomem, nostack, preserves_flags));
        let t = tid();
        if t == 0 { *args.x += 1; }
        barrier(0);
        if t == 0 { *args.x += args.table[1] as u32; }
        let shared: u32;
        asm!("{{ .reg .u64 t; mov.u64 t, epoxide_shared; cvt.u32.u64 {0}, t; }}", out(reg32) shared, options(pure, nomem));
        *args.x.add(t as usize) = shuffle(-1, t, 1, 31) as u32 + shared;
    }
}
"##;

const BAD: &str = r##"
#[inline(never)]
fn helper(x: *mut u32) { unsafe { asm!("bar.sync 0;"); *x += 1; } }
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn calls(args: Args) {
    unsafe { asm!("// epoxide-entry threads=32 blocks_per_sm=1"); helper(args.x); helper(args.x.add(1)); }
}
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn local(args: Args) {
    unsafe { asm!("// epoxide-entry threads=32 blocks_per_sm=1"); *args.x = args.table[(tid() & 7) as usize] as u32; }
}
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn panics(args: Args) {
    unsafe { asm!("// epoxide-entry threads=32 blocks_per_sm=1"); *args.x = [1, 2, 3][*args.x as usize] as u32; }
}
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn reference(x: &u32, y: *mut u32) {
    unsafe { asm!("// epoxide-entry threads=32 blocks_per_sm=1", options(nomem)); *y = *x; }
}
"##;

/// Writes a kernel crate, its own workspace, and returns a builder for it; nothing, with a word, without the toolchain.
fn kernels(folder: &str, source: &str) -> Option<(PtxBuilder, PathBuf, MutexGuard<'static, ()>)> {
    let guard = ONE_BUILD.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let dir = root.join(folder).join("demo-kernels");
    std::fs::create_dir_all(dir.join("src")).expect("the test's own folder");
    let manifest = "[package]\nname = \"demo-kernels\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n[profile.release]\ndebug = true\n";
    std::fs::write(dir.join("Cargo.toml"), manifest).expect("writable");
    std::fs::write(dir.join("src/lib.rs"), format!("{PRELUDE}{source}")).expect("writable");
    let builder = PtxBuilder::new(&dir).target_dir(root.join("device-target"));
    if let Err(error) = builder.check_toolchain() {
        eprintln!("SKIPPED: {error}");
        return None;
    }
    Some((builder, dir, guard))
}

#[test]
fn a_kernel_crate_becomes_ptx() {
    let Some((builder, dir, _guard)) = kernels("first", GOOD) else {
        return;
    };
    let ptx = builder.build().expect("a good kernel");
    assert!(ptx.text.contains("\n.maxntid 512, 1, 1\n.minnctapersm 2\n{\n"), "{}", ptx.text);
    assert!(ptx.text.contains("\n.version 8.0\n.target sm_90\n.address_size 64\n.extern .shared"), "{}", ptx.text);
    assert!(!ptx.text.contains("epoxide-entry"), "{}", ptx.text);
    assert!(!ptx.text.contains(env!("CARGO_TARGET_TMPDIR")), "{}", ptx.text);
    let entry = &ptx.entries[0];
    assert_eq!((entry.name.as_str(), entry.threads, entry.blocks_per_sm), ("good", 512, 2));
    let counts = Collectives::parse("good barrier 1\ngood shfl 1").expect("good");
    assert_eq!(lint(&ptx.text, Some(&counts)).expect("complete"), []);
    assert_eq!(ptx.source_hash, builder.source_hash().expect("readable"));
    let file = dir.join("ptx/demo.ptx");
    ptx.write(&file).expect("writable");
    assert_eq!(builder.committed(&file).expect("fresh"), ptx);
}

#[test]
fn the_text_is_the_same_in_every_checkout() {
    let Some((here, _, guard)) = kernels("first", GOOD) else {
        return;
    };
    let here = here.build().expect("a good kernel");
    drop(guard);
    let Some((there, _, _guard)) = kernels("second, elsewhere", GOOD) else {
        return;
    };
    assert_eq!(there.build().expect("the same kernel").text, here.text);
}

#[test]
fn what_the_lint_forbids_is_found_in_real_ptx() {
    let Some((builder, _, _guard)) = kernels("first", BAD) else {
        return;
    };
    let ptx = builder.build().expect("it compiles");
    let found = lint(&ptx.text, None).expect("complete");
    for (entry, rule) in [
        ("calls", Rule::Call),
        ("local", Rule::LocalMemory),
        ("panics", Rule::PanicPath),
        ("reference", Rule::NonCoherentLoad),
    ] {
        assert!(found.iter().any(|f| f.entry == entry && f.rule == rule), "{entry}: {found:#?}\n{}", ptx.text);
    }
    let helper = |rule| found.iter().any(|f| f.entry.contains("helper") && f.rule == rule);
    assert!(helper(Rule::DeviceFunction) && helper(Rule::AsmCollective), "{found:#?}");
}

/// Kernels whose findings are each on a line of their own.
const LINES: &str = r##"
#[inline(always)]
fn both(x: *mut u32) -> f64 { unsafe { f64::from(*x) * 1.1 } }
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn lines(args: Args) {
    unsafe {
        asm!("// epoxide-entry threads=32 blocks_per_sm=1");
        let i = *args.x as usize;
        *args.x.add(1) = [1, 2, 3][i] as u32; // panics
        *args.x.add(2) = args.table[(tid() & 7) as usize] as u32; // local
        *args.x.add(3) = both(args.x) as u32; // double
        barrier(0); // meets
        if *args.x.add(4) > 7 { barrier(0); } // meets
    }
}
"##;

#[test]
fn a_finding_tells_the_line_of_rust_once() {
    let Some((builder, dir, _guard)) = kernels("first", LINES) else {
        return;
    };
    let ptx = builder.build().expect("it compiles");
    let approved = Collectives::parse("lines barrier 1").expect("good");
    let found = builder.lint(&ptx, Some(&approved)).expect("complete");
    let source = std::fs::read_to_string(dir.join("src/lib.rs")).expect("written");
    let line_of = |place: &str| -> &str {
        let (file, line) = place.split_once(".rs:").expect("path.rs:line:column");
        assert!(file.ends_with("demo-kernels/src/lib"), "{place}");
        let line: usize = line.split(':').next().and_then(|line| line.parse().ok()).expect("a line");
        source.lines().nth(line - 1).expect("a line of the file")
    };
    for (rule, part) in [
        (Rule::PanicPath, "// panics"),
        (Rule::LocalMemory, "// local"),
        (Rule::DoublePrecision, "f64::from(*x) * 1.1"),
        (Rule::CollectiveCount, "// meets"),
    ] {
        let of_rule: Vec<_> = found.iter().filter(|f| f.entry == "lines" && f.rule == rule).collect();
        assert!(!of_rule.is_empty(), "{rule:?}: {found:#?}");
        let is_told = |finding: &&Finding| finding.source.iter().any(|place| line_of(place).contains(part));
        assert!(of_rule.iter().any(is_told), "{rule:?}: {of_rule:#?}");
        let places: std::collections::BTreeSet<_> = of_rule.iter().map(|finding| &finding.source).collect();
        assert_eq!(places.len(), of_rule.len(), "{rule:?}: {of_rule:#?}");
    }
    // What ships is as it was: line tables are for reading alone.
    assert_eq!(builder.build().expect("it compiles"), ptx);
    let double = |builder: &PtxBuilder| {
        let found = builder.lint(&ptx, Some(&approved)).expect("complete");
        found.iter().any(|finding| finding.rule == Rule::DoublePrecision)
    };
    assert!(double(&builder) && !double(&builder.clone().allow_f64(true)));
}

/// Operations of the DSL that no kernel of this repository needs, and what each is in PTX.
const FENCES: &str = r##"
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, asm_experimental_arch))]
use epoxide_dsl::prelude::*;
#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
pub struct Args { pub x: Global<u32> }
#[kernel(threads = 32)]
pub fn fences(args: Args) {
    args.x.store_relaxed::<Block>(0, 1);
    fence::acquire::<Block>();
    args.x.store_relaxed::<Gpu>(1, 2);
    fence::release::<Gpu>();
    args.x.store_relaxed::<System>(2, 3);
    fence::acq_rel::<System>();
    args.x.store_weak(3, 4);
}
"##;

#[test]
fn fences_of_the_dsl_are_instructions_of_their_scope() {
    // Where the others are: their `core` is there, built with the same flags.
    let Some((builder, dir, _guard)) = kernels("first", "") else {
        return;
    };
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).expect("written");
    let needs = format!("[dependencies]\nepoxide-dsl.path = {:?}\n", repository.join("dsl"));
    std::fs::write(dir.join("Cargo.toml"), manifest + &needs).expect("writable");
    std::fs::write(dir.join("src/lib.rs"), FENCES).expect("writable");
    // The versions that the repository has: they are there, with no network.
    std::fs::copy(repository.join("Cargo.lock"), dir.join("Cargo.lock")).expect("the repository's");
    let ptx = builder.build().expect("it compiles");
    let instructions =
        ptx.text.lines().map(str::trim).filter(|line| line.starts_with("fence") || line.starts_with("st."));
    let names: Vec<&str> = instructions.filter_map(|line| line.split([' ', ';']).next()).collect();
    let expected = [
        "st.relaxed.cta.global.u32",
        "fence.acq_rel.cta",
        "st.relaxed.gpu.global.u32",
        "fence.acq_rel.gpu",
        "st.relaxed.sys.global.u32",
        "fence.acq_rel.sys",
        "st.global.u32",
    ];
    assert_eq!(names, expected, "{}", ptx.text);
    assert_eq!(lint(&ptx.text, None).expect("complete"), []);
    std::fs::remove_file(dir.join("Cargo.lock")).expect("it was copied there");
}

/// Run by [`a_missing_committed_text_is_not_called_stale`].
#[test]
#[ignore = "started by another test"]
fn checking_build() {
    let Some((builder, dir, _guard)) = kernels("first", GOOD) else {
        return;
    };
    let error = builder.build_or_committed(dir.join("ptx/never.ptx")).expect_err("it is not there");
    assert!(matches!(error, BuildError::NoCommitted { .. }), "{error}");
}

#[test]
fn a_missing_committed_text_is_not_called_stale() {
    let Some((_, _, _guard)) = kernels("first", GOOD) else {
        return;
    };
    let status = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "checking_build", "--ignored", "--nocapture"])
        .env("EPOXIDE_PTX_REFRESH", "check")
        .status()
        .expect("this test again");
    assert!(status.success());
}

#[test]
fn a_crate_that_does_not_compile_says_why() {
    let Some((builder, _, _guard)) = kernels("first", "fn broken() -> u32 { \"text\" }") else {
        return;
    };
    let error = builder.build().expect_err("a type error");
    assert!(matches!(error, BuildError::Compile { .. }), "{error}");
    assert!(error.to_string().contains("mismatched types"), "{error}");
}

#[test]
fn a_kernel_without_launch_bounds_is_an_error() {
    let source = "#[unsafe(no_mangle)] pub unsafe extern \"ptx-kernel\" fn bare(a: Args) { unsafe { *a.x = 1; } }";
    let Some((builder, _, _guard)) = kernels("first", source) else {
        return;
    };
    let error = builder.build().expect_err("no marker").to_string();
    assert!(error.contains("the entry `bare` has no `// epoxide-entry threads=N blocks_per_sm=N`"), "{error}");
}

/// Run by [`an_outer_cargos_environment_does_not_reach_the_device_build`] in a hostile environment.
#[test]
#[ignore = "started by another test"]
fn inner_build() {
    let Some((builder, dir, _guard)) = kernels("first", GOOD) else {
        return;
    };
    let ptx = builder.build().expect("a good kernel in a bad environment");
    ptx.write(dir.join("ptx/inner.ptx")).expect("writable");
}

#[test]
fn an_outer_cargos_environment_does_not_reach_the_device_build() {
    let Some((builder, dir, _guard)) = kernels("first", GOOD) else {
        return;
    };
    let file = dir.join("ptx/inner.ptx");
    let _ = std::fs::remove_file(&file);
    let status = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "inner_build", "--ignored", "--nocapture"])
        .env("RUSTC_WRAPPER", "/nowhere/wrapper")
        .env("RUSTC_WORKSPACE_WRAPPER", "/nowhere/wrapper")
        .env("RUSTC", "/nowhere/rustc")
        .env("RUSTUP_TOOLCHAIN", "1.95.0")
        .env("RUSTFLAGS", "-Ctarget-cpu=sm_70 --cfg bogus")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-cpu=sm_70\u{1f}--nonsense")
        .env("CARGO_BUILD_TARGET", "wasm32-unknown-unknown")
        .env("CARGO_TARGET_DIR", "/nowhere/target")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "true")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_MAKEFLAGS", "-j --jobserver-auth=98,99")
        .env("MAKEFLAGS", "-j --jobserver-auth=98,99")
        .status()
        .expect("this test again");
    assert!(status.success());
    assert_eq!(Ptx::read(&file).expect("written"), builder.build().expect("a good kernel"));
}

/// Run by [`a_build_inside_a_build_is_refused`].
#[test]
#[ignore = "started by another test"]
fn nested_build() {
    assert!(epoxide_ptx_build::is_nested());
    let error = PtxBuilder::new("inner-kernels").build().expect_err("nested");
    assert!(matches!(error, BuildError::Nested { .. }), "{error}");
    let message = error.to_string();
    let facts = ["inner-kernels", "/elsewhere/outer-kernels", RECURSION_GUARD, "is_nested()"];
    assert!(facts.iter().all(|fact| message.contains(fact)), "{message}");
}

/// Needs no device toolchain: nesting is refused before anything is looked for.
#[test]
fn a_build_inside_a_build_is_refused() {
    let status = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "nested_build", "--ignored", "--nocapture"])
        .env(RECURSION_GUARD, "/elsewhere/outer-kernels")
        .status()
        .expect("this test again");
    assert!(status.success());
    assert!(!DEVICE_TOOLCHAIN.is_empty());
}
