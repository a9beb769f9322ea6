//! Text that means harm ends in an error, soon, and never in a panic.

use std::fmt::Write as _;

use proptest::prelude::*;
use thalweg::Kind;
use thalweg::recipe::{MAX_RECIPE_BYTES, Recipe};

fn refused(text: &str) -> String {
    let error = Recipe::parse(text, "hostile.yml").expect_err("hostile text is refused");
    assert_eq!(error.kind(), Kind::Recipe);
    assert!(
        error.to_string().len() < 2_000,
        "a short message, found {} bytes",
        error.to_string().len()
    );
    assert!(error.hint().is_none_or(|hint| hint.len() < 4_000));
    error.to_string()
}

#[test]
fn a_billion_laughs_stop_at_the_budget() {
    let mut text = String::from("a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n");
    for level in 1..12 {
        let one = format!("*a{}", level - 1);
        writeln!(text, "a{level}: &a{level} [{}]", vec![one; 10].join(", "))
            .expect("strings take everything");
    }
    let message = refused(&text);
    assert!(message.contains("not valid YAML"), "{message}");
}

#[test]
fn depth_documents_nodes_and_bytes_are_bounded() {
    refused(&"[".repeat(100_000));
    refused(&format!("{}x{}", "{a: ".repeat(5_000), "}".repeat(5_000)));
    refused(&(0..400).fold(String::new(), |text, i| {
        text + &format!("{}- {i}:\n", "  ".repeat(i))
    }));
    refused(&"---\na: 1\n".repeat(5_000));
    refused(&format!(
        "merge_method: karcher\nmodels: [{}]",
        "m, ".repeat(400_000)
    ));
    let message = refused(&" ".repeat(MAX_RECIPE_BYTES + 1));
    assert!(
        message.contains("16777217 bytes long, a recipe has at most 16777216"),
        "{message}"
    );
}

#[test]
fn long_lines_keys_and_control_characters_do_not_reach_the_terminal() {
    let error =
        Recipe::parse("merge_method: \"\u{1b}[2J\"\nmodels: [a]", "r").expect_err("no such method");
    assert!(!error.to_string().contains('\u{1b}'), "{error:?}");
    assert!(!error.hint().expect("the line is shown").contains('\u{1b}'));
    refused(&format!("{}: 1", "k".repeat(900)));
    refused(&format!("merge_method: {}", "k".repeat(1 << 20)));
    refused(&format!(
        "merge_method: karcher\nmodels: [a]\ndtype: {}",
        "k".repeat(1 << 20)
    ));
    refused(&format!(
        "merge_method: linear\nmodels: [a]\nparameters: {{weight: {}}}",
        "k".repeat(1 << 20)
    ));
    refused(&format!(
        "merge_method: karcher\nmodels: [a]\ngranularity: {}",
        "k".repeat(1 << 20)
    ));
    refused(&format!(
        "merge_method: karcher\nmodels: [a]\nmemory: {}",
        "k".repeat(1 << 20)
    ));
    refused(&format!(
        "merge_method: karcher\nmodels: [a, \"{}+l\"]",
        "k".repeat(1 << 20)
    ));
    refused(&format!(
        "merge_method: karcher\nmodels: [a]\nchat_template: {}",
        "k".repeat(1 << 20)
    ));
    refused(&format!(
        "merge_method: passthrough\nmodels: [a, \"{}\"]",
        "k".repeat(1 << 20)
    ));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        let _either = Recipe::parse(&text, "any");
    }

    #[test]
    fn any_damage_to_a_recipe_is_read_or_refused(
        place in 0usize..400,
        length in 0usize..12,
        patch in "[-a-z:\\[\\]{}&*!|>'\"%@`,#? \n\t0-9.]{0,8}",
    ) {
        let mut text = super::text_of(&super::corpus("good")[place % super::corpus("good").len()]);
        let start = place.min(text.len());
        let end = (start + length).min(text.len());
        prop_assume!(text.is_char_boundary(start) && text.is_char_boundary(end));
        text.replace_range(start..end, &patch);
        if let Err(error) = Recipe::parse(&text, "damaged") {
            prop_assert_eq!(error.kind(), Kind::Recipe);
        }
    }
}
