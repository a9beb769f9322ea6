//! Labels of every integer type.

use crate::dtype::Dtype;

/// Refuses dtypes that are not integers.
pub fn check(dtype: Dtype) -> Result<(), String> {
    match dtype {
        Dtype::U8
        | Dtype::I8
        | Dtype::U16
        | Dtype::I16
        | Dtype::U32
        | Dtype::I32
        | Dtype::U64
        | Dtype::I64 => Ok(()),
        other => Err(format!("wanted an integer type, got {other}")),
    }
}

/// Reads the labels in `bytes`; an error gives the place of the first that is not a class, and why.
pub fn read(dtype: Dtype, bytes: &[u8]) -> Result<Vec<usize>, (usize, String)> {
    let labels = bytes.chunks_exact(dtype.bytes()).enumerate();
    labels
        .map(|(at, bytes)| {
            let number = number(dtype, bytes);
            usize::try_from(number).map_err(|_| (at, format!("label {number} is no class")))
        })
        .collect()
}

fn number(dtype: Dtype, bytes: &[u8]) -> i128 {
    let mut wide = [0; 8];
    wide.iter_mut()
        .zip(bytes)
        .for_each(|(wide, byte)| *wide = *byte);
    let unsigned = u64::from_le_bytes(wide);
    let unused = 64 - 8 * bytes.len();
    match dtype {
        // Shifting extends the sign from the stored width to 64 bits.
        Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 => {
            i128::from((unsigned << unused).cast_signed() >> unused)
        }
        _ => i128::from(unsigned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_is_read_with_its_sign() {
        assert_eq!(read(Dtype::U8, &[0, 255]), Ok(vec![0, 255]));
        assert_eq!(read(Dtype::I64, &7_i64.to_le_bytes()), Ok(vec![7]));
        assert_eq!(
            read(Dtype::U64, &(1_u64 << 40).to_le_bytes()),
            Ok(vec![1 << 40])
        );
        assert_eq!(
            read(Dtype::I8, &[3, 255]),
            Err((1, "label -1 is no class".into()))
        );
        assert_eq!(
            read(Dtype::I32, &(-5_i32).to_le_bytes()),
            Err((0, "label -5 is no class".into()))
        );
        assert_eq!(read(Dtype::U16, &[255, 255]), Ok(vec![65535]));
        assert!(
            check(Dtype::F32).is_err() && check(Dtype::Bool).is_err() && check(Dtype::I16).is_ok()
        );
    }
}
