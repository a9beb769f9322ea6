//! Ranks in a row, and the probabilities that follow from them.

/// Draws with a probability that grows with the rank of |δ| in its row, from p - ε to p + ε, as
/// limits of 32-bit words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RankDraw {
    /// The limit of the lowest rank: ⌊2^32 (p - ε) + 1/2⌋.
    pub least: u64,
    /// ⌊2^33 ε + 1/2⌋, the rise from the lowest rank to the highest.
    pub rise: u64,
    /// The limit of an element that is alone in its row: ⌊2^32 p + 1/2⌋.
    pub alone: u64,
}

/// Writes the limit of each element of a row with these keys into `below`. Equal elements have the
/// mean of their ranks if `mid`, and otherwise ranks in their order. `order` is working memory.
///
/// # Panics
///
/// Panics if the lengths differ, or the row has 2^32 elements or more.
pub fn limits(keys: &[u32], draw: RankDraw, mid: bool, order: &mut Vec<u64>, below: &mut [u32]) {
    assert_eq!(keys.len(), below.len(), "a limit for each element");
    let last = keys.len().saturating_sub(1);
    if last == 0 {
        below.fill(limit(draw.alone));
        return;
    }
    order.clear();
    let places = keys.iter().zip(0_u32..);
    order.extend(places.map(|(key, place)| u64::from(*key) << 32 | u64::from(place)));
    order.sort_unstable();
    let mut first = 0;
    while first < order.len() {
        let key = order[first] >> 32;
        let same = order[first..].iter();
        let run = match mid {
            true => same.take_while(|entry| **entry >> 32 == key).count(),
            false => 1,
        };
        // Twice the mean of the ranks first .. first + run - 1.
        let twice = (2 * first + run - 1) as u64;
        let rise = u128::from(draw.rise) * u128::from(twice) / (2 * last as u128);
        let rise = u64::try_from(rise).expect("at most the rise to the highest rank");
        for entry in &order[first..first + run] {
            let place = usize::try_from(entry & 0xffff_ffff).expect("a place in the row");
            below[place] = limit(draw.least + rise);
        }
        first += run;
    }
}

fn limit(word: u64) -> u32 {
    u32::try_from(word).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::keys::key_of;
    use super::*;

    #[test]
    fn limits_rise_with_the_rank_and_equal_elements_share_the_mean() {
        let draw = RankDraw {
            least: 1000,
            rise: 600,
            alone: 7,
        };
        let row = [3.0, 1.0, 1.0, 2.0].map(key_of);
        let mut below = [0; 4];
        let mut order = Vec::new();
        limits(&row, draw, true, &mut order, &mut below);
        assert_eq!(below, [1600, 1100, 1100, 1400]);
        limits(&row, draw, false, &mut order, &mut below);
        assert_eq!(below, [1600, 1000, 1200, 1400]);
        limits(&row[..1], draw, true, &mut order, &mut below[..1]);
        assert_eq!(below[0], 7);
    }
}
