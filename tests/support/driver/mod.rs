//! A driver without a GPU in the place of NVIDIA's: what the host does for an operation is counted and timed without what a driver takes.
#![allow(dead_code, reason = "the benchmark counts nothing")]
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::process::Command;

use epoxide::{
    CombineInput, Comm, Config, DeviceTensor, DispatchInput, ElasticBuffer, ExpertOutputs, Layout, Packing, Result,
    WireFormat, bf16,
};
use libloading::Library;

/// The library, which stays as long as the process.
pub struct StandIn {
    call: unsafe extern "C" fn(usize, *mut u64) -> *const c_char,
}

impl StandIn {
    /// Compiles it, and opens it under the driver's name: who asks for that from here on gets it, whatever the machine has. Before anything else asks.
    pub fn open() -> Self {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/support/driver/stand_in.rs");
        let folder = std::env::temp_dir().join(format!("epoxide-driver-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the library");
        let library = folder.join("libcuda.so.1");
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        let options =
            ["--edition=2024", "--crate-type=cdylib", "--crate-name=stand_in", "-Copt-level=2", "-Cpanic=abort"];
        // The loader takes a library that is open for one that is asked for, if that is what it is called inside.
        let name = ["-Clink-arg=-Wl,-soname,libcuda.so.1", "-o"];
        let compiled = Command::new(rustc).args(options).args(name).arg(&library).arg(source).output();
        let compiled = compiled.expect("rustc is there");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        // SAFETY: it has no initialisers.
        let opened = unsafe { Library::new(&library) };
        // What is open stays.
        std::fs::remove_dir_all(&folder).expect("nobody else is there");
        let library = opened.expect("it was just made");
        let library: &'static Library = Box::leak(Box::new(library));
        // SAFETY: the type is that of its source.
        let call = unsafe { library.get(c"stand_in_call") }.map(|call| *call).expect("it is in the source");
        Self { call }
    }

    /// How often this thread has made each call so far.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        let one = |number| {
            let mut count = 0;
            // SAFETY: a place for the count.
            let name = unsafe { (self.call)(number, &mut count) };
            // SAFETY: a constant of the library's, which stays.
            (!name.is_null()).then(|| (unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(), count))
        };
        (0..).map_while(one).collect()
    }
}

/// What a rank exchanges, again and again.
pub struct Pairs {
    buffer: ElasticBuffer,
    tokens: u32,
    x: DeviceTensor<bf16>,
    idx: DeviceTensor<i32>,
    weights: DeviceTensor<f32>,
    y: DeviceTensor<bf16>,
}

impl Pairs {
    /// Of a model of the usual size, on buffers of one row slot.
    pub fn new(comm: &Comm, layout: Layout, packing: Packing, format: WireFormat, tokens: u32) -> Result<Self> {
        let config = Config::new(256, 8, 7168, tokens).with_num_sms(8).with_layout(layout).with_format(format);
        let config = config.with_packing(packing);
        let elements = u64::from(tokens) * 7168;
        Ok(Self {
            buffer: ElasticBuffer::new(comm, config)?,
            tokens,
            x: comm.empty(elements)?,
            idx: comm.empty(u64::from(tokens) * 8)?,
            weights: comm.empty(u64::from(tokens) * 8)?,
            y: comm.empty(elements)?,
        })
    }

    /// A dispatch, and its combine.
    pub fn pair(&mut self) -> Result<()> {
        let input = DispatchInput::new(self.tokens, &self.x, &self.idx, &self.weights);
        let handle = self.buffer.dispatch(&input)?;
        self.buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut self.y))
    }

    pub fn close(self) -> Result<()> {
        self.buffer.close()
    }
}
