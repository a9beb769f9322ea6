//! Curves as a table.

use std::fmt::Write;

use super::Curve;

/// Writes one line per point: curve, lambda, loss, accuracy; every number with all its digits.
pub fn csv(curves: &[Curve]) -> String {
    let mut text = String::from("curve,lambda,loss,accuracy\n");
    for curve in curves {
        for point in &curve.points {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{},{},{},{}",
                quoted(&curve.name),
                point.lambda,
                point.loss,
                point.accuracy
            );
        }
    }
    text
}

fn quoted(name: &str) -> String {
    if name.contains(['"', ',', '\n']) {
        format!("\"{}\"", name.replace('"', "\"\""))
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Point;
    use super::*;

    #[test]
    fn names_with_commas_are_quoted_and_digits_are_kept() {
        let points = vec![Point {
            lambda: 0.1,
            loss: 1.0 / 3.0,
            accuracy: 1.0,
        }];
        let curve = Curve {
            name: "a, \"b\"".into(),
            points,
        };
        assert_eq!(
            csv(&[curve]),
            "curve,lambda,loss,accuracy\n\"a, \"\"b\"\"\",0.1,0.3333333333333333,1\n"
        );
    }
}
