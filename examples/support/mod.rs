// Two tiny models and a recipe over them, for examples that run anywhere. Included as text by
// documentation tests too.

/// Writes two models of two tensors each, `a` and `b`, into a temporary folder that goes with the
/// value.
fn models() -> std::io::Result<tempfile::TempDir> {
    use safetensors::tensor::{Dtype, TensorView};

    let folder = tempfile::tempdir()?;
    for (name, seed) in [("a", 1_u8), ("b", 77)] {
        let model = folder.path().join(name);
        std::fs::create_dir(&model)?;
        let values: Vec<f32> = (0..32).map(|at| f32::from(seed.wrapping_mul(31).wrapping_add(at * 7)) / 256.0).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let view = |shape: Vec<usize>| TensorView::new(Dtype::F32, shape, &bytes).expect("as many bytes as elements");
        let tensors = [("layers.0.weight", view(vec![4, 8])), ("layers.1.weight", view(vec![8, 4]))];
        let file = safetensors::serialize(tensors, None).map_err(std::io::Error::other)?;
        std::fs::write(model.join("model.safetensors"), file)?;
        std::fs::write(model.join("config.json"), r#"{"model_type": "example", "torch_dtype": "float32"}"#)?;
    }
    Ok(folder)
}

/// A recipe that merges the two models of `folder`.
fn recipe(folder: &std::path::Path) -> String {
    let model = |name: &str| folder.join(name).display().to_string();
    format!("merge_method: karcher\nmodels:\n  - model: {}\n  - model: {}\n", model("a"), model("b"))
}
