//! The thinnest whole way.
use epoxide::{Config, DispatchInput, ElasticBuffer, ExpertOutputs, LocalGroup, Mode, WireRows, bf16};

#[test]
fn two_ranks_exchange_and_sum() {
    for mode in [Mode::Fast { workers: 0 }, Mode::Seeded { seed: 1 }] {
        let (experts, top_k, hidden, tokens) = (4, 2, 64, 3);
        let group = LocalGroup::simulated(2, mode).unwrap();
        let out = group.run(|comm| {
            let mut buffer = ElasticBuffer::new(&comm, Config::new(experts, top_k, hidden, tokens))?;
            let x = comm.tensor(&vec![bf16::from_f32(1.5); (tokens * hidden) as usize])?;
            let topk_idx = comm.tensor(&[0i64, 1, 1, 2, -1, -1])?;
            let topk_weights = comm.tensor(&[0.5f32; 6])?;
            let handle = buffer.dispatch(&DispatchInput::new(tokens, &x, &topk_idx, &topk_weights))?;
            let got = buffer.received(&handle)?;
            println!("{} {:?} {:?} {:?}", comm.rank(), got.counts, got.sources, got.topk_idx);
            let WireRows::Bf16(rows) = got.x else { unreachable!() };
            buffer.write_expert_outputs(&handle, &rows)?;
            let mut y = comm.empty::<bf16>(u64::from(tokens * hidden))?;
            buffer.combine(&handle, ExpertOutputs::InPlace, &mut y)?;
            buffer.synchronize()?;
            let y = y.to_vec()?;
            let y = [y[0], y[64], y[128]].map(f32::from);
            buffer.close()?;
            Ok(y)
        });
        assert_eq!(out.unwrap(), [[1.5, 3.0, 0.0]; 2]);
    }
}
