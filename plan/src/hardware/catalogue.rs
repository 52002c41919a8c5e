//! The built-in GPUs and NICs.
//!
//! A figure that nobody publishes says so in its source, and what was taken instead. None was chosen to fit a figure of DeepEP's. What
//! our own SMs do was measured with our own kernels, with 4 SMs a rank; `examples/plan_vs_published` derives it from these times.
use std::borrow::Cow;

use super::figure::Figure;
use super::parts::{Gpu, Nic};
use crate::error::{Error, Result};

const GIB: f64 = (1u64 << 30) as f64;

const SHARED: Figure = Figure::new(
    232_448.0,
    "CUDA programming guide, technical specifications per compute capability: 227 KB a block on 9.0 and 10.0",
);
const NVLINK4: Figure = Figure::new(26.562e9, "nvidia-smi nvlink --status on Hopper: 26.562 GB/s a link and direction");
const NVLINK5: Figure = Figure::new(50e9, "nvidia-smi nvlink --status on Blackwell: 50 GB/s a link and direction");

/// What the driver calls the built-in GPUs.
const PRODUCTS: [(&str, &str); 6] = [
    ("NVIDIA H100 80GB HBM3", "H100"),
    ("NVIDIA H800", "H800"),
    ("NVIDIA H200", "H200"),
    ("NVIDIA H20", "H20"),
    ("NVIDIA B200", "B200"),
    ("NVIDIA GB200", "GB200"),
];

/// What a kernel reaches on an H200, with what is said of it there and of other GPUs.
struct Measured {
    value: f64,
    here: &'static str,
    elsewhere: &'static str,
}

impl Measured {
    const fn figure(&self, measured: bool) -> Figure {
        Figure::new(self.value, if measured { self.here } else { self.elsewhere })
    }
}

const NVLINK_SHARE: Measured = Measured {
    value: 0.768,
    here: "measured: a plain kernel on each of two H200 writes to the other, 367 of 478 GB/s (examples/bandwidth)",
    elsewhere: "assumed: as measured between two H200, 367 of 478 GB/s written by a plain kernel on each",
};
const NVLINK_READ_SHARE: Measured = Measured {
    value: 0.704,
    here: "measured: a plain kernel on each of two H200 reads from the other, 337 of 478 GB/s (examples/bandwidth)",
    elsewhere: "assumed: as measured between two H200, 337 of 478 GB/s read by a plain kernel on each",
};
const READ: Measured = Measured {
    value: 71.3e9,
    here: "measured: combine of 8 ranks on one H200, 4 SMs and 4096 tokens each (examples/bandwidth)",
    elsewhere: "assumed: as measured on an H200, combine with 4 SMs a rank",
};
const READ_LINK: Measured = Measured {
    value: 51.0e9,
    here: "measured: combine of two H200, 4 SMs and 4096 tokens each, less what was local (examples/bandwidth)",
    elsewhere: "assumed: as measured between two H200, combine with 4 SMs a rank",
};
const QUANTIZE: Measured = Measured {
    value: 33.0e9,
    here: "measured: FP8 dispatch of 2 ranks on one H200, 4 SMs and 4096 tokens each (examples/bandwidth)",
    elsewhere: "assumed: as measured on an H200, FP8 dispatch of 2 ranks with 4 SMs each",
};
const WRITE: Measured = Measured {
    value: 53.0e9,
    here: "measured: BF16 dispatch of 8 ranks on one H200, 4 SMs and 4096 tokens each (examples/bandwidth)",
    elsewhere: "assumed: as measured on an H200, BF16 dispatch with 4 SMs a rank",
};
const WRITE_LINK: Measured = Measured {
    value: 42.9e9,
    here: "measured: BF16 dispatch of two H200, 4 SMs and 4096 tokens each, less what was local (examples/bandwidth)",
    elsewhere: "assumed: as measured between two H200, BF16 dispatch with 4 SMs a rank",
};
const KERNEL: Figure =
    Figure::new(4.2e-6, "measured on an H200, 2 ranks: DeepEP V2's bare barrier kernel, launch to launch");
const KERNEL_ASSUMED: Figure = Figure::new(4.2e-6, "assumed: as measured on an H200");
const ROUND_TRIP: Figure =
    Figure::new(2e-6, "the upper end of the 1 to 2 us that is quoted for NVLink 4 across a switch; not measured by us");

/// Nominal HBM bandwidth times what a copy reaches of it.
const fn copied(nominal: f64, source: &'static str) -> Figure {
    Figure::new(nominal * Gpu::COPY_SHARE, source)
}

/// A Hopper with these differences.
struct Hopper {
    name: &'static str,
    sms: Figure,
    memory: Figure,
    hbm: Figure,
    links: Figure,
    measured: bool,
}

fn hopper(h: Hopper) -> Gpu {
    Gpu {
        name: Cow::Borrowed(h.name),
        sms: h.sms,
        shared_memory: SHARED,
        memory: h.memory,
        hbm: h.hbm,
        nvlink_links: h.links,
        nvlink_link: NVLINK4,
        nvlink_share: NVLINK_SHARE.figure(h.measured),
        nvlink_read_share: NVLINK_READ_SHARE.figure(h.measured),
        sm_read: READ.figure(h.measured),
        sm_read_link: READ_LINK.figure(h.measured),
        sm_quantize: QUANTIZE.figure(h.measured),
        sm_write: WRITE.figure(h.measured),
        sm_write_link: WRITE_LINK.figure(h.measured),
        kernel: if h.measured { KERNEL } else { KERNEL_ASSUMED },
        round_trip: ROUND_TRIP,
    }
}

fn blackwell(name: &'static str, sms: Figure, memory: Figure) -> Gpu {
    Gpu {
        name: Cow::Borrowed(name),
        sms,
        shared_memory: SHARED,
        memory,
        hbm: copied(
            8e12,
            "NVIDIA Blackwell data sheet: 8 TB/s nominal, times the share that a copy reaches on an H200",
        ),
        nvlink_links: Figure::new(18.0, "NVIDIA Blackwell data sheet: NVLink 5, 18 links"),
        nvlink_link: NVLINK5,
        nvlink_share: NVLINK_SHARE.figure(false),
        nvlink_read_share: NVLINK_READ_SHARE.figure(false),
        sm_read: READ.figure(false),
        sm_read_link: READ_LINK.figure(false),
        sm_quantize: QUANTIZE.figure(false),
        sm_write: WRITE.figure(false),
        sm_write_link: WRITE_LINK.figure(false),
        kernel: KERNEL_ASSUMED,
        round_trip: ROUND_TRIP,
    }
}

const HOPPER_LINKS: Figure = Figure::new(18.0, "NVIDIA Hopper data sheet: NVLink 4, 18 links, 900 GB/s both ways");

impl Gpu {
    /// The built-in GPU of this name.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`], which lists the known ones.
    pub fn named(name: &str) -> Result<Self> {
        let known = gpus();
        let wanted = normal(name);
        let unknown = || Error::text("gpu", name, format!("known GPUs are {}", Self::names().join(", ")));
        known.into_iter().find(|gpu| normal(&gpu.name) == wanted).ok_or_else(unknown)
    }

    /// The name of the built-in GPU that the driver and NVML call `device`; `None` for what is not built in. Only whole names: an "H100
    /// PCIe" has other memory than an "H100 80GB HBM3", and a "GH200" is no H200.
    pub fn name_of(device: &str) -> Option<&'static str> {
        PRODUCTS.iter().find(|(product, _)| product.eq_ignore_ascii_case(device)).map(|(_, name)| *name)
    }

    /// Names of the built-in GPUs.
    pub fn names() -> Vec<String> {
        gpus().into_iter().map(|gpu| gpu.name.into_owned()).collect()
    }
}

impl Nic {
    /// The built-in NIC of this name.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`], which lists the known ones.
    pub fn named(name: &str) -> Result<Self> {
        let known = nics();
        let wanted = normal(name).replace("connectx", "cx");
        let unknown = || Error::text("nic", name, format!("known NICs are {}", Self::names().join(", ")));
        known.into_iter().find(|nic| normal(&nic.name) == wanted).ok_or_else(unknown)
    }

    /// Names of the built-in NICs.
    pub fn names() -> Vec<String> {
        nics().into_iter().map(|nic| nic.name.into_owned()).collect()
    }
}

/// Lower case, letters and digits only.
fn normal(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// All built-in GPUs.
fn gpus() -> [Gpu; 6] {
    const HOPPER_SMS: Figure = Figure::new(132.0, "NVIDIA H100 data sheet, SXM5: 132 SMs");
    [
        hopper(Hopper {
            name: "H100",
            sms: HOPPER_SMS,
            memory: Figure::new(80.0 * GIB, "NVIDIA H100 data sheet, SXM5: 80 GB"),
            hbm: copied(
                3.35e12,
                "NVIDIA H100 data sheet: 3.35 TB/s nominal, times the share that a copy reaches on an H200",
            ),
            links: HOPPER_LINKS,
            measured: false,
        }),
        hopper(Hopper {
            name: "H800",
            sms: Figure::new(132.0, "the H100's die: 132 SMs"),
            memory: Figure::new(80.0 * GIB, "as the H100: 80 GB"),
            hbm: copied(3.35e12, "as the H100: 3.35 TB/s nominal, times the share that a copy reaches on an H200"),
            links: Figure::new(8.0, "400 GB/s both ways instead of 900: 8 links"),
            measured: false,
        }),
        hopper(Hopper {
            name: "H200",
            sms: Figure::new(132.0, "NVIDIA H200 data sheet; read from the device"),
            memory: Figure::new(150_754_820_096.0, "read from the device by NVML; sold as 141 GB"),
            hbm: Figure::new(4.256e12, "measured: 2 GiB copied by a Triton kernel, read and write counted"),
            links: HOPPER_LINKS,
            measured: true,
        }),
        hopper(Hopper {
            name: "H20",
            sms: Figure::new(78.0, "Geekbench 6 listing of an H20, as reported by the press: 78 SMs"),
            memory: Figure::new(96.0 * GIB, "NVIDIA H20: 96 GB, as reported by the press"),
            hbm: copied(4.0e12, "NVIDIA H20: 4.0 TB/s nominal, times the share that a copy reaches on an H200"),
            links: HOPPER_LINKS,
            measured: false,
        }),
        blackwell(
            "B200",
            Figure::new(148.0, "multiProcessorCount of an HGX B200 as frameworks report it: 148"),
            Figure::new(180e9, "NVIDIA HGX B200 data sheet: 180 GB"),
        ),
        blackwell(
            "GB200",
            Figure::new(152.0, "multiProcessorCount of a GB200 as frameworks report it: 152"),
            Figure::new(186e9, "NVIDIA GB200 NVL72 data sheet: 13.4 TB on 72 GPUs"),
        ),
    ]
}

/// All built-in NICs: what one GPU has of them.
fn nics() -> [Nic; 4] {
    const LATENCY: Figure =
        Figure::new(5e-6, "the upper end of the 1 to 5 us that is quoted for InfiniBand NDR; not measured by us");
    let nic =
        |name, bandwidth, message_rate, latency| Nic { name: Cow::Borrowed(name), bandwidth, message_rate, latency };
    [
        nic(
            "CX6",
            Figure::new(25e9, "NVIDIA ConnectX-6 data sheet: 200 Gb/s"),
            Figure::new(215e6, "NVIDIA ConnectX-6 data sheet: 215 million messages a second"),
            LATENCY,
        ),
        nic(
            "CX7",
            Figure::new(50e9, "NVIDIA ConnectX-7 data sheet: 400 Gb/s; ibstat's rate, which DeepEP's planner uses"),
            Figure::new(330e6, "NVIDIA ConnectX-7 data sheet: 330 to 370 million messages a second"),
            LATENCY,
        ),
        nic(
            "CX8",
            Figure::new(100e9, "NVIDIA ConnectX-8 user manual: 800 Gb/s"),
            Figure::new(330e6, "assumed: as ConnectX-7; no figure was found"),
            LATENCY,
        ),
        nic(
            "EFA",
            Figure::new(50e9, "AWS p5 and p5en: 3200 Gb/s for 8 GPUs"),
            Figure::new(10e6, "assumed: no figure was found; libraries drive it through a CPU thread"),
            Figure::new(10e-6, "the upper end of the 2 to 10 us that is quoted for Ethernet; not measured by us"),
        ),
    ]
}
