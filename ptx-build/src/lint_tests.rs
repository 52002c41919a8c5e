//! Every rule of the lint, broken and kept, on what rustc really writes.

use super::*;

/// A module with one entry, `k`, that has this body and these lines before it.
fn module(before: &str, body: &str) -> String {
    format!(
        ".version 8.6\n.target sm_90\n.address_size 64\n{before}.visible .entry k(\n\t.param .b64 k_param_0\n)  // @k\n.maxntid 32, 1, 1\n.minnctapersm 1\n{{\n{body}\tret;\n}}\n"
    )
}

fn findings(text: &str) -> Vec<(String, Rule, String)> {
    let found = lint(text, None).expect("complete");
    found.into_iter().map(|finding| (finding.entry, finding.rule, finding.text)).collect()
}

/// Asserts that a body breaks exactly one rule, in entry `k`, and that the finding points at the line with `text`.
#[track_caller]
fn breaks(rule: Rule, body: &str, text: &str) {
    let module = module("", body);
    let found = lint(&module, None).expect("complete");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].entry.as_str(), found[0].rule, found[0].text.as_str()), ("k", rule, text));
    assert_eq!(module.lines().nth(found[0].line - 1).map(str::trim), Some(text));
}

#[track_caller]
fn keeps(body: &str) {
    assert_eq!(findings(&module("", body)), []);
}

#[test]
fn ordinary_code_is_clean() {
    keeps(
        "\tld.param::entry.b64 %rd1, [k_param_0];\n\tld.global.b32 %r1, [%rd1]; // not ld.global.nc, no call, no trap\n\
         \tbarrier.sync 0;\n\t// begin inline asm\n\tld.acquire.sys.global.u64 %rd2, [%rd1];\n\
         \t{ .reg .pred P; mbarrier.try_wait.parity.shared::cta.b64 P, [%r1], %r2; }\n\t// end inline asm\n",
    );
}

#[test]
fn local_memory_is_reported_once() {
    breaks(
        Rule::LocalMemory,
        "\t.local .align 8 .b8 \t__local_depot2[80];\n\tmov.b64 %SPL, __local_depot2;\n\tst.local.b64 [%rd10+16], %rd9;\n",
        ".local .align 8 .b8 \t__local_depot2[80];",
    );
    breaks(Rule::LocalMemory, "\tcvta.local.u64 %SP, %SPL;\n", "cvta.local.u64 %SP, %SPL;");
    keeps("\tst.shared.b32 [%r1], %r2;\n");
}

#[test]
fn calls_are_reported() {
    breaks(
        Rule::Call,
        "\t{ // callseq 0, 0\n\tcall.uni helper, (param0);\n\t} // callseq 0\n",
        "call.uni helper, (param0);",
    );
    breaks(Rule::Call, "\t@%p1 call (retval0), helper, (param0);\n", "@%p1 call (retval0), helper, (param0);");
}

#[test]
fn device_functions_are_reported() {
    let text = module(
        ".func helper(\n\t.param .b64 helper_param_0\n)\n;\n.func helper(\n\t.param .b64 helper_param_0\n)\n{\n\tret;\n}\n",
        "",
    );
    assert_eq!(findings(&text), [("helper".to_owned(), Rule::DeviceFunction, ".func helper(".to_owned())]);
}

#[test]
fn unresolved_symbols_are_reported() {
    let function = ".extern .func  (.param .b32 func_retval0) unknown_thing";
    let text = module(&format!("{function}\n(\n\t.param .b32 unknown_thing_param_0\n)\n;\n"), "");
    assert_eq!(findings(&text), [("unknown_thing".to_owned(), Rule::Unresolved, function.to_owned())]);
    let global = ".extern .global .align 4 .b32 counter;";
    assert_eq!(findings(&module(&format!("{global}\n"), "")), [(String::new(), Rule::Unresolved, global.to_owned())]);
    assert_eq!(findings(&module(".extern .shared .align 128 .b8 epoxide_shared[];\n", "")), []);
}

#[test]
fn panic_paths_are_reported() {
    breaks(Rule::PanicPath, "\ttrap;\n", "trap;");
    let call = "call.uni _RNvNtCs98thq8U9Jdf_4core9panicking18panic_bounds_check, ();";
    breaks(Rule::PanicPath, &format!("\t{call}\n"), call);
    breaks(
        Rule::PanicPath,
        "$L__BB5_1:                 // =>This Inner Loop Header: Depth=1\n\tbra.uni \t$L__BB5_1;\n",
        "bra.uni \t$L__BB5_1;",
    );
    let body = ".func _RNvNtCs98_4core9panicking9panic_fmt()\n.noreturn\n{\n\tret;\n}\n";
    assert!(matches!(findings(&module(body, "")).as_slice(), [(_, Rule::PanicPath, _)]));
    keeps("$L__BB5_1:\n\tld.acquire.sys.global.b32 %r1, [%rd1];\n\tbra.uni \t$L__BB5_1;\n");
    keeps("$L__BB5_1:\n\t@%p1 bra \t$L__BB5_1;\n");
}

#[test]
fn non_coherent_loads_are_reported() {
    breaks(Rule::NonCoherentLoad, "\tld.global.nc.b32 %r1, [%rd2];\n", "ld.global.nc.b32 %r1, [%rd2];");
    let asm = "ld.global.nc.L1::no_allocate.v4.u32 {%r1,%r2,%r3,%r4}, [%rd2];";
    breaks(Rule::NonCoherentLoad, &format!("\t// begin inline asm\n\t{asm}\n\t// end inline asm\n"), asm);
    keeps("\tld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%rd2];\n");
}

#[test]
fn collectives_in_asm_are_reported() {
    for collective in [
        "bar.sync 0;",
        "{ .reg .pred p; shfl.sync.idx.b32 %r1|p, %r2, 0, 31, -1; }",
        "vote.sync.any.pred %p1, %p2, -1;",
        "elect.sync %r1|%p1, -1;",
        "activemask.b32 %r1;",
        "barrier.cluster.wait.aligned;",
        "setmaxnreg.inc.sync.aligned.u32 232;",
    ] {
        breaks(
            Rule::AsmCollective,
            &format!("\t// begin inline asm\n\t{collective}\n\t// end inline asm\n"),
            collective,
        );
        keeps(&format!("\t{collective}\n"));
    }
}

#[test]
fn arithmetic_in_f64_is_reported_and_moving_one_is_not() {
    for statement in [
        "add.rn.f64 %rd1, %rd2, %rd3;",
        "cvt.f64.f32 %rd1, %r1;",
        "cvt.rn.f32.f64 %r1, %rd1;",
        "setp.lt.f64 %p1, %rd1, %rd2;",
    ] {
        breaks(Rule::DoublePrecision, &format!("\t{statement}\n"), statement);
        let asm = format!("\t// begin inline asm\n\t{statement}\n\t// end inline asm\n");
        breaks(Rule::DoublePrecision, &asm, statement);
    }
    keeps("\t.reg .f64 %fd<3>;\n\tld.global.f64 %fd1, [%rd1];\n\tmov.f64 %fd2, %fd1;\n\tst.global.f64 [%rd1], %fd2;\n");
    keeps("\tadd.rn.f32 %r1, %r2, %r3;\n\tcvt.rn.f32.u64 %r1, %rd1;\n");
}

#[test]
fn launch_bounds_must_be_there() {
    let text = module("", "").replace(".maxntid 32, 1, 1\n", "");
    assert_eq!(findings(&text), [("k".to_owned(), Rule::LaunchBounds, ".visible .entry k(".to_owned())]);
}

#[test]
fn debug_information_is_reported() {
    let text = module("", "").replace("sm_90", "sm_90, debug") + "\t.file\t1 \"/somewhere/src/lib.rs\"\n";
    let rules: Vec<_> = findings(&text).into_iter().map(|(_, rule, _)| rule).collect();
    assert_eq!(rules, [Rule::DebugInfo, Rule::DebugInfo]);
}

#[test]
fn counts_are_compared_with_the_committed_ones() {
    let text = module("", "\tbarrier.sync 0;\n\tbarrier.sync 0;\n");
    let good = Collectives::parse("k barrier 2").expect("good");
    assert_eq!(lint(&text, Some(&good)).expect("complete"), []);
    let other = Collectives::parse("k barrier 1\ngone shfl 3").expect("good");
    let found: Vec<_> = lint(&text, Some(&other)).expect("complete").iter().map(ToString::to_string).collect();
    let rule = Rule::CollectiveCount.explanation();
    assert_eq!(
        found,
        [
            format!("entry `gone`: {rule}: shfl: 0, committed: 3"),
            format!("line 4, `k`: {rule}: barrier: 2, committed: 1"),
        ]
    );
}
