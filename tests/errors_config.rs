//! A buffer that cannot be made: every rule that a configuration, its peers or the machine breaks is an error that names the
//! facts, on every rank.
use crate::assert_error;
use crate::support;

use std::time::Duration;

use epoxide::{
    Config, ElasticBuffer, Error, Layout, LocalGroup, Machine, MachineConfig, Mode, WireFormat, bytes_needed,
};
use support::Device;
use support::errors::{run, schedules, small};

/// What `Config`'s rules say of a configuration, from the function that needs no device.
fn refusal(config: &Config, ranks: u32) -> Error {
    bytes_needed(config, ranks, config.num_sms.max(1)).expect_err("the configuration breaks a rule")
}

/// [`refusal`], after checking that every rank gets the same from `ElasticBuffer::new`.
fn refusal_of_all(config: &Config) -> Error {
    let error = refusal(config, 2);
    for mode in schedules() {
        for result in run(2, mode, |comm| ElasticBuffer::new(&comm, config.clone()).map(|_| ())) {
            assert_eq!(result.expect_err("the configuration breaks a rule").to_string(), error.to_string());
        }
    }
    error
}

#[test]
fn a_row_is_a_multiple_of_16_bytes_on_the_wire() {
    let odd = |hidden, format| refusal_of_all(&Config::new(8, 2, hidden, 4).with_format(format));
    assert_error!(
        odd(12, WireFormat::Bf16),
        Error::InvalidArgument { argument: "hidden", value, .. } if value == "12",
        "hidden = 12", "multiple of 16 bytes", "multiple of 8"
    );
    assert_error!(
        odd(24, WireFormat::Fp8),
        Error::InvalidArgument { argument: "hidden", value, .. } if value == "24",
        "hidden = 24", "multiple of 16 bytes", "multiple of 16 in FP8"
    );
    assert!(bytes_needed(&Config::new(8, 2, 24, 4), 2, 1).is_ok());
}

#[test]
fn every_number_of_a_configuration_has_its_rule() {
    let config = Config::new(8, 2, 64, 4);
    let changed = |change: fn(&mut Config)| {
        let mut changed = config.clone();
        change(&mut changed);
        changed
    };
    let cases: [(Config, &str, &str, &str); 16] = [
        (changed(|c| c.top_k = 9), "top_k", "9", "more than the 8 experts"),
        (changed(|c| (c.experts, c.top_k) = (64, 33)), "top_k", "33", "1 to 32"),
        (changed(|c| c.top_k = 0), "top_k", "0", "1 to 32"),
        (changed(|c| c.experts = 0), "experts", "0", "1 to 2048"),
        (changed(|c| c.experts = 2049), "experts", "2049", "1 to 2048"),
        (changed(|c| c.experts = u32::MAX), "experts", "4294967295", "1 to 2048"),
        (changed(|c| c.hidden = 0), "hidden", "0", "1 to 1048576"),
        (changed(|c| c.hidden = (1 << 20) + 8), "hidden", "1048584", "1 to 1048576"),
        (changed(|c| c.hidden = u32::MAX), "hidden", "4294967295", "1 to 1048576"),
        (changed(|c| c.max_tokens_per_rank = 0), "max_tokens_per_rank", "0", "1 to 16777215"),
        (changed(|c| c.max_tokens_per_rank = 1 << 24), "max_tokens_per_rank", "16777216", "1 to 16777215"),
        (changed(|c| c.num_sms = 1025), "num_sms", "1025", "1 to 1024"),
        (changed(|c| c.routing_slots = 0), "routing_slots", "0", "1 to 256 routing slots"),
        (changed(|c| c.routing_slots = 257), "routing_slots", "257", "1 to 256 routing slots"),
        (changed(|c| c.timeout = Duration::ZERO), "timeout", "0ns", "more than 0"),
        (changed(|c| c.timeout = Duration::MAX), "timeout", "18446744073709551615.999999999s", "at most a day"),
    ];
    for (config, name, wrong, rule) in cases {
        assert_error!(
            refusal_of_all(&config),
            Error::InvalidArgument { argument, value, .. } if *argument == name && value == wrong,
            format!("{name} = {wrong}"), rule
        );
    }
    let by_expert = config.clone().with_layout(Layout::ExpertContiguous { alignment: 8 });
    for (ranks, config) in [0, 65, u32::MAX].into_iter().flat_map(|ranks| [(ranks, &config), (ranks, &by_expert)]) {
        assert_error!(
            refusal(config, ranks),
            Error::InvalidArgument { argument: "ranks", .. },
            ranks.to_string(),
            "1 to 64"
        );
    }
    // Numbers of any size are told apart before anything is made of them.
    let largest =
        Config::new(u32::MAX, u32::MAX, 8, u32::MAX).with_layout(Layout::ExpertContiguous { alignment: u32::MAX });
    assert_error!(refusal(&largest, 1), Error::InvalidArgument { argument: "experts", .. }, "1 to 2048");
    let many = Config::new(2048, 32, 8, 1 << 21).with_layout(Layout::ExpertContiguous { alignment: 1 });
    assert_error!(
        refusal(&many, 64),
        Error::InvalidArgument { argument: "max_tokens_per_rank", .. },
        "2097152",
        "32 bits count the rows of the worst case"
    );
}

#[test]
fn a_row_that_no_block_can_stage_is_refused() {
    let config = Config::new(2, 1, 1 << 20, 1);
    for result in run(2, schedules()[0], |comm| ElasticBuffer::new(&comm, config.clone()).map(|_| ())) {
        assert_error!(
            result.unwrap_err(),
            Error::InvalidArgument { argument: "hidden", value, .. } if value == "1048576",
            "2097152 bytes", "shared memory"
        );
    }
}

#[test]
fn a_window_larger_than_its_limit_names_region_needed_and_given() {
    let needed_at = |limit| refusal_of_all(&Config::new(8, 2, 64, 16).with_max_window_bytes(limit));
    let bytes = bytes_needed(&Config::new(8, 2, 64, 16), 2, 1).unwrap();
    let last = bytes.regions.iter().find(|r| r.name == "expert outputs").unwrap();
    assert_error!(
        needed_at(last.offset + 1),
        Error::BufferTooSmall { argument: "max_window_bytes", region: "expert outputs", needed, given, .. }
            if *needed == last.offset + last.bytes && *given == last.offset + 1,
        "max_window_bytes", "region expert outputs",
        format!("ends at byte {} of {}", last.offset + last.bytes, bytes.window), format!("given {}", last.offset + 1)
    );
    assert_error!(needed_at(1), Error::BufferTooSmall { region: "abort word", needed: 8, given: 1, .. }, "abort word");
}

#[test]
fn ranks_with_different_configurations_are_told_which_field_and_which_ranks() {
    type Change = fn(&mut Config);
    let changes: [(&str, Change, &str, &str); 9] = [
        ("experts", |c| c.experts = 16, "16", "8"),
        ("top_k", |c| c.top_k = 3, "3", "2"),
        ("hidden", |c| c.hidden = 128, "128", "64"),
        ("max_tokens_per_rank", |c| c.max_tokens_per_rank = 5, "5", "4"),
        ("format", |c| c.format = WireFormat::Fp8, "Fp8", "Bf16"),
        ("num_sms", |c| c.num_sms = 3, "3", "2"),
        ("timeout", |c| c.timeout = Duration::from_secs(7), "7s", "30s"),
        ("max_window_bytes", |c| c.max_window_bytes = 1 << 30, "1073741824", "0"),
        ("routing_slots", |c| c.routing_slots = 3, "3", "1"),
    ];
    for (name, change, other, usual) in changes {
        let results = run(3, schedules()[0], |comm| {
            let mut config = Config::new(8, 2, 64, 4).with_num_sms(2);
            if comm.rank() == 1 {
                change(&mut config);
            }
            ElasticBuffer::new(&comm, config).map(|_| ())
        });
        for result in results {
            assert_error!(
                result.unwrap_err(),
                Error::ConfigMismatch { field, .. } if *field == name,
                format!("{name} differs"), format!("{usual} on ranks [0, 2]"), format!("{other} on ranks [1]")
            );
        }
    }
}

/// A rank that breaks a rule while the others do not: nobody waits for it for ever.
#[test]
fn one_rank_with_a_broken_configuration_fails_on_all() {
    let results = run(2, schedules()[0], |comm| {
        let hidden = if comm.rank() == 0 { 64 } else { 65 };
        ElasticBuffer::new(&comm, Config::new(8, 2, hidden, 4)).map(|_| ())
    });
    for result in results {
        assert_error!(
            result.unwrap_err(),
            Error::ConfigMismatch { field: "hidden", .. },
            "64 on ranks [0]",
            "65 on ranks [1]"
        );
    }
}

#[test]
fn too_little_device_memory_names_rank_and_bytes_and_fails_on_all() {
    let machine = Machine::new(MachineConfig::new(2, Mode::Fast { workers: 1 }).with_arena_bytes(16 << 20));
    let results = LocalGroup::on_machine(&machine.unwrap()).unwrap().run_all(|comm| {
        if comm.rank() == 1 {
            // Half of rank 1's memory is taken.
            let taken = comm.empty::<u8>(4 << 20)?;
            let result = ElasticBuffer::new(&comm, Config::new(8, 2, 1024, 1000)).map(|_| ());
            drop(taken);
            return result;
        }
        ElasticBuffer::new(&comm, Config::new(8, 2, 1024, 1000)).map(|_| ())
    });
    let needed = bytes_needed(&Config::new(8, 2, 1024, 1000), 2, 2).unwrap().window;
    assert!(needed > 4 << 20 && needed < 12 << 20);
    for (rank, result) in results.into_iter().enumerate() {
        let error = result.expect_err("a window does not fit on rank 1");
        match rank {
            1 => assert_error!(
                error,
                Error::OutOfMemory { rank: 1, what: "the symmetric window", bytes, free, .. } if *bytes == needed && *free < needed,
                "rank 1", "symmetric window", format!("{needed} bytes")
            ),
            _ => assert_error!(error, Error::Bootstrap { .. } | Error::OutOfMemory { .. }, "rank", "memory"),
        }
    }
}

/// A rank that ends before the others made their buffers: an error, not a hang.
#[test]
fn a_rank_that_is_gone_is_named() {
    for mode in schedules() {
        let results = run(3, mode, |comm| if comm.rank() == 2 { Ok(()) } else { small(&comm).map(|_| ()) });
        assert!(results[2].is_ok());
        for result in &results[..2] {
            let error = result.as_ref().expect_err("rank 2 is gone").clone();
            // The other one may be gone too by the time that this one looks.
            assert_error!(error, Error::Bootstrap { .. } | Error::Simulator { .. }, "2", "gone");
        }
    }
}

#[test]
fn a_gpu_without_a_driver_is_an_error() {
    match LocalGroup::on_gpu(1, 0) {
        Err(error @ Error::NoDriver { .. }) => {
            assert_error!(error, Error::NoDriver { reason, .. } if !reason.is_empty(), "no CUDA driver", "simulated GPU");
            assert_error!(LocalGroup::gpus().unwrap_err(), Error::NoDriver { .. }, "no CUDA driver");
        }
        // A driver, but nothing that the kernels run on.
        Err(error @ Error::DriverFailed { .. }) => {
            assert_error!(error, Error::DriverFailed { .. }, "driver does not start", "cuInit", "simulated GPU")
        }
        Err(error @ Error::DriverTooOld { .. }) => assert_error!(error, Error::DriverTooOld { .. }, "driver"),
        Err(error @ Error::GpuTooOld { .. }) => {
            assert_error!(error, Error::GpuTooOld { .. }, "compute capability", "9.0")
        }
        Err(error @ Error::InvalidArgument { .. }) => assert_error!(error, Error::InvalidArgument { .. }, "device"),
        Err(other) => panic!("{other}"),
        // With a driver the GPU tests say more.
        Ok(_) => assert!(LocalGroup::gpus().unwrap() > 0),
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn more_streams_or_blocks_than_the_gpu_holds_are_refused() {
    let refused = {
        let _turn = Device::Cuda.turn();
        LocalGroup::on_gpu(9, 0).unwrap_err()
    };
    assert_error!(refused, Error::DoesNotFit { what: "streams", device: 0, .. }, "streams on GPU 0");
    let results = Device::Cuda.run_all(2, Mode::Fast { workers: 0 }, |comm| {
        ElasticBuffer::new(&comm, Config::new(8, 2, 64, 4).with_num_sms(100)).map(|_| ())
    });
    let errors: Vec<Error> = results.into_iter().map(|r| r.expect_err("200 SMs do not fit")).collect();
    assert!(
        errors.iter().any(|e| matches!(e, Error::DoesNotFit { what: "SMs", device: 0, asked: 200, .. })),
        "{errors:?}"
    );
    assert_error!(LocalGroup::on_gpu(1, 4096).unwrap_err(), Error::InvalidArgument { .. } | Error::Cuda { .. }, "4096");
}
