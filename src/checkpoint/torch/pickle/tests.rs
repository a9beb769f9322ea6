//! The stack machine on pickles written by hand.

use proptest::prelude::*;

use super::*;

fn parse(bytes: &[u8]) -> Result<(Graph, Id), String> {
    read(&mut Input::new(bytes, 1 << 30)).map_err(|fault| fault.cause().to_owned())
}

fn refusal(bytes: &[u8]) -> String {
    parse(bytes).expect_err("the pickle is refused")
}

#[test]
fn integers_of_every_width_are_read() {
    for (bytes, wanted) in [
        (&b"K\xff."[..], 255),
        (b"M\x00\x01.", 256),
        (b"J\xff\xff\xff\xff.", -1),
        (b"\x8a\x00.", 0),
        (b"\x8a\x01\x80.", -128),
        (b"\x8a\x02\xff\x00.", 255),
        (b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f.", i64::MAX),
        (b"\x8b\x01\x00\x00\x00\x05.", 5),
    ] {
        let (graph, root) = parse(bytes).expect("the pickle is whole");
        assert_eq!(graph.int(root), Some(wanted), "{bytes:?}");
    }
    let (graph, root) = parse(b"\x8a\x09\0\0\0\0\0\0\0\0\x01.").expect("the pickle is whole");
    assert!(matches!(graph.node(root), Node::Long(bytes) if bytes.len() == 9));
}

#[test]
fn containers_are_filled_through_the_memo_as_well() {
    // {'a': [1, 2], 'b': <the same list>}, the list appended to after it was put in.
    let pickle =
        b"\x80\x02}q\0(X\x01\0\0\0a]q\x01X\x01\0\0\0bh\x01uh\x01K\x01a0h\x01(K\x01K\x02e0.";
    let (graph, root) = parse(pickle).expect("the pickle is whole");
    let entries = graph.mapping(root).expect("a dict");
    let names: Vec<_> = entries.iter().map(|(key, _)| graph.text(*key)).collect();
    assert_eq!(names, [Some("a"), Some("b")]);
    assert_eq!(entries[0].1, entries[1].1);
    assert_eq!(graph.sequence(entries[0].1).map(<[Id]>::len), Some(3));
}

#[test]
fn calls_are_recorded_with_arguments_state_and_items() {
    let pickle = b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\0\0\0kK\x07u}(X\x01\0\0\0mK\x01ub.";
    let (graph, root) = parse(pickle).expect("the pickle is whole");
    let entries = graph.mapping(root).expect("an OrderedDict");
    assert_eq!(entries.len(), 1);
    assert_eq!(graph.int(entries[0].1), Some(7));
    assert_eq!(
        graph.attributes(root).map(|attributes| attributes.len()),
        Some(1)
    );
    assert_eq!(
        graph.describe(root),
        "an object of class collections.OrderedDict"
    );
}

#[test]
fn an_ordered_dict_of_python_2_has_its_pairs_as_arguments() {
    let pickle = b"\x80\x02ccollections\nOrderedDict\n](]K\x01a]K\x02ae\x85R.";
    let (graph, root) = parse(pickle).expect("the pickle is whole");
    // Each pair is a list of one item here, so it is not a pair.
    assert_eq!(graph.mapping(root).map(|entries| entries.len()), Some(0));
    let pickle = b"\x80\x02ccollections\nOrderedDict\n](](U\x01aK\x01e](U\x01bK\x02ee\x85R.";
    let (graph, root) = parse(pickle).expect("the pickle is whole");
    let entries = graph.mapping(root).expect("an OrderedDict");
    assert_eq!(
        entries
            .iter()
            .map(|(key, _)| graph.text(*key))
            .collect::<Vec<_>>(),
        [Some("a"), Some("b")]
    );
}

#[test]
fn code_is_refused_in_every_way_to_name_it() {
    for pickle in [
        &b"cos\nsystem\n."[..],
        b"\x8c\x02os\x8c\x06system\x93.",
        b"(ios\nsystem\n.",
        b"X\x05\0\0\0posixX\x06\0\0\0system\x93.",
    ] {
        assert!(
            refusal(pickle).contains("system, which runs code"),
            "{pickle:?}"
        );
    }
}

#[test]
fn malformed_pickles_are_refused_with_a_reason() {
    for (pickle, words) in [
        (&b""[..], "ends early"),
        (b"N", "ends early"),
        (b".", "more values than it made"),
        (b"(.", "more values than it made"),
        (b"N(.", "more values than it made"),
        (b"N(\x85.", "more values"),
        (b"t.", "never opened"),
        (b"h\x05.", "memo entry 5"),
        (b"}(K\x01u.", "without a value"),
        (b"]K\x01K\x02s.", "fills a list"),
        (b"]K\x01K\x02\x86b.", "fills a list"),
        (b"K\x01K\x02a.", "fills the int 1"),
        (b"X\xff\xff\xff\xffab", "longer than"),
        (b"X\x10\0\0\0ab", "ends early"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffab", "longer than"),
        (b"X\x01\0\0\0\xff.", "not UTF-8"),
        (b"cmodule", "no end"),
        (b"I01\n.", "protocol 0"),
        (b"\x80\x06N.", "protocol 6"),
        (b"\x82\x01.", "extension registry"),
        (b"\x97.", "buffers"),
        (b"?", "no opcode"),
        (b"K\x01K\x02\x93.", "not text"),
        (b"(o.", "no class"),
    ] {
        let cause = refusal(pickle);
        assert!(cause.contains(words), "{pickle:?}: {cause}");
    }
}

#[test]
fn values_and_stack_are_capped() {
    let nulls = vec![b'N'; MAX_STACK + 1];
    assert!(refusal(&nulls).contains("on its stack"));
    let marks = vec![b'('; MAX_STACK + 1];
    assert!(refusal(&marks).contains("nests deeper"));
    let values = b"N0".repeat(MAX_NODES + 1);
    assert!(refusal(&values).contains("more than 8388608 values"));
}

#[test]
fn a_cyclic_value_is_described_without_following_it() {
    let (graph, root) = parse(b"]q\0h\0a.").expect("the pickle is whole");
    assert_eq!(graph.sequence(root), Some(&[root][..]));
    assert_eq!(graph.describe(root), "a list");
}

/// Opcodes and small arguments, so that programs go far before they fail.
fn program() -> impl Strategy<Value = Vec<u8>> {
    const OPS: &[u8] =
        b"NNN()t]}aesu012KKq\0q\x01h\0h\x01RbQoldX\x01\0\0\0a\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x81\
        ccollections\nOrderedDict\n";
    prop::collection::vec(prop::sample::select(OPS.to_vec()), 0..200).prop_map(|mut bytes| {
        bytes.push(b'.');
        bytes
    })
}

proptest! {
    #[test]
    fn no_program_panics(bytes in program()) {
        if let Ok((graph, root)) = parse(&bytes) {
            let _ = (graph.describe(root), graph.mapping(root), graph.attributes(root), graph.sequence(root));
        }
    }
}
