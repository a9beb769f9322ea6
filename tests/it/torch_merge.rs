//! Merging what `torch.save` wrote: files, folders, ties, conversions.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;
use thalweg::Kind;
use thalweg::checkpoint::{Checkpoint, Container, Io, OpenOptions, SourceOptions};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::support::reference::{Model, Random, Tensor, files};
use crate::support::whole::{PLENTY, plan, recipe, run};

/// One entry of a state dict.
enum Entry<'a> {
    /// A tensor whose elements lie in order.
    Plain(&'a Tensor),
    /// A matrix whose columns lie one after another.
    Transposed(&'a Tensor),
    /// The bytes of an earlier entry, by name.
    Tied(&'a str, &'a Tensor),
    /// A number.
    Number(i64),
}

/// Opcodes of a pickle, written one by one.
#[derive(Default)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        let length = u32::try_from(text.len()).expect("short").to_le_bytes();
        self.raw(b"X").raw(&length).raw(text.as_bytes())
    }

    fn int(&mut self, value: i64) -> &mut Self {
        self.raw(b"\x8a\x08").raw(&value.to_le_bytes())
    }

    fn ints(&mut self, values: &[usize]) -> &mut Self {
        self.raw(b"(");
        for value in values {
            self.int(i64::try_from(*value).expect("small"));
        }
        self.raw(b"t")
    }

    fn tensor(&mut self, key: &str, tensor: &Tensor, strides: &[usize]) -> &mut Self {
        let class: &[u8] = match tensor.dtype {
            Dtype::F64 => b"DoubleStorage",
            Dtype::F32 => b"FloatStorage",
            Dtype::BF16 => b"BFloat16Storage",
            Dtype::I64 => b"LongStorage",
            other => panic!("no storage class for {other:?}"),
        };
        let elements = i64::try_from(tensor.shape.iter().product::<usize>()).expect("small");
        self.raw(b"ctorch._utils\n_rebuild_tensor_v2\n((")
            .text("storage")
            .raw(b"ctorch\n")
            .raw(class)
            .raw(b"\n");
        self.text(key).text("cpu").int(elements).raw(b"tQ").int(0);
        self.ints(&tensor.shape)
            .ints(strides)
            .raw(b"\x89ccollections\nOrderedDict\n)RtR")
    }
}

fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len())
        .map(|axis| shape[axis + 1..].iter().product())
        .collect()
}

/// The bytes of a matrix, columns first.
fn transposed(tensor: &Tensor) -> Vec<u8> {
    let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
    let width = tensor.bytes.len() / (rows * columns);
    let at = |index: usize| index % rows * columns + index / rows;
    (0..rows * columns)
        .flat_map(|index| tensor.bytes[at(index) * width..][..width].to_vec())
        .collect()
}

/// What `torch.save` writes for a dict of `entries`.
fn saved(entries: &[(&str, Entry<'_>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    let mut member = |name: String, content: &[u8]| {
        zip.start_file(name, options).expect("a new member");
        zip.write_all(content).expect("memory is enough");
    };
    let mut pickle = Pickle::default();
    pickle.raw(b"\x80\x02}(");
    let mut keys = BTreeMap::new();
    for (number, (name, entry)) in entries.iter().enumerate() {
        let key = number.to_string();
        pickle.text(name);
        match entry {
            Entry::Plain(tensor) => {
                pickle.tensor(&key, tensor, &strides(&tensor.shape));
                member(format!("archive/data/{key}"), &tensor.bytes);
            }
            Entry::Transposed(tensor) => {
                pickle.tensor(&key, tensor, &[1, tensor.shape[0]]);
                member(format!("archive/data/{key}"), &transposed(tensor));
            }
            Entry::Tied(with, tensor) => {
                let key: &String = &keys[with];
                pickle.tensor(key, tensor, &strides(&tensor.shape));
            }
            Entry::Number(value) => {
                pickle.int(*value);
            }
        }
        keys.insert(*name, key);
    }
    pickle.raw(b"u.");
    member("archive/data.pkl".to_owned(), &pickle.0);
    zip.finish().expect("a whole archive").into_inner()
}

fn plain(model: &Model) -> Vec<(&str, Entry<'_>)> {
    model
        .iter()
        .map(|(name, tensor)| (name.as_str(), Entry::Plain(tensor)))
        .collect()
}

fn stored(entries: &[(&str, Entry<'_>)]) -> Vec<u8> {
    saved(entries, CompressionMethod::Stored)
}

/// A model of matrices, vectors and a counter.
fn model(seed: u64) -> Model {
    let mut random = Random::new(seed);
    let shapes: [(&str, Dtype, &[usize]); 4] = [
        ("a.weight", Dtype::F32, &[33, 20]),
        ("b.weight", Dtype::BF16, &[200, 300]),
        ("c.bias", Dtype::F64, &[17]),
        ("d.weight", Dtype::F32, &[8, 5]),
    ];
    let mut model: Model = shapes
        .iter()
        .map(|(name, dtype, shape)| {
            let values = random.gaussian(shape.iter().product());
            ((*name).to_owned(), Tensor::rounded(*dtype, shape, &values))
        })
        .collect();
    model.insert(
        "n.num_batches_tracked".into(),
        Tensor::from_bytes(Dtype::I64, &[], vec![3; 8]),
    );
    model
}

fn merge(paths: &[PathBuf], out: &Path) -> Model {
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    run(&recipe("karcher", &paths, ""), out, &PLENTY).expect("they can be merged");
    files::read_model(&out.join("model.safetensors"))
}

/// The merge of models 1 and 2 from safetensors folders.
fn wanted(folder: &Path) -> Model {
    let paths: Vec<PathBuf> = (1..3)
        .map(|seed| folder.join(format!("safe{seed}")))
        .collect();
    paths
        .iter()
        .zip(1..)
        .for_each(|(path, seed)| files::write_model(path, &model(seed), 1));
    merge(&paths, &folder.join("wanted"))
}

/// Writes model `seed` as a sharded PyTorch folder.
fn write_sharded(folder: &Path, model: &Model, indexed: bool) {
    fs::create_dir_all(folder).expect("a folder");
    let entries: Vec<(&String, &Tensor)> = model.iter().collect();
    let mut map = serde_json::Map::new();
    for (number, part) in entries.chunks(3).enumerate() {
        let name = format!(
            "pytorch_model-{:05}-of-{:05}.bin",
            number + 1,
            entries.len().div_ceil(3)
        );
        let part: Vec<_> = part
            .iter()
            .map(|(name, tensor)| (name.as_str(), Entry::Plain(tensor)))
            .collect();
        fs::write(folder.join(&name), stored(&part)).expect("a shard");
        map.extend(
            part.iter()
                .map(|(tensor, _)| ((*tensor).to_owned(), json!(name))),
        );
    }
    if indexed {
        let index = json!({"metadata": {}, "weight_map": map});
        fs::write(
            folder.join("pytorch_model.bin.index.json"),
            index.to_string(),
        )
        .expect("an index");
    }
}

#[test]
fn files_and_folders_of_pytorch_merge_like_safetensors() {
    let folder = TempDir::new().expect("a temporary folder");
    let wanted = wanted(folder.path());
    let at = |name: &str| folder.path().join(name);
    fs::write(at("one.bin"), stored(&plain(&model(1)))).expect("a file");
    fs::write(at("one.unusual"), stored(&plain(&model(1)))).expect("a file");
    fs::create_dir(at("single")).expect("a folder");
    fs::write(at("single/pytorch_model.bin"), stored(&plain(&model(2)))).expect("a file");
    fs::write(at("single/training_args.bin"), "no weights").expect("a file");
    fs::write(at("single/optimizer.pt"), "no weights").expect("a file");
    fs::create_dir(at("other")).expect("a folder");
    fs::write(at("other/weights.pth"), stored(&plain(&model(2)))).expect("a file");
    fs::write(at("other/scheduler.pt"), "no weights").expect("a file");
    write_sharded(&at("indexed"), &model(1), true);
    write_sharded(&at("loose"), &model(2), false);
    let pairs = [
        ("one.bin", "single"),
        ("one.unusual", "other"),
        ("indexed", "loose"),
        ("safe1", "loose"),
        ("indexed/pytorch_model.bin.index.json", "safe2"),
    ];
    for (number, (first, second)) in pairs.into_iter().enumerate() {
        let out = merge(&[at(first), at(second)], &at(&format!("out{number}")));
        assert_eq!(out, wanted, "{first} {second}");
    }
}

#[test]
fn tensors_in_order_are_read_in_place_and_others_through_a_conversion() {
    let folder = TempDir::new().expect("a temporary folder");
    let wanted = wanted(folder.path());
    let (one, two) = (model(1), model(2));
    let turned = |model| -> Vec<(&str, Entry<'_>)> {
        let turn = |(name, entry)| match entry {
            Entry::Plain(tensor) if tensor.shape.len() == 2 => (name, Entry::Transposed(tensor)),
            entry => (name, entry),
        };
        plain(model).into_iter().map(turn).collect()
    };
    let cases = [
        (
            "stored",
            stored(&plain(&one)),
            stored(&plain(&two)),
            Container::Torch,
        ),
        (
            "turned",
            stored(&turned(&one)),
            stored(&turned(&two)),
            Container::TorchConverted,
        ),
        (
            "deflated",
            saved(&plain(&one), CompressionMethod::Deflated),
            saved(&plain(&two), CompressionMethod::Deflated),
            Container::TorchConverted,
        ),
    ];
    for (name, first, second, container) in cases {
        let paths = [1, 2].map(|number| folder.path().join(format!("{name}{number}.pt")));
        fs::write(&paths[0], first).expect("a file");
        fs::write(&paths[1], second).expect("a file");
        let checkpoint = Checkpoint::open(&paths[0]).expect("it opens");
        assert_eq!(checkpoint.files()[0].container, container, "{name}");
        let alone = checkpoint
            .open_file(0, &SourceOptions::default())
            .expect("it opens");
        assert_eq!(
            alone.load(0..8).is_ok(),
            container == Container::Torch,
            "{name}: a conversion needs a folder"
        );
        let out = folder.path().join(name);
        assert_eq!(merge(&paths, &out), wanted, "{name}");
        let left = fs::read_dir(&out)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(
            left,
            [
                "README.md",
                "mergekit_config.yml",
                "model.safetensors",
                "thalweg.json"
            ],
            "{name}: the converted files are gone"
        );
    }
}

#[test]
fn a_conversion_is_done_once_and_found_again() {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("model.pt");
    let model = model(1);
    fs::write(
        &path,
        stored(&[("w", Entry::Transposed(&model["a.weight"]))]),
    )
    .expect("a file");
    let scratch = folder.path().join("scratch");
    fs::create_dir(&scratch).expect("a folder");
    let checkpoint = Checkpoint::open(&path).expect("it opens");
    let entry = &checkpoint.tensors()["w"];
    for io in [Io::Map, Io::Positioned, Io::Map] {
        let options = SourceOptions {
            io,
            scratch: Some(scratch.clone()),
        };
        let source = checkpoint.open_file(0, &options).expect("it opens");
        assert_eq!(
            *source.load(entry.bytes.clone()).expect("bytes"),
            model["a.weight"].bytes
        );
        let copies = || {
            fs::read_dir(&scratch)
                .expect("a folder")
                .map(|entry| entry.expect("an entry").path())
        };
        let copies: Vec<_> = copies()
            .filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
            .collect();
        let [copy] = copies.as_slice() else {
            panic!("{} copies", copies.len())
        };
        // Half a copy, as a crash of the machine may leave it, is made again.
        let whole = fs::read(copy).expect("the copy");
        assert_eq!(whole.len() as u64, source.len());
        fs::write(copy, &whole[..whole.len() / 2]).expect("the copy");
    }
    let options = SourceOptions {
        io: Io::Map,
        scratch: Some(scratch),
    };
    let source = checkpoint.open_file(0, &options).expect("it opens");
    fs::write(
        &path,
        stored(&[("w", Entry::Transposed(&model["d.weight"]))]),
    )
    .expect("a file");
    assert!(
        source
            .load(0..8)
            .expect_err("another file")
            .to_string()
            .contains("changed")
    );
}

#[test]
fn safetensors_are_preferred_to_pytorch_files_beside_them() {
    let folder = TempDir::new().expect("a temporary folder");
    files::write_model(folder.path(), &model(1), 1);
    write_sharded(folder.path(), &model(2), true);
    let checkpoint = Checkpoint::open(folder.path()).expect("it opens");
    assert_eq!(
        checkpoint
            .files()
            .iter()
            .map(|file| file.name.as_str())
            .collect::<Vec<_>>(),
        ["model.safetensors"]
    );
}

#[test]
fn folders_that_do_not_tell_what_to_take_are_refused() {
    let folder = TempDir::new().expect("a temporary folder");
    let refused = |parts: &[&str]| {
        let error = Checkpoint::open(folder.path()).expect_err("refused");
        assert_eq!(error.kind(), Kind::Input);
        let text = format!("{error} {}", error.hint().unwrap_or_default());
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    };
    let write = |name: &str| {
        fs::write(folder.path().join(name), stored(&plain(&model(1)))).expect("a file")
    };
    write("training_args.bin");
    refused(&["no safetensors file"]);
    write("adapter_model.bin");
    refused(&["holds an adapter"]);
    write("first.pt");
    write("second.pt");
    refused(&["several PyTorch files: first.pt, second.pt", "name one"]);
    write("pytorch_model-00001-of-00003.bin");
    refused(&[
        "1 of 3 shards are there",
        "pytorch_model-00002-of-00003.bin",
    ]);
    let index = |shard: &str| {
        let text = json!({"weight_map": {"a.weight": shard}}).to_string();
        fs::write(folder.path().join("pytorch_model.bin.index.json"), text).expect("an index");
    };
    index("../first.pt");
    refused(&["not a plain file name"]);
    index("model.safetensors");
    refused(&["not a PyTorch file"]);
    index("pytorch_model-00002-of-00003.bin");
    refused(&["0 of 1 shards are there"]);
    fs::write(folder.path().join("first.pt"), "weights").expect("a file");
    let error = Checkpoint::open(&folder.path().join("first.pt")).expect_err("no weights");
    assert!(
        error
            .to_string()
            .contains("neither a zip archive nor a pickle"),
        "{error}"
    );
}

#[test]
fn a_safetensors_header_that_begins_like_a_pickle_is_none() {
    // A header of 0x280 bytes: its length begins with the first two bytes of a pickle.
    let mut header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_vec();
    header.resize(0x280, b' ');
    let bytes = [&0x280_u64.to_le_bytes()[..], &header, &[0; 4]].concat();
    let folder = TempDir::new().expect("a temporary folder");
    for name in ["model.safetensors", "model.bin", "model"] {
        let path = folder.path().join(name);
        fs::write(&path, &bytes).expect("a file");
        assert_eq!(
            Checkpoint::open(&path).expect("it opens").files()[0].container,
            Container::Plain,
            "{name}"
        );
    }
}

#[test]
fn a_tied_head_is_left_out_when_the_config_ties_it_and_kept_otherwise() {
    let folder = TempDir::new().expect("a temporary folder");
    let embeddings = model(1)["a.weight"].clone();
    let bytes = stored(&[
        ("model.embed_tokens.weight", Entry::Plain(&embeddings)),
        (
            "lm_head.weight",
            Entry::Tied("model.embed_tokens.weight", &embeddings),
        ),
        (
            "other.weight",
            Entry::Tied("model.embed_tokens.weight", &embeddings),
        ),
    ]);
    let head_first = stored(&[
        ("lm_head.weight", Entry::Plain(&embeddings)),
        (
            "model.embed_tokens.weight",
            Entry::Tied("lm_head.weight", &embeddings),
        ),
        ("other.weight", Entry::Tied("lm_head.weight", &embeddings)),
    ]);
    for bytes in [bytes, head_first] {
        fs::write(folder.path().join("pytorch_model.bin"), bytes).expect("a file");
        for (config, kept) in [
            ("{\"tie_word_embeddings\": true}", false),
            ("{\"text_config\": {\"tie_word_embeddings\": true}}", false),
            ("{\"tie_word_embeddings\": false}", true),
            ("{}", true),
        ] {
            fs::write(folder.path().join("config.json"), config).expect("a config");
            let checkpoint = Checkpoint::open(folder.path()).expect("it opens");
            assert!(
                checkpoint
                    .tensors()
                    .contains_key("model.embed_tokens.weight")
            );
            assert!(checkpoint.tensors().contains_key("other.weight"));
            assert_eq!(
                checkpoint.tensors().contains_key("lm_head.weight"),
                kept,
                "{config}"
            );
            let planned = plan(&recipe("karcher", &[folder.path()], ""), &PLENTY).expect("a plan");
            assert_eq!(planned.dropped.len(), usize::from(!kept));
            assert!(
                planned
                    .dropped
                    .iter()
                    .all(|dropped| dropped.reason.contains("model.embed_tokens.weight"))
            );
        }
    }
    let elsewhere = tempfile::tempdir().expect("a folder");
    let out = elsewhere.path().join("out");
    let both = run(&recipe("karcher", &[folder.path()], ""), &out, &PLENTY)
        .expect("tied tensors merge alike");
    assert_eq!(both.tensors, 3);
    let out = files::read_model(&out.join("model.safetensors"));
    assert_eq!(out["lm_head.weight"], out["model.embed_tokens.weight"]);
}

#[test]
fn entries_that_are_no_tensors_are_told() {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("model.pt");
    let tensor = model(1)["a.weight"].clone();
    let entries = [("w", Entry::Plain(&tensor)), ("epoch", Entry::Number(7))];
    fs::write(&path, stored(&entries)).expect("a file");
    let report = run(
        &recipe("karcher", &[&path], ""),
        &folder.path().join("out"),
        &PLENTY,
    )
    .expect("a merge");
    let told = |warning: &String| warning.contains("model.pt") && warning.contains("`epoch`");
    assert!(report.warnings.iter().any(told), "{:?}", report.warnings);
}

#[test]
fn one_of_several_state_dicts_is_chosen_by_the_recipe() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/torch/two.pt");
    let folder = TempDir::new().expect("a temporary folder");
    let error = plan(&recipe("karcher", &[&path], ""), &PLENTY)
        .err()
        .expect("which one is meant?");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("`state_dict_key: KEY`")),
        "{error}"
    );
    let out = folder.path().join("out");
    run(
        &recipe("karcher", &[&path], "state_dict_key: ema"),
        &out,
        &PLENTY,
    )
    .expect("it is told");
    let options = OpenOptions {
        state_dict_key: Some("ema".to_owned()),
        ..OpenOptions::default()
    };
    let names: Vec<_> = Checkpoint::open_with(&path, &options)
        .expect("it opens")
        .tensors()
        .keys()
        .cloned()
        .collect();
    let mut written: Vec<_> = files::read_model(&out.join("model.safetensors"))
        .into_keys()
        .collect();
    written.sort();
    let mut names = names;
    names.sort();
    assert_eq!(written, names);
}

#[test]
fn every_fixture_reads_as_its_safetensors_twin() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/torch");
    let scratch = TempDir::new().expect("a temporary folder");
    for (name, twin) in [
        ("dict.pt", "dict"),
        ("deflated.pt", "dict"),
        ("legacy.pt", "dict"),
        ("legacy-protocol5.pt", "dict"),
        ("module.pt", "module"),
        ("nested.pt", "nested"),
        ("nested-legacy.pt", "nested"),
        ("newer.pt", "newer"),
        ("parameters.pt", "parameters"),
    ] {
        let checkpoint = Checkpoint::open(&data.join(name)).expect("it opens");
        let options = SourceOptions {
            io: Io::Map,
            scratch: Some(scratch.path().to_owned()),
        };
        let source = checkpoint.open_file(0, &options).expect("it opens");
        let wanted = fs::read(data.join(format!("{twin}.safetensors"))).expect("the twin");
        let wanted = safetensors::SafeTensors::deserialize(&wanted).expect("the twin is valid");
        assert_eq!(checkpoint.tensors().len(), wanted.len(), "{name}");
        for (tensor, entry) in checkpoint.tensors() {
            let bytes = source.load(entry.bytes.clone()).expect("bytes");
            assert_eq!(
                *bytes,
                *wanted.tensor(tensor).expect("the same names").data(),
                "{name}: {tensor}"
            );
        }
    }
    for name in [
        "hostile.pt",
        "hostile-legacy.pt",
        "quantized.pt",
        "sparse.pt",
        "script.pt",
    ] {
        assert_eq!(
            Checkpoint::open(&data.join(name))
                .expect_err("refused")
                .kind(),
            Kind::Input,
            "{name}"
        );
    }
}
