//! A wheel from PyPI: fetched by pip, and what is needed of it unpacked.

use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

use crate::kernels::root;

/// The package.
const PACKAGE: &str = "nvidia-nccl-cu13";

/// What is unpacked of a wheel; removed with the value.
pub struct Wheel {
    pub folder: PathBuf,
    pub sha256: String,
}

impl Drop for Wheel {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Whether it could be had.
pub enum Fetched {
    Here(Wheel),
    OutOfReach(String),
}

/// Unpacks headers and library.
const UNPACK: &str = "\
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    for name in wheel.namelist():
        if name.startswith('nvidia/nccl/include/') or name.endswith('/libnccl.so.2'):
            wheel.extract(name, sys.argv[2])
";

/// Fetches a version; one of another hash than that is an error.
pub fn fetch(version: &str, sha256: Option<&str>) -> Result<Fetched> {
    let folder = root().join(format!("target/nccl-{version}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let wheel = Wheel { folder: folder.clone(), sha256: String::new() };
    let list = folder.join("requirements.txt");
    let hash = sha256.map(|hash| format!(" --hash=sha256:{hash}")).unwrap_or_default();
    std::fs::write(&list, format!("{PACKAGE}=={version}{hash}\n"))?;
    let mut pip = python(&["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--no-cache-dir", "--only-binary=:all:", "--timeout=10", "--retries=1"]);
    // What its wheels are for; the same on whatever this runs.
    pip.args(
        ["manylinux_2_18_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64"]
            .map(|tag| format!("--platform={tag}")),
    );
    let got = match pip.arg("-d").arg(&folder).arg("-r").arg(&list).output() {
        Ok(got) => got,
        Err(error) => return Ok(Fetched::OutOfReach(format!("no pip, which fetches NCCL's wheel: {error}"))),
    };
    if !got.status.success() {
        let said = String::from_utf8_lossy(&got.stderr).into_owned();
        if is_out_of_reach(&said) {
            let last = said.lines().rfind(|line| !line.is_empty()).unwrap_or_default();
            return Ok(Fetched::OutOfReach(format!("PyPI, which has NCCL's wheel, is out of reach: {last}")));
        }
        bail!("pip does not fetch {PACKAGE} {version}:\n{}", said.trim_end());
    }
    let files = std::fs::read_dir(&folder)?.filter_map(|file| Some(file.ok()?.path()));
    let file = files.into_iter().find(|file| file.extension().is_some_and(|end| end == "whl"));
    let file = file.with_context(|| format!("pip has fetched no wheel into {}", folder.display()))?;
    let sum = finished(python(&["-m", "pip", "hash", "--algorithm=sha256"]).arg(&file).output()?)?;
    let sum = sum.split("sha256:").nth(1).context("pip says no hash")?.trim().to_owned();
    finished(python(&["-c", UNPACK]).arg(&file).arg(&folder).output()?)?;
    std::fs::remove_file(&file)?;
    let mut wheel = wheel;
    wheel.sha256 = sum;
    Ok(Fetched::Here(wheel))
}

fn python(args: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(args);
    command
}

fn finished(out: Output) -> Result<String> {
    if !out.status.success() {
        bail!("python3 fails ({}):\n{}", out.status, String::from_utf8_lossy(&out.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Whether pip failed for want of a connection, and not because of what it got.
fn is_out_of_reach(said: &str) -> bool {
    let signs =
        ["No module named pip", "connection", "Connection", "timed out", "name resolution", "Could not fetch URL"];
    !said.contains("DO NOT MATCH THE HASHES") && signs.iter().any(|sign| said.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_hash_is_no_want_of_a_connection() {
        let retry = "WARNING: Retrying after connection broken by 'NewConnectionError'";
        assert!(is_out_of_reach(retry));
        assert!(!is_out_of_reach(&format!(
            "{retry}\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
        )));
        assert!(!is_out_of_reach("ERROR: No matching distribution found for nvidia-nccl-cu13==2.99.0"));
    }
}
