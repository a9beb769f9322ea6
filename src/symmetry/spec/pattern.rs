//! Names of tensors with numbers in them: `layers.{l}.mlp.up_proj.weight`.

use std::collections::BTreeMap;

/// The numbers in a name, by placeholder.
pub type Bindings = BTreeMap<String, u64>;

/// A name with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A number: any, or this one.
    Number(String, Option<u64>),
}

impl Pattern {
    /// Reads a pattern; `{prefix}` becomes `prefix`.
    ///
    /// # Errors
    ///
    /// A sentence that states the fault.
    pub fn parse(text: &str, prefix: &str) -> Result<Self, String> {
        let whole = text.replace("{prefix}", prefix);
        let mut pieces = Vec::new();
        let mut rest = whole.as_str();
        while !rest.is_empty() {
            let Some(inside) = rest.strip_prefix('{') else {
                let len = rest.find('{').unwrap_or(rest.len());
                pieces.push(Piece::Text(rest[..len].to_owned()));
                rest = &rest[len..];
                continue;
            };
            let (inner, after) = inside
                .split_once('}')
                .ok_or_else(|| format!("`{text}` lacks a closing brace"))?;
            let (name, value) = match inner.split_once('=') {
                Some((name, value)) => (
                    name,
                    Some(
                        value
                            .parse()
                            .map_err(|_| format!("`{value}` in `{text}` is no number"))?,
                    ),
                ),
                None => (inner, None),
            };
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_lowercase()) {
                return Err(format!(
                    "`{{{inner}}}` in `{text}` is no placeholder: wanted small letters"
                ));
            }
            if matches!(pieces.last(), Some(Piece::Number(..))) {
                return Err(format!(
                    "`{text}` has two placeholders without text between them"
                ));
            }
            pieces.push(Piece::Number(name.to_owned(), value));
            rest = after;
        }
        Ok(Self(pieces))
    }

    /// Returns the placeholders' numbers if `name` matches the pattern.
    pub fn bind(&self, name: &str) -> Option<Bindings> {
        let mut bindings = Bindings::new();
        let mut rest = name;
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => rest = rest.strip_prefix(text.as_str())?,
                Piece::Number(key, wanted) => {
                    let len = rest
                        .find(|c: char| !c.is_ascii_digit())
                        .unwrap_or(rest.len());
                    let digits = &rest[..len];
                    // A leading zero would give one number two names.
                    if digits.len() > 1 && digits.starts_with('0') {
                        return None;
                    }
                    let value = digits.parse().ok()?;
                    let before = bindings.insert(key.clone(), value);
                    if before.is_some_and(|before| before != value)
                        || wanted.is_some_and(|wanted| wanted != value)
                    {
                        return None;
                    }
                    rest = &rest[len..];
                }
            }
        }
        rest.is_empty().then_some(bindings)
    }

    /// Builds the name with these numbers; `None` when one is missing.
    pub fn fill(&self, bindings: &Bindings) -> Option<String> {
        let mut name = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => name.push_str(text),
                Piece::Number(key, _) => name.push_str(&bindings.get(key)?.to_string()),
            }
        }
        Some(name)
    }

    /// Returns the text before and after the number of placeholder `key`, with the others filled
    /// in.
    pub fn around(&self, key: &str, bindings: &Bindings) -> Option<(String, String)> {
        let at = self
            .0
            .iter()
            .position(|piece| matches!(piece, Piece::Number(name, _) if name == key))?;
        let before = Self(self.0[..at].to_vec()).fill(bindings)?;
        let after = Self(self.0[at + 1..].to_vec()).fill(bindings)?;
        Some((before, after))
    }

    /// Returns the placeholders in order.
    pub fn placeholders(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Number(key, _) => Some(key.as_str()),
            Piece::Text(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_gives_its_numbers_and_they_give_the_name_back() {
        let pattern =
            Pattern::parse("{prefix}layers.{l}.experts.{e}.w1.weight", "model.").expect("reads");
        let name = "model.layers.12.experts.3.w1.weight";
        let bindings = pattern.bind(name).expect("fits");
        assert_eq!(
            bindings,
            Bindings::from([("l".into(), 12), ("e".into(), 3)])
        );
        assert_eq!(pattern.fill(&bindings).as_deref(), Some(name));
        let around = pattern.around("e", &bindings).expect("has it");
        assert_eq!(
            around,
            ("model.layers.12.experts.".into(), ".w1.weight".into())
        );
        for other in [
            "model.layers.012.experts.3.w1.weight",
            "layers.1.experts.3.w1.weight",
            "model.layers.x",
            name_of(30),
        ] {
            assert_eq!(pattern.bind(other), None, "{other}");
        }
    }

    fn name_of(_digits: usize) -> &'static str {
        "model.layers.123456789012345678901234567890.experts.3.w1.weight"
    }

    #[test]
    fn a_placeholder_with_a_value_fits_that_number_only() {
        let pattern = Pattern::parse("layer{s=1}.{b}.conv1.weight", "").expect("reads");
        assert!(pattern.bind("layer1.7.conv1.weight").is_some());
        assert!(pattern.bind("layer2.7.conv1.weight").is_none());
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["a{", "a{}", "{l}{m}", "{L}", "{l=x}"] {
            assert!(Pattern::parse(text, "").is_err(), "{text}");
        }
    }
}
