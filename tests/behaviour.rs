//! How the library behaves, subject by subject: `cargo test -p epoxide --test behaviour graphs::` is the tests of one of them.
//!
//! They are modules of one binary, because to compile and link fifty takes longer than to run them. A test that starts its own binary again to play
//! several processes, that looks at its own process, or that is a thing of its own (the matrix, the model), is a binary of its own.

mod support;

mod capacity;
mod combine_gradient;
mod combine_options;
mod counts_mirror;
mod dispatch_combine;
mod epochs;
mod errors_calls;
mod errors_config;
mod errors_device;
mod errors_faults;
mod errors_waits;
mod expert_contiguous;
mod expert_index;
mod formats;
mod fp8_wire;
mod graphs;
mod graphs_across_masks;
mod graphs_in_slots;
mod halves;
mod halves_refused;
mod handles;
mod launch;
mod layout;
mod long_runs;
mod masked_threads;
mod outputs;
mod packed_scales;
mod padding_in_slots;
mod plan_deepep;
mod plan_model;
mod quantize;
mod rank_major;
mod rank_major_packed;
mod rank_major_packed_combine;
mod rank_major_packed_refused;
mod rank_major_packed_rounds;
mod rank_major_packed_sums;
mod rank_major_packing;
mod rank_major_refused;
mod rank_major_waits;
mod received;
mod recv_arrays;
mod row_slots;
mod scale_columns;
mod skew;
mod slabs;
mod streams;

/// No test is left out: a file is a module here, or a binary that the manifest names.
#[test]
fn every_file_is_run() {
    let (here, manifest) = (include_str!("behaviour.rs"), include_str!("../host/Cargo.toml"));
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
    let mut files = 0;
    for file in std::fs::read_dir(folder).expect("the folder of this file") {
        let name = file.expect("a file").file_name().into_string().expect("a name in Unicode");
        let Some(module) = name.strip_suffix(".rs") else { continue };
        let is_run = here.contains(&format!("\nmod {module};")) || manifest.contains(&format!("\"../tests/{name}\""));
        assert!(is_run, "tests/{name} is neither a module of tests/behaviour.rs nor a test of host/Cargo.toml");
        files += 1;
    }
    assert!(files > 40, "{files}");
}
