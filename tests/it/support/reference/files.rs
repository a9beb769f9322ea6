//! Models on disk, whole.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::{Model, Tensor};

/// All tensors of a safetensors file, or of all such files of a folder.
pub fn read_model(path: &Path) -> Model {
    let files = if path.is_dir() {
        safetensors_files(path)
    } else {
        vec![path.to_path_buf()]
    };
    assert!(
        !files.is_empty(),
        "no safetensors file in {}",
        path.display()
    );
    let mut model = Model::new();
    for file in files {
        let bytes = fs::read(&file).expect("a readable file");
        let tensors = SafeTensors::deserialize(&bytes).expect("a valid safetensors file");
        for (name, view) in tensors.iter() {
            let tensor = Tensor::from_bytes(view.dtype(), view.shape(), view.data().to_vec());
            let before = model.insert(name.to_string(), tensor);
            assert!(before.is_none(), "tensor {name} is in two files");
        }
    }
    model
}

fn safetensors_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .expect("a readable folder")
        .map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    files
}

/// Writes a model as a Hugging Face folder of `shards` shards, with an index when there is more
/// than one.
pub fn write_model(folder: &Path, model: &Model, shards: usize) {
    fs::create_dir_all(folder).expect("a writable folder");
    let tensors: Vec<(&String, &Tensor)> = model.iter().collect();
    let mut map = serde_json::Map::new();
    let (mut from, mut total_size) = (0, 0);
    for shard in 1..=shards {
        let to = tensors.len() * shard / shards;
        let file = match shards {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{shard:05}-of-{shards:05}.safetensors"),
        };
        let views = tensors[from..to].iter().map(|(name, tensor)| {
            let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
            (name.as_str(), view.expect("bytes that fit the shape"))
        });
        let metadata = Some([("format".to_string(), "pt".to_string())].into());
        let bytes = safetensors::serialize(views, metadata).expect("a serialisable model");
        fs::write(folder.join(&file), bytes).expect("a writable folder");
        for (name, tensor) in &tensors[from..to] {
            map.insert(name.to_string(), json!(file));
            total_size += tensor.bytes.len();
        }
        from = to;
    }
    if shards > 1 {
        let index = json!({"metadata": {"total_size": total_size}, "weight_map": map});
        fs::write(
            folder.join("model.safetensors.index.json"),
            index.to_string(),
        )
        .expect("a writable folder");
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::super::Random;
    use super::*;

    #[test]
    fn a_model_comes_back_from_any_number_of_shards() {
        let mut random = Random::new(11);
        let dtypes = [
            Dtype::F64,
            Dtype::F32,
            Dtype::F16,
            Dtype::BF16,
            Dtype::F8_E4M3,
            Dtype::F8_E5M2,
        ];
        let mut model: Model = dtypes
            .iter()
            .map(|dtype| {
                (
                    format!("{dtype:?}"),
                    Tensor::rounded(*dtype, &[3, 5], &random.gaussian(15)),
                )
            })
            .collect();
        model.insert(
            "ids".into(),
            Tensor::from_bytes(Dtype::I64, &[2], (0..16).collect()),
        );
        model.insert("scalar".into(), Tensor::rounded(Dtype::BF16, &[], &[0.5]));
        model.insert("empty".into(), Tensor::rounded(Dtype::F32, &[0, 4], &[]));
        for shards in [1, 2, 4] {
            let folder = tempfile::tempdir().expect("a folder");
            write_model(folder.path(), &model, shards);
            assert_eq!(read_model(folder.path()), model);
            let index = folder.path().join("model.safetensors.index.json");
            assert_eq!(index.exists(), shards > 1);
            if shards > 1 {
                let text = fs::read_to_string(index).expect("an index");
                let index: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                assert_eq!(
                    index["weight_map"].as_object().expect("a map").len(),
                    model.len()
                );
                assert_eq!(
                    index["metadata"]["total_size"],
                    15 * (8 + 4 + 2 + 2 + 1 + 1) + 16 + 2
                );
            }
        }
        let bits = model["BF16"].bits();
        assert_eq!(bits.len(), 15);
        assert_eq!(
            super::super::widen(Dtype::BF16, bits[4]),
            model["BF16"].values[4]
        );
    }

    #[test]
    fn a_single_file_is_a_model_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let model = Model::from([(
            "w".to_string(),
            Tensor::rounded(Dtype::F16, &[2], &[1.0, -2.0]),
        )]);
        write_model(folder.path(), &model, 1);
        assert_eq!(read_model(&folder.path().join("model.safetensors")), model);
    }
}
