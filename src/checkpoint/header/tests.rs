//! Headers written by hand, and headers compared with the reference.

use proptest::prelude::*;

use super::*;

fn read(json: &str, data_bytes: u64) -> Result<Header> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    let len = bytes.len() as u64 + data_bytes;
    Header::read(&*bytes, Some(len), Path::new("x.safetensors"), 7, u64::MAX)
}

#[test]
fn tensors_come_in_the_order_of_their_data_with_ranges_of_the_file() {
    let json = r#"{"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[3,15]},"__metadata__":{"z":"1","a":"2"},
        "a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"c":{"dtype":"F4","shape":[0],"data_offsets":[15,15]}}"#;
    let header = read(json, 15).expect("valid header");
    let start = 8 + json.len() as u64;
    let names: Vec<_> = header
        .tensors
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["a", "b", "c"]);
    let entry = TensorEntry {
        dtype: Dtype::BF16,
        shape: vec![2, 3],
        file: 7,
        bytes: start + 3..start + 15,
    };
    assert_eq!(header.tensors[1].1, entry);
    assert_eq!(header.metadata.keys().collect::<Vec<_>>(), ["z", "a"]);
    assert_eq!(header.data_len, start + 15);
}

#[test]
fn every_dtype_of_the_reference_is_known_and_of_the_same_size() {
    for dtype in Dtype::ALL {
        let reader = StrDeserializer::<de::value::Error>::new(dtype.name());
        let reference =
            safetensors::Dtype::deserialize(reader).expect("the reference knows the name");
        assert_eq!(reference.bitsize() as u64, dtype.bits(), "{dtype}");
    }
}

#[test]
fn names_are_escaped_and_cut_for_messages() {
    assert_eq!(shown("a\u{1b}[2Jb"), "`a\\u{1b}[2Jb`");
    assert_eq!(shown(&"x".repeat(81)).chars().count(), 83);
}

proptest! {
    #[test]
    fn no_header_makes_the_reader_panic(json in r#"\{("[a-c]":\{"dtype":"(F32|F4|U8|X)","shape":\[[0-9,]{0,30}\],"data_offsets":\[[0-9]{1,20},[0-9]{1,20}\]\},?){0,3}\}"#, len: u64) {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        let _ = Header::read(&*bytes, Some(len), Path::new("x"), 0, u64::MAX);
        let _ = Header::read(&*bytes, None, Path::new("x"), 0, u64::MAX);
    }

    #[test]
    fn accepted_headers_are_accepted_by_the_reference(
        shapes in prop::collection::vec(prop::collection::vec(0u64..5, 0..4), 0..5),
        picks in prop::collection::vec(0usize..22, 5), shift in 0u64..2,
    ) {
        let mut end = 0;
        let entries: Vec<_> = shapes.iter().zip(picks).enumerate().map(|(i, (shape, pick))| {
            let dtype = Dtype::ALL[pick];
            let start = end + if i == 1 { shift } else { 0 };
            end = start + shape.iter().product::<u64>() * dtype.bits() / 8;
            format!(r#""t{i}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
        }).collect();
        let json = format!("{{{}}}", entries.join(","));
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend(json.as_bytes());
        file.resize(file.len() + usize::try_from(end).expect("small"), 0);
        let reference = safetensors::SafeTensors::read_metadata(&file);
        let ours = Header::read(&*file, Some(file.len() as u64), Path::new("x"), 0, u64::MAX);
        prop_assert_eq!(ours.is_ok(), reference.is_ok(), "{}", json);
    }
}
