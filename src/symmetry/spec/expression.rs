//! The two small languages of a spec: groups on an axis (`kv * queries * value`, `order(mlp) +
//! mlp`) and numbers of units (`head_dim or hidden_size / num_attention_heads`).

use serde_json::Value;

/// The most levels of parentheses; bounds recursion over untrusted text.
const MAX_DEPTH: usize = 32;

/// An axis expression, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AxisExpression {
    /// Nothing acts.
    Fixed,
    /// A group.
    Group(GroupReference),
    /// Blocks: the first factor orders the blocks, the others act inside each.
    Product(Vec<Self>),
    /// Slices, one after the other.
    Sum(Vec<Self>),
}

/// A reference to a group on an axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupReference {
    /// The group's key in the spec.
    pub group: String,
    /// True if signs and rotations act too; false for the order only.
    pub signed: bool,
    /// The instance.
    pub which: Which,
}

/// The instance of a group; all variants but the first two count along the last placeholder of the
/// group's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The instance with the tensor's own numbers.
    Bound,
    /// The instance with this number.
    At(u64),
    /// The last instance before the tensor's own number.
    Previous,
    /// The tensor's own instance, or the last one before it.
    Latest,
    /// The last instance of all.
    Last,
}

impl AxisExpression {
    /// Parses an axis.
    ///
    /// # Errors
    ///
    /// A sentence that states the expected token.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser::new(text)?;
        let axis = parser.axis_sum(0)?;
        parser.end()?;
        Ok(axis)
    }

    /// Lists every group that the axis names.
    pub fn references(&self) -> Vec<&GroupReference> {
        match self {
            Self::Fixed => Vec::new(),
            Self::Group(reference) => vec![reference],
            Self::Product(parts) | Self::Sum(parts) => {
                parts.iter().flat_map(Self::references).collect()
            }
        }
    }
}

/// A number of units, as written.
#[derive(Debug, Clone, PartialEq)]
pub enum SizeExpression {
    /// A number.
    Number(f64),
    /// A size of the spec, or a key of config.json with dots between levels.
    Name(String),
    /// The first choice that has a value.
    Or(Vec<Self>),
    /// Two sizes and one of `+ - * /`.
    Operation(char, Box<Self>, Box<Self>),
}

impl SizeExpression {
    /// Parses a size.
    ///
    /// # Errors
    ///
    /// A sentence that states the expected token.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser::new(text)?;
        let size = parser.size_or(0)?;
        parser.end()?;
        Ok(size)
    }

    /// Evaluates the size with names looked up by `known`; `None` when a needed name has no value.
    pub fn value(&self, known: &dyn Fn(&str) -> Option<f64>) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Name(name) => known(name),
            Self::Or(choices) => choices.iter().find_map(|choice| choice.value(known)),
            Self::Operation(operator, left, right) => {
                let (left, right) = (left.value(known)?, right.value(known)?);
                Some(match operator {
                    '+' => left + right,
                    '-' => left - right,
                    '*' => left * right,
                    _ => left / right,
                })
            }
        }
    }

    /// Lists the names that have no value.
    pub fn unknown<'a>(&'a self, known: &dyn Fn(&str) -> Option<f64>) -> Vec<&'a str> {
        match self {
            Self::Number(_) => Vec::new(),
            Self::Name(name) => known(name).map_or_else(|| vec![name.as_str()], |_| Vec::new()),
            Self::Or(choices) => choices
                .iter()
                .flat_map(|choice| choice.unknown(known))
                .collect(),
            Self::Operation(_, left, right) => [left.unknown(known), right.unknown(known)].concat(),
        }
    }
}

/// Returns the number under a dotted key of a config.
pub fn config_number(config: &Value, name: &str) -> Option<f64> {
    name.split('.')
        .try_fold(config, |value, key| value.get(key))?
        .as_f64()
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    Number(f64),
    Sign(char),
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn new(text: &str) -> Result<Self, String> {
        Ok(Self {
            tokens: tokens(text)?,
            at: 0,
        })
    }

    fn end(&self) -> Result<(), String> {
        self.tokens.get(self.at).map_or(Ok(()), |token| {
            Err(format!("nothing may follow, got {}", shown(Some(token))))
        })
    }

    fn next(&mut self) -> Option<Token> {
        self.at += 1;
        self.tokens.get(self.at - 1).cloned()
    }

    fn take(&mut self, sign: char) -> bool {
        let taken = self.tokens.get(self.at) == Some(&Token::Sign(sign));
        self.at += usize::from(taken);
        taken
    }

    fn want(&mut self, sign: char) -> Result<(), String> {
        if self.take(sign) {
            Ok(())
        } else {
            Err(format!(
                "wanted `{sign}`, got {}",
                shown(self.tokens.get(self.at))
            ))
        }
    }

    fn axis_sum(&mut self, depth: usize) -> Result<AxisExpression, String> {
        let mut parts = vec![self.axis_product(depth)?];
        while self.take('+') {
            parts.push(self.axis_product(depth)?);
        }
        Ok(if parts.len() == 1 {
            parts.remove(0)
        } else {
            AxisExpression::Sum(parts)
        })
    }

    fn axis_product(&mut self, depth: usize) -> Result<AxisExpression, String> {
        let mut parts = vec![self.axis_atom(depth)?];
        while self.take('*') {
            parts.push(self.axis_atom(depth)?);
        }
        Ok(if parts.len() == 1 {
            parts.remove(0)
        } else {
            AxisExpression::Product(parts)
        })
    }

    fn axis_atom(&mut self, depth: usize) -> Result<AxisExpression, String> {
        if depth > MAX_DEPTH {
            return Err("too many parentheses".into());
        }
        if self.take('(') {
            let inner = self.axis_sum(depth + 1)?;
            self.want(')')?;
            return Ok(inner);
        }
        let name = match self.next() {
            Some(Token::Name(name)) => name,
            other => {
                return Err(format!(
                    "wanted the name of a group, got {}",
                    shown(other.as_ref())
                ));
            }
        };
        if self.take('(') {
            let inner = self.axis_atom(depth + 1)?;
            self.want(')')?;
            return called(&name, inner);
        }
        if self.take('[') {
            let which = match self.next() {
                Some(Token::Number(number)) => Which::At(whole(number)?),
                other => return Err(format!("wanted a number, got {}", shown(other.as_ref()))),
            };
            self.want(']')?;
            return Ok(AxisExpression::Group(GroupReference {
                group: name,
                signed: true,
                which,
            }));
        }
        if name == "fixed" {
            return Ok(AxisExpression::Fixed);
        }
        Ok(AxisExpression::Group(GroupReference {
            group: name,
            signed: true,
            which: Which::Bound,
        }))
    }

    fn size_or(&mut self, depth: usize) -> Result<SizeExpression, String> {
        let mut choices = vec![self.size_sum(depth)?];
        while self.tokens.get(self.at) == Some(&Token::Name("or".into())) {
            self.at += 1;
            choices.push(self.size_sum(depth)?);
        }
        Ok(if choices.len() == 1 {
            choices.remove(0)
        } else {
            SizeExpression::Or(choices)
        })
    }

    fn size_sum(&mut self, depth: usize) -> Result<SizeExpression, String> {
        let mut sum = self.size_product(depth)?;
        while let Some(operator) = ['+', '-'].into_iter().find(|operator| self.take(*operator)) {
            sum = SizeExpression::Operation(
                operator,
                Box::new(sum),
                Box::new(self.size_product(depth)?),
            );
        }
        Ok(sum)
    }

    fn size_product(&mut self, depth: usize) -> Result<SizeExpression, String> {
        let mut product = self.size_atom(depth)?;
        while let Some(operator) = ['*', '/'].into_iter().find(|operator| self.take(*operator)) {
            product = SizeExpression::Operation(
                operator,
                Box::new(product),
                Box::new(self.size_atom(depth)?),
            );
        }
        Ok(product)
    }

    fn size_atom(&mut self, depth: usize) -> Result<SizeExpression, String> {
        if depth > MAX_DEPTH {
            return Err("too many parentheses".into());
        }
        if self.take('(') {
            let inner = self.size_or(depth + 1)?;
            self.want(')')?;
            return Ok(inner);
        }
        match self.next() {
            Some(Token::Name(name)) => Ok(SizeExpression::Name(name)),
            Some(Token::Number(number)) => Ok(SizeExpression::Number(number)),
            other => Err(format!(
                "wanted a number or a key, got {}",
                shown(other.as_ref())
            )),
        }
    }
}

/// Builds the reference for a call such as `order(mlp)` or `previous(hidden)`.
fn called(function: &str, inner: AxisExpression) -> Result<AxisExpression, String> {
    let AxisExpression::Group(reference) = inner else {
        return Err(format!("`{function}` wants one group"));
    };
    let which = match function {
        "order" => {
            return Ok(AxisExpression::Group(GroupReference {
                signed: false,
                ..reference
            }));
        }
        "previous" => Which::Previous,
        "latest" => Which::Latest,
        "last" => Which::Last,
        _ => {
            return Err(format!(
                "unknown function `{function}`; known are order, previous, latest, last"
            ));
        }
    };
    Ok(AxisExpression::Group(GroupReference { which, ..reference }))
}

fn whole(number: f64) -> Result<u64, String> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "compared with what it came from"
    )]
    let count = number as u64;
    #[expect(
        clippy::cast_precision_loss,
        reason = "exact below 2^53, and refused beyond"
    )]
    let back = count as f64;
    if back == number && number < 9e15 {
        Ok(count)
    } else {
        Err(format!("wanted a whole number, got {number}"))
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        let (token, len) = if is_word(first) {
            let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let word = &rest[..len];
            let number = first.is_ascii_digit().then(|| word.parse()).transpose();
            let number = number.map_err(|_| format!("`{word}` is not a number"))?;
            (
                number.map_or_else(|| Token::Name(word.to_owned()), Token::Number),
                len,
            )
        } else if "+-*/()[]".contains(first) {
            (Token::Sign(first), 1)
        } else {
            return Err(format!("`{}` means nothing here", first.escape_debug()));
        };
        tokens.push(token);
        rest = rest[len..].trim_start();
    }
    Ok(tokens)
}

fn shown(token: Option<&Token>) -> String {
    match token {
        None => "the end".into(),
        Some(Token::Name(name)) => format!("`{name}`"),
        Some(Token::Number(number)) => format!("`{number}`"),
        Some(Token::Sign(sign)) => format!("`{sign}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, signed: bool, which: Which) -> AxisExpression {
        AxisExpression::Group(GroupReference {
            group: name.into(),
            signed,
            which,
        })
    }

    #[test]
    fn products_bind_tighter_than_sums_and_parentheses_tighter_than_both() {
        let bound = |name| group(name, true, Which::Bound);
        assert_eq!(
            AxisExpression::parse("a*b + c").expect("reads"),
            AxisExpression::Sum(vec![
                AxisExpression::Product(vec![bound("a"), bound("b")]),
                bound("c")
            ])
        );
        assert_eq!(
            AxisExpression::parse("a * (b + fixed)").expect("reads"),
            AxisExpression::Product(vec![
                bound("a"),
                AxisExpression::Sum(vec![bound("b"), AxisExpression::Fixed])
            ])
        );
        assert_eq!(
            AxisExpression::parse("order(previous(h))").expect("reads"),
            group("h", false, Which::Previous)
        );
        assert_eq!(
            AxisExpression::parse("stage[3]").expect("reads"),
            group("stage", true, Which::At(3))
        );
    }

    #[test]
    fn what_is_no_axis_is_refused_with_what_was_wanted() {
        for (text, part) in [
            ("", "wanted the name"),
            ("a b", "nothing may follow"),
            ("(a", "wanted `)`"),
            ("order(a*b)", "wanted `)`"),
            ("twice(a)", "unknown function"),
            ("a[1.5]", "whole number"),
            ("a#", "means nothing"),
        ] {
            let error = AxisExpression::parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(AxisExpression::parse(&"(".repeat(100_000)).is_err());
        assert!(SizeExpression::parse(&"(".repeat(100_000)).is_err());
    }

    #[test]
    fn sizes_are_worked_out_and_fall_back_where_a_key_is_missing() {
        let known = |name: &str| match name {
            "hidden" => Some(96.0),
            "heads" => Some(8.0),
            _ => None,
        };
        let value = |text: &str| SizeExpression::parse(text).expect("reads").value(&known);
        assert_eq!(value("hidden / heads"), Some(12.0));
        assert_eq!(value("head_dim or hidden / heads"), Some(12.0));
        assert_eq!(value("hidden - 2 * (heads + 1)"), Some(78.0));
        assert_eq!(value("head_dim"), None);
        assert_eq!(value("10 - 2 - 3"), Some(5.0));
        let size = SizeExpression::parse("a or b / heads").expect("reads");
        assert_eq!(size.unknown(&known), ["a", "b"]);
    }
}
