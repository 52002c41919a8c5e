//! A rank of one token, with what its calls take.
use epoxide::{Comm, Config, DeviceTensor, ElasticBuffer, Result, bf16};

/// A buffer of [`config`], the token's row, selections and weights, and where sums go.
#[derive(Debug)]
pub struct Rank {
    pub buffer: ElasticBuffer,
    pub x: DeviceTensor<bf16>,
    pub idx: DeviceTensor<i64>,
    pub weights: DeviceTensor<f32>,
    pub y: DeviceTensor<bf16>,
}

/// Of eight experts, of which a token has two.
pub fn config() -> Config {
    Config::new(8, 2, 64, 4).with_num_sms(2).with_timeout(std::time::Duration::from_secs(2))
}

impl Rank {
    pub fn new(comm: &Comm, config: Config) -> Result<Self> {
        let rank = Self {
            buffer: ElasticBuffer::new(comm, config)?,
            x: comm.tensor(&[bf16::ONE; 64])?,
            idx: comm.tensor(&[0i64, 7])?,
            weights: comm.tensor(&[1.0f32; 2])?,
            y: comm.empty(64)?,
        };
        comm.barrier()?;
        Ok(rank)
    }
}
