//! Byte counts as people write them.

/// The units that a byte count may end in, and their sizes in bytes. As `K`, `M`, `G`, `B`
/// (billion) mean powers of ten to mergekit's users, only the `i` forms are binary.
const UNITS: [(&str, u64); 14] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("ki", 1 << 10),
    ("mi", 1 << 20),
    ("gi", 1 << 30),
    ("k", 1_000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
];

/// Parses a byte count: `256MiB`, `5GB`, `1.5 GiB`, `5B` (billions, as mergekit's shard sizes), or
/// a plain number of bytes.
///
/// # Errors
///
/// A sentence that names the accepted forms, when the text is not a positive count of bytes that
/// fits 63 bits.
///
/// # Examples
///
/// ```
/// use thalweg::{format_bytes, parse_bytes};
///
/// assert_eq!(parse_bytes("256MiB"), Ok(256 << 20));
/// assert_eq!(parse_bytes("5GB"), Ok(5_000_000_000));
/// assert_eq!(format_bytes(3 << 29), "1.50 GiB");
/// ```
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("`{text}` is not a size; write it as 256MiB, 1.5GiB, 5GB or a number of bytes");
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = split_unit(&lower);
    let number = number.trim();
    if let Ok(whole) = number.parse::<u64>() {
        return whole
            .checked_mul(unit)
            .filter(|&bytes| bytes > 0 && bytes < 1 << 63)
            .ok_or_else(wrong);
    }
    let plain = number.chars().all(|c| c.is_ascii_digit() || c == '.');
    let value: f64 = number.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
    #[expect(clippy::cast_precision_loss, reason = "units are exact in f64")]
    let bytes = value * unit as f64;
    if !(1.0..9.0e18).contains(&bytes) {
        return Err(wrong());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to lie within u64"
    )]
    Ok(bytes as u64)
}

fn split_unit(lower: &str) -> (&str, u64) {
    for (unit, size) in UNITS {
        if let Some(number) = lower.strip_suffix(unit) {
            return (number, size);
        }
    }
    match lower.strip_suffix('b') {
        Some(number) => (number, 1_000_000_000),
        None => (lower, 1),
    }
}

/// Formats a byte count for people, in binary units: `1.50 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    const STEPS: [(&str, u64); 4] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    for (unit, size) in STEPS {
        if bytes >= size {
            #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
            let value = bytes as f64 / size as f64;
            return if value >= 100.0 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.2} {unit}")
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("256MiB", 256 << 20),
            ("1.5 GiB", 3 << 29),
            ("5GB", 5_000_000_000),
            ("5B", 5_000_000_000),
            ("500m", 500_000_000),
            ("1Gi", 1 << 30),
            ("4096", 4096),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "GiB",
            "-1",
            "0",
            "0GB",
            "1e9",
            "nan",
            "inf",
            "12 parsecs",
            "99999999999999999999",
            "9999999TB",
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_binary_units() {
        assert_eq!(format_bytes(1023), "1023 B");
        assert_eq!(format_bytes(3 << 29), "1.50 GiB");
        assert_eq!(format_bytes(256 << 20), "256 MiB");
    }
}
