//! What does not compile, and in which words: the diagnoses of `#[kernel]` and `#[derive(KernelArg)]`, and the obligations
//! that are types. `TRYBUILD=overwrite cargo test -p epoxide-dsl --test compile_fail` writes the expected words anew: read
//! their diff.

#[test]
fn misuse_does_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass/*.rs");
    cases.compile_fail("tests/ui/kernel/*.rs");
    cases.compile_fail("tests/ui/argument/*.rs");
    cases.compile_fail("tests/ui/token/*.rs");
}
