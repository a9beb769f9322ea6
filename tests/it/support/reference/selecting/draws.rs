//! Random words as a function of seed, model, tensor and place.

/// Philox4x32-10 (Salmon et al. 2011).
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(counter[0]) * 0xd251_1f53;
        let second = u64::from(counter[2]) * 0xcd9e_8d57;
        counter = [
            high(second) ^ counter[1] ^ key[0],
            low(second),
            high(first) ^ counter[3] ^ key[1],
            low(first),
        ];
        key = [
            key[0].wrapping_add(0x9e37_79b9),
            key[1].wrapping_add(0xbb67_ae85),
        ];
    }
    counter
}

/// The lower half.
pub fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).expect("32 bits")
}

/// The upper half.
pub fn high(value: u64) -> u32 {
    low(value >> 32)
}

/// The key of all words of one model in one tensor.
pub fn key(seed: u64, position: u32, tensor: &str) -> [u32; 2] {
    let mut text = b"thalweg draws 1".to_vec();
    text.extend(seed.to_le_bytes());
    text.extend(position.to_le_bytes());
    text.extend(tensor.as_bytes());
    let hash = blake3::hash(&text);
    let word = |at: usize| {
        let bytes = hash.as_bytes()[at..at + 4].try_into();
        u32::from_le_bytes(bytes.expect("four bytes"))
    };
    [word(0), word(4)]
}

/// The word of the element at a flat index.
pub fn word(key: [u32; 2], flat: u64) -> u32 {
    let words = philox([low(flat / 4), high(flat / 4), 0, 0], key);
    words[usize::try_from(flat % 4).expect("small")]
}

#[test]
fn words_are_those_that_the_authors_published() {
    let ones = u32::MAX;
    let known = [
        (
            [0; 4],
            [0; 2],
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
        ),
        (
            [ones; 4],
            [ones; 2],
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
        ),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, wanted) in known {
        assert_eq!(philox(counter, key), wanted, "{counter:x?} {key:x?}");
    }
}

#[test]
fn every_part_of_a_key_changes_it() {
    let keys = [
        key(0, 0, "w"),
        key(1, 0, "w"),
        key(0, 1, "w"),
        key(0, 0, "v"),
        key(0, 0, ""),
    ];
    for (at, own) in keys.iter().enumerate() {
        assert!(!keys[..at].contains(own), "{at}");
    }
    assert_ne!(word(keys[0], 4), word(keys[0], 5));
    assert_ne!(word(keys[0], 0), word(keys[0], 4 << 32));
}
