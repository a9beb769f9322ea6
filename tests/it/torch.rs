//! Real torch files, read against what torch said they hold and against another reader of the
//! format.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use pytorch_reader::PytorchReader;
use safetensors::SafeTensors;
use tempfile::TempDir;
use thalweg::Kind;
use thalweg::checkpoint::torch::TorchFile;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/torch")
        .join(name)
}

fn open(name: &str) -> TorchFile {
    TorchFile::open(&fixture(name), None).expect("a good checkpoint opens")
}

fn refusal(name: &str, key: Option<&str>) -> String {
    let error =
        TorchFile::open(&fixture(name), key).expect_err("a refused checkpoint does not open");
    assert_eq!(error.kind(), Kind::Input);
    format!("{error}; {}", error.hint().unwrap_or_default())
}

/// Converts a checkpoint and returns the safetensors file.
fn converted(file: &TorchFile) -> Vec<u8> {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let dst = folder.path().join("model.safetensors");
    let bytes = file.convert(&dst).expect("an open checkpoint converts");
    let content = fs::read(&dst).expect("the converted file is there");
    assert_eq!(content.len() as u64, bytes);
    let left: Vec<_> = fs::read_dir(folder.path())
        .expect("the folder is there")
        .collect();
    assert_eq!(left.len(), 1, "nothing is left beside the converted file");
    content
}

/// Requires that both hold the same tensors, in the given order.
fn assert_holds(file: &TorchFile, expected: &str) {
    let wanted = fs::read(fixture(expected)).expect("the fixture is there");
    let wanted = SafeTensors::deserialize(&wanted).expect("the fixture is valid");
    let found = converted(file);
    let found = SafeTensors::deserialize(&found).expect("what is written is valid");
    assert_eq!(found.len(), wanted.len());
    for (name, wanted) in wanted.iter() {
        let found = found.tensor(name).expect("every tensor is converted");
        assert_eq!(
            (found.dtype(), found.shape()),
            (wanted.dtype(), wanted.shape()),
            "{name}"
        );
        assert_eq!(found.data(), wanted.data(), "{name}");
    }
}

#[test]
fn twenty_tensors_are_read_from_every_container_and_protocol() {
    for name in [
        "dict.pt",
        "legacy.pt",
        "protocol4.pt",
        "legacy-protocol5.pt",
        "deflated.pt",
    ] {
        let file = open(name);
        assert_eq!(file.tensors().len(), 20, "{name}");
        assert!(file.needs_conversion());
        assert_holds(&file, "dict.safetensors");
    }
}

#[test]
fn tensors_keep_the_order_of_the_state_dict_through_conversion() {
    let file = open("dict.pt");
    let names: Vec<_> = file
        .tensors()
        .iter()
        .map(|tensor| tensor.name.as_str())
        .collect();
    assert_eq!(names[..3], ["bf16", "f16", "f32"]);
    assert_eq!(names[17..], ["permuted", "scalar", "empty"]);
    let bytes = converted(&file);
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("what is written is valid");
    assert_eq!(header.offset_keys().len(), 20);
    let mut starts: Vec<_> = names
        .iter()
        .map(|name| header.info(name).expect("it is there").data_offsets)
        .collect();
    assert!(starts.is_sorted());
    starts.dedup();
    assert_eq!(starts.len(), 20);
}

#[test]
fn byte_ranges_of_contiguous_tensors_hold_their_elements() {
    for name in ["dict.pt", "legacy.pt", "protocol4.pt"] {
        let content = fs::read(fixture(name)).expect("the fixture is there");
        let wanted = fs::read(fixture("dict.safetensors")).expect("the fixture is there");
        let wanted = SafeTensors::deserialize(&wanted).expect("the fixture is valid");
        let file = open(name);
        let mut ranged: Vec<_> = Vec::new();
        for (tensor, range) in file.contiguous() {
            let range = usize::try_from(range.start).expect("small")
                ..usize::try_from(range.end).expect("small");
            assert_eq!(
                &content[range],
                wanted.tensor(&tensor.name).expect("it is there").data(),
                "{}",
                tensor.name
            );
            ranged.push(tensor.name.as_str());
        }
        let strided: Vec<_> = file
            .tensors()
            .iter()
            .map(|tensor| tensor.name.as_str())
            .filter(|name| !ranged.contains(name))
            .collect();
        assert_eq!(
            strided,
            ["transposed", "slice", "step", "expanded", "permuted"],
            "{name}"
        );
    }
}

#[test]
fn compressed_members_leave_only_empty_tensors_readable_in_place() {
    let file = open("deflated.pt");
    let ranged: Vec<_> = file
        .contiguous()
        .map(|(tensor, range)| (tensor.name.as_str(), range))
        .collect();
    assert_eq!(ranged, [("empty", 0..0)]);
}

#[test]
fn tied_tensors_are_reported_and_views_of_one_storage_are_not() {
    for name in ["dict.pt", "legacy.pt", "deflated.pt"] {
        let file = open(name);
        let tied: Vec<_> = file
            .tensors()
            .iter()
            .filter_map(|tensor| {
                Some((
                    tensor.name.as_str(),
                    file.tensors()[tensor.alias_of?].name.as_str(),
                ))
            })
            .collect();
        assert_eq!(tied, [("head.weight", "embed.weight")], "{name}");
    }
}

#[test]
fn another_reader_finds_the_same_tensors() {
    for (name, key) in [
        ("dict.pt", None),
        ("legacy.pt", None),
        ("protocol4.pt", None),
        ("parameters.pt", None),
        ("nested.pt", Some("model_state_dict")),
    ] {
        let bytes = converted(&open(name));
        let ours = SafeTensors::deserialize(&bytes).expect("what is written is valid");
        let theirs = match key {
            Some(key) => PytorchReader::with_top_level_key(fixture(name), key),
            None => PytorchReader::new(fixture(name)),
        };
        let theirs = theirs.expect("the other reader reads the fixture");
        assert_eq!(theirs.len(), ours.len(), "{name}");
        for (key, tensor) in theirs.tensors() {
            let our = ours.tensor(key).expect("both have it");
            let data = tensor.read().expect("the other reader reads the tensor");
            assert_eq!(our.shape(), tensor.shape(), "{name} {key}");
            assert_eq!(our.data(), data, "{name} {key}");
        }
    }
}

#[test]
fn parameters_and_tensors_with_attributes_are_tensors() {
    let file = open("parameters.pt");
    assert!(!file.needs_conversion());
    assert_holds(&file, "parameters.safetensors");
}

#[test]
fn a_state_dict_is_found_beside_optimizer_settings_and_counters() {
    for name in ["nested.pt", "nested-legacy.pt"] {
        assert_holds(&open(name), "nested.safetensors");
        let named =
            TorchFile::open(&fixture(name), Some("model_state_dict")).expect("the key is there");
        assert_holds(&named, "nested.safetensors");
        let refused = refusal(name, Some("weights"));
        assert!(
            refused.contains("no key \"weights\"") && refused.contains("\"model_state_dict\""),
            "{refused}"
        );
        let refused = refusal(name, Some("args"));
        assert!(refused.contains("argparse.Namespace"), "{refused}");
    }
}

#[test]
fn several_state_dicts_need_a_key() {
    let refused = refusal("two.pt", None);
    assert!(
        refused.contains("2 state dicts: \"state_dict\", \"ema\""),
        "{refused}"
    );
    assert!(refused.contains("`state_dict_key: KEY`"), "{refused}");
    let ema = TorchFile::open(&fixture("two.pt"), Some("ema")).expect("the key is there");
    assert_eq!(ema.tensors().len(), 1);
}

#[test]
fn a_pickled_module_of_an_unknown_package_is_read_like_its_state_dict() {
    let file = open("module.pt");
    assert_holds(&file, "module.safetensors");
    let names: Vec<_> = file
        .tensors()
        .iter()
        .map(|tensor| tensor.name.as_str())
        .collect();
    assert_eq!(names[..3], ["0.weight", "0.bias", "1.0.weight"]);
    assert_eq!(names.last(), Some(&"1.0.num_batches_tracked"));
}

#[test]
fn objects_of_unknown_classes_matter_only_where_a_tensor_should_be() {
    assert_holds(&open("opaque-beside.pt"), "opaque-beside.safetensors");
    let refused = refusal("opaque-value.pt", None);
    assert!(
        refused.contains("\"scale\"") && refused.contains("faraway.Scale"),
        "{refused}"
    );
}

#[test]
fn a_pickle_that_would_run_code_is_refused_by_name() {
    for name in ["hostile.pt", "hostile-legacy.pt"] {
        let refused = refusal(name, None);
        assert!(refused.contains("posix.system"), "{refused}");
    }
    assert!(!Path::new("thalweg-was-here").exists());
}

#[test]
fn tensors_that_are_no_plain_arrays_are_refused_by_name() {
    for (name, words) in [
        ("quantized.pt", "quantized tensor"),
        ("sparse.pt", "sparse tensor"),
        ("complex128.pt", "ComplexDoubleStorage"),
        ("script.pt", "TorchScript"),
    ] {
        let refused = refusal(name, None);
        assert!(refused.contains(words), "{name}: {refused}");
    }
}

#[test]
fn newer_element_types_and_complex_numbers_are_carried() {
    assert_holds(&open("newer.pt"), "newer.safetensors");
    assert_holds(&open("complex.pt"), "complex.safetensors");
}

#[test]
fn other_formats_are_refused_by_name() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let path = folder.path().join("model.bin");
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    for (content, words) in [
        (&b""[..], "neither a zip archive nor a pickle"),
        (
            b"\x08\0\0\0\0\0\0\0{}      ",
            "neither a zip archive nor a pickle",
        ),
        (&tar, "tar archive"),
        (b"\x80\x02}q\0.", "plain pickle"),
    ] {
        fs::write(&path, content).expect("the file can be written");
        let error = TorchFile::open(&path, None).expect_err("it is no checkpoint");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.kind(), Kind::Input);
    }
}

#[test]
fn conversion_replaces_no_file() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let dst = folder.path().join("model.safetensors");
    fs::write(&dst, "mine").expect("the file can be written");
    let error = open("dict.pt")
        .convert(&dst)
        .expect_err("the name is taken");
    assert_eq!(error.kind(), Kind::Occupied);
    assert_eq!(fs::read(&dst).expect("it is still there"), b"mine");
}

#[test]
fn a_compressed_storage_that_was_damaged_fails_and_leaves_nothing() {
    let mut bytes = fs::read(fixture("deflated.pt")).expect("the fixture is there");
    let name = b"a folder/data/0";
    let at = bytes
        .windows(name.len())
        .position(|window| window == name)
        .expect("the first member is there");
    bytes[at + name.len() + 5] ^= 0x20;
    let folder = TempDir::new().expect("a temporary folder can be made");
    let path = folder.path().join("damaged.pt");
    fs::write(&path, bytes).expect("the file can be written");
    let file = TorchFile::open(&path, None).expect("the index is whole");
    file.convert(&folder.path().join("out"))
        .expect_err("the checksum does not hold");
    let left: Vec<_> = fs::read_dir(folder.path())
        .expect("the folder is there")
        .collect();
    assert_eq!(left.len(), 1);
}

/// Opens damaged bytes and, when that succeeds, reads all of it: anything but a panic is right.
fn exercise(content: &[u8]) {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let path = folder.path().join("damaged.pt");
    fs::File::create(&path)
        .and_then(|mut file| file.write_all(content))
        .expect("the file can be written");
    for key in [None, Some("."), Some("model_state_dict")] {
        match TorchFile::open(&path, key) {
            Ok(file) => {
                for (tensor, range) in file.contiguous() {
                    assert_eq!(range.end - range.start, tensor.bytes());
                    assert!(
                        range.end <= content.len() as u64,
                        "{} ends beyond the file",
                        tensor.name
                    );
                }
                if file
                    .tensors()
                    .iter()
                    .map(|tensor| tensor.bytes())
                    .sum::<u64>()
                    < 1 << 20
                {
                    let dst = folder.path().join("out");
                    let written = file.convert(&dst).is_ok();
                    assert_eq!(written, dst.exists());
                    if written {
                        fs::remove_file(dst).expect("it was written");
                    }
                }
            }
            Err(error) => assert!(matches!(error.kind(), Kind::Input | Kind::Io), "{error}"),
        }
    }
}

const DAMAGED: [&str; 8] = [
    "dict.pt",
    "legacy.pt",
    "legacy-protocol5.pt",
    "deflated.pt",
    "nested.pt",
    "module.pt",
    "newer.pt",
    "nested-legacy.pt",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_never_panic(
        which in 0..DAMAGED.len(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut content = fs::read(fixture(DAMAGED[which])).expect("the fixture is there");
        for (at, byte) in flips {
            let at = at.index(content.len());
            content[at] = byte;
        }
        exercise(&content);
    }

    #[test]
    fn cut_and_spliced_files_never_panic(
        which in 0..DAMAGED.len(),
        cut in any::<prop::sample::Index>(),
        length in 0..64_usize,
        truncate in any::<bool>(),
    ) {
        let mut content = fs::read(fixture(DAMAGED[which])).expect("the fixture is there");
        let at = cut.index(content.len());
        if truncate {
            content.truncate(at);
        } else {
            content.drain(at..(at + length).min(content.len()));
        }
        exercise(&content);
    }
}
