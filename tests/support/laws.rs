//! What laws are made of.
use epoxide::RegionBytes;

/// Nothing, or the law that does not hold.
pub fn require(holds: bool, law: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(law()) }
}

/// Regions are aligned and disjoint, and end inside the window and the private memory, with less than an alignment to spare.
pub fn regions_lie_well(regions: &[RegionBytes], window: u64, private: u64) -> Result<(), String> {
    for symmetric in [true, false] {
        let mut end = 0;
        for region in regions.iter().filter(|r| r.symmetric == symmetric) {
            require(region.offset.is_multiple_of(256), || format!("{region:?} is not aligned"))?;
            require(region.offset >= end, || format!("{region:?} begins before {end}"))?;
            end = region.offset + region.bytes;
        }
        let total = if symmetric { window } else { private };
        require(end <= total && total - end < 256, || format!("the last region ends at {end} of {total}"))?;
    }
    Ok(())
}
