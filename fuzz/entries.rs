//! Where untrusted bytes come in: one function for each format, through the library's public door.
//!
//! Shared by the fuzz targets and by `tests/it/mutants.rs`, which replays the seeds and mutations
//! of them. Whatever the bytes are, each function returns: with values that are used, or with an
//! error that can be shown.

use std::fs;
use std::path::Path;

use serde_json::json;
use thalweg::checkpoint::torch::TorchFile;
use thalweg::checkpoint::{Checkpoint, Io, SourceOptions};
use thalweg::journal::Journal;
use thalweg::recipe::Recipe;
use thalweg::symmetry::{Spec, Transform};
use thalweg::{Error, Result};

/// An entry: bytes, and a folder for the file that holds them.
pub type Entry = fn(&[u8], &Path);

/// All of them, by the name of their seeds' folder.
pub const ALL: [(&str, Entry); 9] = [
    ("header", header),
    ("index", index),
    ("pickle", pickle),
    ("torch", torch),
    ("recipe", recipe),
    ("journal", journal),
    ("manifest", manifest),
    ("zst", zst),
    ("spec", spec),
];

/// Tensors of which more is stored than this are not read.
const READ_BYTES: u64 = 1 << 20;

/// A safetensors file.
pub fn header(data: &[u8], folder: &Path) {
    checkpoint(data, &folder.join("model.safetensors"));
}

/// A compressed safetensors file: seek table, frames, and the header in them.
pub fn zst(data: &[u8], folder: &Path) {
    checkpoint(data, &folder.join("model.safetensors.zst"));
}

/// An index beside one shard that holds a tensor `t`.
pub fn index(data: &[u8], folder: &Path) {
    let shard = br#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}   "#;
    let bytes = [&(shard.len() as u64).to_le_bytes()[..], shard, &[7]].concat();
    fs::write(folder.join("a.safetensors"), bytes).expect("written");
    checkpoint(data, &folder.join("model.safetensors.index.json"));
}

/// What `torch.save` might have written.
pub fn torch(data: &[u8], folder: &Path) {
    let path = folder.join("model.pt");
    fs::write(&path, data).expect("written");
    let file = used(TorchFile::open(&path, None));
    if let Some(file) = file.filter(|file| {
        file.tensors()
            .iter()
            .map(|tensor| tensor.bytes())
            .sum::<u64>()
            < READ_BYTES
    }) {
        let converted = folder.join("converted.safetensors");
        let _ = fs::remove_file(&converted);
        used(file.convert(&converted));
        let _ = fs::remove_file(&converted);
    }
}

/// A pickle, put into the archive that torch keeps it in.
pub fn pickle(data: &[u8], folder: &Path) {
    torch(
        &zip_of(&[(b"x/data.pkl", data), (b"x/data/0", &[1; 256])]),
        folder,
    );
}

/// A recipe.
pub fn recipe(data: &[u8], _folder: &Path) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(recipe) = used(Recipe::parse(text, "recipe.yml")) {
        for document in &recipe.documents {
            assert!(
                !document.models().is_empty(),
                "a merge of nothing was accepted"
            );
        }
    }
}

/// The journal of an interrupted run.
pub fn journal(data: &[u8], _folder: &Path) {
    if let Some(journal) = used(Journal::parse(data, Path::new("journal"))) {
        assert!(
            journal.valid_len() <= data.len(),
            "bytes that are not there were called valid"
        );
        used(journal.replay(&[3, 0, 1, 40_000], 2));
    }
}

/// The manifest of a finished output.
pub fn manifest(data: &[u8], folder: &Path) {
    let shard = br#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}   "#;
    let bytes = [&(shard.len() as u64).to_le_bytes()[..], shard, &[7]].concat();
    fs::write(folder.join("model.safetensors"), bytes).expect("written");
    fs::write(folder.join("thalweg.json"), data).expect("written");
    used(thalweg::output::verify(folder, &mut |_, _| Ok(())));
}

/// A symmetry spec, resolved against two tiny models.
pub fn spec(data: &[u8], _folder: &Path) {
    if let Ok(text) = std::str::from_utf8(data) {
        resolves(text);
    }
}

/// Whether a spec fits one of the models.
pub fn resolves(text: &str) -> bool {
    let Some(spec) = used(Spec::parse(text, "spec.yml")) else {
        return false;
    };
    let mut fits = false;
    let config = json!({
        "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 6,
    });
    for shapes in [LLAMA, MLP] {
        let shapes = shapes
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), shape.to_vec()))
            .collect();
        if let Some(symmetries) = used(spec.resolve(&shapes, Some(&config))) {
            let transform = Transform::random(&symmetries, 1);
            let undone = transform.compose(&symmetries, &transform.inverse(&symmetries));
            assert!(undone.is_identity(&symmetries), "an inverse that is none");
            fits = true;
        }
    }
    fits
}

const LLAMA: &[(&str, &[u64])] = &[
    ("model.embed_tokens.weight", &[5, 8]),
    ("model.layers.0.input_layernorm.weight", &[8]),
    ("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
    ("model.layers.0.self_attn.k_proj.weight", &[4, 8]),
    ("model.layers.0.self_attn.v_proj.weight", &[4, 8]),
    ("model.layers.0.self_attn.o_proj.weight", &[8, 8]),
    ("model.layers.0.post_attention_layernorm.weight", &[8]),
    ("model.layers.0.mlp.gate_proj.weight", &[6, 8]),
    ("model.layers.0.mlp.up_proj.weight", &[6, 8]),
    ("model.layers.0.mlp.down_proj.weight", &[8, 6]),
    ("model.norm.weight", &[8]),
    ("lm_head.weight", &[5, 8]),
];

const MLP: &[(&str, &[u64])] = &[
    ("fc1.weight", &[6, 4]),
    ("fc1.bias", &[6]),
    ("fc2.weight", &[3, 6]),
    ("fc2.bias", &[3]),
];

fn checkpoint(data: &[u8], path: &Path) {
    fs::write(path, data).expect("written");
    let Some(opened) = used(Checkpoint::open(path)) else {
        return;
    };
    let sources: Vec<_> = (0..opened.files().len())
        .filter_map(|file| {
            used(opened.open_file(
                file,
                &SourceOptions {
                    io: Io::Positioned,
                    scratch: None,
                },
            ))
        })
        .collect();
    for tensor in opened
        .tensors()
        .values()
        .filter(|tensor| tensor.bytes.end - tensor.bytes.start < READ_BYTES)
    {
        if let Some(source) = sources.get(tensor.file)
            && let Some(window) = used(source.load(tensor.bytes.clone()))
        {
            assert_eq!(
                window.len() as u64,
                tensor.bytes.end - tensor.bytes.start,
                "a window of another length"
            );
        }
    }
}

/// The value, or none when it is an error that can be shown in one line.
fn used<T>(result: Result<T>) -> Option<T> {
    let shown = |error: Error| {
        let line = error.to_string();
        assert!(
            !line.is_empty() && !error.subject().contains('\0'),
            "an error that cannot be shown: {line:?}"
        );
    };
    result.map_err(shown).ok()
}

/// An archive of stored members without checksums, as torch writes it when told so.
fn zip_of(members: &[(&[u8], &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in members {
        let at = u32::try_from(file.len()).expect("small").to_le_bytes();
        let size = u32::try_from(content.len()).expect("small").to_le_bytes();
        let length = u16::try_from(name.len()).expect("small").to_le_bytes();
        // Version, flags, method, time and date, checksum, both sizes, lengths of name and extra
        // field.
        let common = [
            &[10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &size,
            &size,
            &length,
            &[0, 0],
        ]
        .concat();
        directory.extend([b"PK\x01\x02\x0a\x00", &common[..], &[0; 10], &at, name].concat());
        file.extend([b"PK\x03\x04", &common[..], name, content].concat());
    }
    let count = u16::try_from(members.len()).expect("few").to_le_bytes();
    let size = u32::try_from(directory.len()).expect("small").to_le_bytes();
    let start = u32::try_from(file.len()).expect("small").to_le_bytes();
    file.extend(
        [
            &directory[..],
            b"PK\x05\x06\0\0\0\0",
            &count,
            &count,
            &size,
            &start,
            &[0, 0],
        ]
        .concat(),
    );
    file
}
