//! The kernels that are shipped are those of the source.

use std::path::{Path, PathBuf};
use std::process::Command;

#[expect(clippy::print_stderr, reason = "a skipped test must say so")]
fn skipped(why: &str) {
    assert!(std::env::var_os("THALWEG_REQUIRE_NVRTC").is_none(), "{why}");
    eprintln!("skipped: {why}");
}

/// Where `scripts/check/nvrtc.sh` keeps the compiler that makes what is shipped.
fn compiler(root: &Path) -> Option<PathBuf> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let mut folders: Vec<PathBuf> = std::fs::read_dir(target.join("nvrtc"))
        .ok()?
        .flatten()
        .map(|e| e.path())
        .collect();
    folders.retain(|folder| folder.join("done").exists());
    folders.sort();
    Some(folders.first()?.join("nvidia/cuda_nvrtc/lib"))
}

#[test]
fn the_shipped_ptx_is_what_the_source_gives() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some(compiler) = compiler(root) else {
        return skipped("NVRTC is not at hand; scripts/check/nvrtc.sh fetches it");
    };
    let made = tempfile::NamedTempFile::new().expect("a file");
    let output = Command::new("python3")
        .arg(root.join("scripts/check/nvrtc.py"))
        .arg(compiler.join("libnvrtc.so.12"))
        .arg(root.join("src/device/cuda/kernels.cu"))
        .arg("compute_80")
        .arg(made.path())
        .env("LD_LIBRARY_PATH", &compiler)
        .output();
    let Ok(output) = output else {
        return skipped("python3 is not there");
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let shipped =
        std::fs::read(root.join("src/device/cuda/kernels.ptx")).expect("the shipped kernels");
    let made = std::fs::read(made.path()).expect("what was made");
    assert!(
        made == shipped,
        "kernels.ptx is out of date: run scripts/check/nvrtc.sh --write"
    );
}
