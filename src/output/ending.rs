//! Refuses output names that have the ending of a file format which this program does not write.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, Kind, Result};

use super::folder::names_one_file;

/// File endings, each with a description of the format.
const FOREIGN: [(&str, &str); 36] = [
    (".bin", "a PyTorch file"),
    (".pt", "a PyTorch file"),
    (".pth", "a PyTorch file"),
    (".ckpt", "a PyTorch file"),
    (".pkl", "a pickle"),
    (".pickle", "a pickle"),
    (".gguf", "a GGUF file"),
    (".ggml", "a GGML file"),
    (".onnx", "an ONNX file"),
    (".h5", "a Keras file"),
    (".hdf5", "a Keras file"),
    (".keras", "a Keras file"),
    (".msgpack", "a Flax file"),
    (".npz", "a NumPy file"),
    (".npy", "a NumPy file"),
    (".tflite", "a TensorFlow Lite file"),
    (".pb", "a TensorFlow file"),
    (".pdparams", "a Paddle file"),
    (".mlmodel", "a Core ML file"),
    (".llamafile", "a llamafile"),
    (".nemo", "a NeMo file"),
    (".index.json", "an index"),
    (".json", "a JSON file"),
    (".yml", "a recipe"),
    (".yaml", "a recipe"),
    (".safetensors", "a file that has no other name"),
    (".safetensor", "a misspelt safetensors file"),
    (
        ".safetensors.zstd",
        "a misspelt compressed safetensors file",
    ),
    (".sft", "a safetensors file under another ending"),
    (".zst", "a compressed file of another kind"),
    (".zstd", "a compressed file of another kind"),
    (".gz", "a compressed file of another kind"),
    (".xz", "a compressed file of another kind"),
    (".zip", "an archive"),
    (".tar", "an archive"),
    (".part", "an unfinished file"),
];

/// Refuses an output that would become a folder although it is named like a file of another kind.
/// An existing folder of that name, or a slash at its end, shows that a folder is meant.
///
/// # Errors
///
/// [`Kind::Usage`] with the accepted forms.
pub fn check_ending(out: &Path) -> Result<()> {
    let is_folder = out.is_dir() || out.as_os_str().as_bytes().ends_with(b"/");
    if is_folder || names_one_file(out) {
        return Ok(());
    }
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let lower = name.to_lowercase();
    let Some((ending, what)) = FOREIGN
        .iter()
        .filter(|(end, _)| lower.ends_with(end))
        .max_by_key(|(end, _)| end.len())
    else {
        return Ok(());
    };
    let what = if ends_as_ours(&lower) {
        "a safetensors file, whose ending is written small"
    } else {
        what
    };
    let stem = name
        .get(..name.len().saturating_sub(ending.len()))
        .filter(|stem| !stem.is_empty())
        .unwrap_or("merged");
    let zst = if lower.contains(".safetensors.zst") || lower == *ending && *ending == ".zst" {
        ".zst"
    } else {
        ""
    };
    let file = out.with_file_name(format!(
        "{}.safetensors{zst}",
        stem.trim_end_matches(".safetensors")
    ));
    Err(Error::new(
        Kind::Usage,
        "cannot write to",
        out.display(),
        format!("the name is that of {what}"),
    )
    .with_hint(format!(
        "{} is one file of weights; a folder that is called so all the same is {}/",
        file.display(),
        out.display()
    )))
}

/// As `check_ending`, for an output that is always a folder.
///
/// # Errors
///
/// As [`check_ending`], and for the name of one file of weights.
pub fn check_folder_ending(out: &Path) -> Result<()> {
    if !names_one_file(out) || out.is_dir() {
        return check_ending(out);
    }
    let cause = "the name is that of one file, and a folder is written here";
    Err(
        Error::new(Kind::Usage, "cannot write to folder", out.display(), cause).with_hint(format!(
            "name a folder; one that is called so all the same is {}/",
            out.display()
        )),
    )
}

/// Tells if a lower-case name has an ending of ours and something before it.
fn ends_as_ours(lower: &str) -> bool {
    names_one_file(Path::new(lower))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_files_are_refused_with_the_right_form_and_folders_are_not() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let at = |name: &str| folder.path().join(name);
        let refused = [
            ("x.ckpt", "a/x.safetensors is"),
            ("model.bin", "a/model.safetensors is"),
            ("o1.gguf", "a/o1.safetensors is"),
            ("X.PT", "a/X.safetensors is"),
            ("m.safetensor", "a/m.safetensors is"),
            ("m.SafeTensors", "a/m.safetensors is"),
            ("m.safetensors.zstd", "a/m.safetensors.zst is"),
            ("m.zst", "a/m.safetensors is"),
            (".safetensors", "a/merged.safetensors is"),
            ("model.safetensors.index.json", "a/model.safetensors is"),
        ];
        for (name, form) in refused {
            let error = check_ending(&at("a").join(name)).expect_err(name);
            assert_eq!(error.exit_code(), 2);
            let hint = error.hint().expect("a hint");
            assert!(
                hint.contains(form) && hint.contains(&format!("{name}/")),
                "{name}: {hint}"
            );
        }
        for name in [
            "merged",
            "llama-3.2-1b",
            "v0.1",
            "x.safetensors",
            "x.safetensors.zst",
            "pt",
            ".",
            "a.b/c",
        ] {
            check_ending(&at(name)).expect(name);
        }
        check_ending(Path::new("x.ckpt/")).expect("a slash says that a folder is meant");
        std::fs::create_dir(at("there.bin")).expect("made");
        check_ending(&at("there.bin")).expect("it is a folder");
    }
}
