mod rig;
use epoxide_sim::{Mode, device};
use rig::*;
#[test]
fn t() {
    let m = machine(1, Mode::Fast { workers: 1 });
    run(
        &m,
        launch("x", 1, 512, || {
            for _ in 0..300_000 {
                device::warp_sync(ALL);
            }
        }),
    )
    .expect("x");
}
