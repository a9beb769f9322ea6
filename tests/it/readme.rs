//! What the README tells people to type is understood.

use crate::crash::scratch;
use crate::program::run;

#[test]
fn every_command_of_the_readme_is_one() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("a README");
    let root = scratch();
    let mut commands = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("thalweg ")) {
        let typed = line.split('#').next().unwrap_or_default();
        // Prose goes on after the name.
        let Some(name) = typed.split_whitespace().next() else { continue };
        let known = ["merge", "plan", "verify", "reference", "symmetries", "apply", "align"];
        if !known.contains(&name) {
            continue;
        }
        commands += 1;
        let ended = run(root.path(), typed.split_whitespace());
        // The models are not there; that is all that may be wrong.
        assert!(!ended.stderr.contains("error: ") && !ended.stderr.contains("command line"), "{line}: {ended:?}");
        assert!(ended.code == Some(0) || ended.stderr.starts_with("thalweg: cannot "), "{line}: {ended:?}");
    }
    assert!(commands > 10, "{commands}");
}
