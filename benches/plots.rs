//! Where the plots are.

/// Says it, after benchmarks that were measured and not only run once.
pub fn tell() {
    let measured =
        std::env::args().any(|arg| arg == "--bench") && !std::env::args().any(|arg| arg == "--test" || arg == "--list");
    if measured && !std::env::args().any(|arg| arg == "--noplot" || arg == "-n") {
        eprintln!("plots of every case: report/index.html in target/criterion (--noplot makes none)");
    }
}
