//! Rows in fixed places: what every rank is told when ranks do not do the same, or select what is not there; and what fixed places do not have.
use crate::support;

use std::time::Duration;

use epoxide::{
    CombineInput, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, Layout, LocalGroup, Mode, bf16,
};
use support::Device;

/// Ranks that do not do the same find that at once, whoever waits for whom: with slots that are free and not, and one block and several.
#[test]
fn ranks_out_of_step_are_found_at_once() {
    let device = Device::from_env();
    for (num_sms, free, again) in [1, 3]
        .into_iter()
        .flat_map(|n| [false, true].map(|f| (n, f)))
        .flat_map(|(n, f)| [false, true].map(|a| (n, f, a)))
    {
        let checked = device.check(3, Mode::Fast { workers: 0 }, |comm| {
            let config = Config::new(6, 2, 64, 8).with_num_sms(num_sms).with_layout(Layout::RankMajor { alignment: 1 });
            let mut buffer = ElasticBuffer::new(&comm, config.with_timeout(Duration::from_secs(20)))?;
            let (x, weights) = (comm.tensor(&[bf16::ONE; 8 * 64])?, comm.tensor(&[1.0f32; 16])?);
            let (idx, mut y) = (comm.tensor(&[2i64, 4].repeat(8))?, comm.empty::<bf16>(8 * 64)?);
            comm.barrier()?;
            let handle = buffer.dispatch(&DispatchInput::new(8, &x, &idx, &weights))?;
            buffer.synchronize()?;
            if free {
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
                buffer.synchronize()?;
            }
            comm.barrier()?;
            if comm.rank() == 0 && again {
                buffer.dispatch_again(&handle, &x)?;
            } else if comm.rank() == 0 && !free {
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            } else {
                buffer.dispatch(&DispatchInput::new(8, &x, &idx, &weights))?;
            }
            let said = buffer.synchronize();
            let alike = free && !again;
            let right = match &said {
                Ok(()) => alike,
                Err(Error::OutOfStep { .. } | Error::PeerAborted { .. }) => !alike,
                Err(_) => false,
            };
            buffer.reset()?;
            buffer.close()?;
            Ok(if right { Ok(()) } else { Err(format!("{num_sms} SMs, free {free}, again {again}: {said:?}")) })
        });
        checked.unwrap();
    }
}

/// Ranks agree on whether rows stay: else one would write into what another keeps.
#[test]
fn who_keeps_rows_alone_is_told() {
    let device = Device::from_env();
    let checked = device.check(2, Mode::Fast { workers: 0 }, |comm| {
        let config = Config::new(4, 1, 64, 4).with_num_sms(2).with_layout(Layout::RankMajor { alignment: 1 });
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let (x, weights) = (comm.tensor(&[bf16::ONE; 2 * 64])?, comm.tensor(&[1.0f32; 2])?);
        let (idx, mut y) = (comm.tensor(&[0i64, 3])?, comm.empty::<bf16>(2 * 64)?);
        comm.barrier()?;
        let input = DispatchInput::new(2, &x, &idx, &weights);
        let handle = buffer.dispatch(&if comm.rank() == 0 { input.keeping_rows() } else { input })?;
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
        let said = buffer.synchronize();
        let right = matches!(said, Err(Error::OtherHandle { .. }));
        buffer.close().ok();
        Ok(if right { Ok(()) } else { Err(format!("{said:?}")) })
    });
    checked.unwrap();
}

/// All ranks find the first bad selection, with its index, and the buffer is as new behind a reset.
#[test]
fn bad_selections_are_found_by_every_rank() {
    let device = Device::from_env();
    for num_sms in [1, 3] {
        let checked = device.check(2, Mode::Fast { workers: 0 }, |comm| {
            let config = Config::new(6, 2, 64, 8).with_num_sms(num_sms).with_layout(Layout::RankMajor { alignment: 1 });
            let mut buffer = ElasticBuffer::new(&comm, config)?;
            let (x, weights) = (comm.tensor(&[bf16::ONE; 8 * 64])?, comm.tensor(&[1.0f32; 16])?);
            let mut y = comm.empty::<bf16>(8 * 64)?;
            let mut checked = Ok(());
            for bad in [(5, 1, 6i64), (3, 0, -2), (7, 1, i64::MAX), (2, 1, 2)] {
                let mut idx: Vec<i64> = (0..16).map(|i| [2, 4][i % 2]).collect();
                if comm.rank() == 1 {
                    idx[bad.0 * 2 + bad.1] = bad.2;
                    // A later one is not the first.
                    idx[15] = if bad.0 == 7 { idx[15] } else { 99 };
                }
                let idx = comm.tensor(&idx)?;
                buffer.dispatch(&DispatchInput::new(8, &x, &idx, &weights))?;
                let said = buffer.synchronize();
                let right = match &said {
                    Err(Error::IndexOutOfRange { source_rank: 1, token, position, index, .. }) => {
                        bad.2 != 2 && (*token as usize, *position as usize, *index) == bad
                    }
                    Err(Error::IndexRepeated { source_rank: 1, token, position, index, .. }) => {
                        bad.2 == 2 && (*token as usize, *position as usize, *index) == bad
                    }
                    _ => false,
                };
                if !right {
                    checked = checked.and(Err(format!("{bad:?}: {said:?}")));
                }
                buffer.reset()?;
                let idx = comm.tensor(&[2i64, 4].repeat(8))?;
                let handle = buffer.dispatch(&DispatchInput::new(8, &x, &idx, &weights))?;
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
                buffer.synchronize()?;
            }
            buffer.close()?;
            Ok(checked)
        });
        checked.unwrap();
    }
}

/// What does not go with fixed places is refused by name.
#[test]
fn what_fixed_places_do_not_have_is_refused() {
    let said = |config: Config| epoxide::bytes_needed(&config, 2, 4).map(|_| ()).unwrap_err().to_string();
    let fixed = || Config::new(8, 2, 64, 16).with_layout(Layout::RankMajor { alignment: 1 });
    epoxide::bytes_needed(&fixed(), 2, 4).unwrap();
    for (config, rule) in [
        (fixed().with_capacity(3), "capacity = 3: rows of fixed places (rank-major) have room for every token"),
        (fixed().with_counts_mirror(), "counts_mirror = true: not where rows have fixed places"),
        (fixed().with_expert_statistics(), "expert_statistics = true: not where rows have fixed places"),
        (fixed().with_row_slots(2).with_routing_slots(3), "routing_slots = 3: where rows have fixed places"),
        (fixed().with_layout(Layout::RankMajor { alignment: 0 }), "alignment = 0"),
    ] {
        let said = said(config);
        assert!(said.contains(rule), "{said}");
    }
    // Bits for 8192 tokens of 4 ranks and 64 experts are more than a block has room for.
    let many = Config::new(256, 8, 7168, 8192).with_layout(Layout::RankMajor { alignment: 1 });
    let said = many.check_row(4, 232_448).unwrap_err().to_string();
    assert!(said.contains("max_tokens_per_rank = 8192: a bit for each token"), "{said}");
    let lent = LocalGroup::simulated(1, Mode::Fast { workers: 0 }).unwrap().run(|comm| {
        let mut buffer = ElasticBuffer::new(&comm, fixed())?;
        let lent = buffer.lend_expert_outputs().unwrap_err().to_string();
        buffer.close()?;
        Ok(lent)
    });
    assert!(lent.unwrap()[0].contains("RankMajor"));
}
