//! The scaling of stored inputs into the numbers that a network is given.

use indexmap::IndexMap;

use crate::dtype::Dtype;

/// The map (scale · stored - mean) / std, with mean and std by channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaling {
    scale: f64,
    /// One mean and one std per channel, or a single pair for all channels.
    channels: Vec<(f64, f64)>,
}

impl Scaling {
    /// Reads the metadata; an error names the wrong key and says why.
    pub fn read(
        metadata: &IndexMap<String, String>,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Self, (&'static str, String)> {
        let usual = if dtype == Dtype::U8 { 1.0 / 255.0 } else { 1.0 };
        let scale = match numbers(metadata, "scale")?.as_deref() {
            None => usual,
            Some([scale]) => *scale,
            Some(several) => {
                return Err(("scale", format!("wanted one number, got {}", several.len())));
            }
        };
        let count = match shape {
            [channels, _, _] => *channels,
            _ => 1,
        };
        let (mean, std) = (
            by_channel(metadata, "mean", 0.0, count)?,
            by_channel(metadata, "std", 1.0, count)?,
        );
        if let Some(wrong) = std.iter().find(|std| **std <= 0.0) {
            return Err(("std", format!("wanted numbers above 0, got {wrong}")));
        }
        // One number counts for every channel.
        let most = mean.len().max(std.len());
        let pairs = mean.into_iter().cycle().zip(std.into_iter().cycle());
        let channels = pairs.take(most).collect();
        Ok(Self { scale, channels })
    }

    /// Scales one sample.
    pub fn apply(&self, sample: &mut [f32]) {
        let places = (sample.len() / self.channels.len()).max(1);
        for (channel, (mean, std)) in sample.chunks_mut(places).zip(self.channels.iter().cycle()) {
            for value in channel {
                *value = narrow((self.scale * f64::from(*value) - mean) / std);
            }
        }
    }
}

/// Rounds to the nearest f32.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding is what is asked for"
)]
pub fn narrow(number: f64) -> f32 {
    number as f32
}

/// Reads one number, or one for each of `count` channels; `usual` when there is none.
fn by_channel(
    metadata: &IndexMap<String, String>,
    key: &'static str,
    usual: f64,
    count: usize,
) -> Result<Vec<f64>, (&'static str, String)> {
    match numbers(metadata, key)? {
        None => Ok(vec![usual]),
        Some(given) if given.len() == 1 || given.len() == count => Ok(given),
        Some(given) => {
            let got = given.len();
            Err((
                key,
                format!("wanted 1 number or {count}, one a channel, got {got}"),
            ))
        }
    }
}

fn numbers(
    metadata: &IndexMap<String, String>,
    key: &'static str,
) -> Result<Option<Vec<f64>>, (&'static str, String)> {
    let Some(text) = metadata.get(key) else {
        return Ok(None);
    };
    text.split(',')
        .map(|word| match word.trim().parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err((key, format!("`{}` is no number", word.escape_debug()))),
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, &str)]) -> IndexMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn bytes_become_shares_of_one_and_channels_are_centred() {
        let mut sample = [0.0, 255.0, 51.0, 102.0];
        let plain = Scaling::read(&metadata(&[]), Dtype::U8, &[2, 1, 2]).expect("the usual");
        plain.apply(&mut sample);
        assert_eq!(sample, [0.0, 1.0, 0.2, 0.4]);
        let pairs = metadata(&[("scale", "2"), ("mean", "1, 3"), ("std", "0.5")]);
        let scaling = Scaling::read(&pairs, Dtype::F32, &[2, 1, 2]).expect("numbers");
        let mut sample = [1.0, 2.0, 3.0, 4.0];
        scaling.apply(&mut sample);
        assert_eq!(sample, [2.0, 6.0, 6.0, 10.0]);
    }

    #[test]
    fn metadata_without_sense_are_refused_by_key() {
        for (key, value) in [
            ("scale", "1,2"),
            ("mean", "x"),
            ("mean", "1,2,3"),
            ("std", "0"),
            ("std", "inf"),
        ] {
            let refused = Scaling::read(&metadata(&[(key, value)]), Dtype::U8, &[2, 1, 2]);
            assert_eq!(refused.err().map(|(key, _)| key), Some(key), "{value}");
        }
    }
}
