//! The model card, `README.md`: what the model was made of, for people and for the hub.
//!
//! It says nothing of time, machine or folders, so the same merge has the same card everywhere.

use serde_json::{Value, json};

use super::yaml;

/// What a card says.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// The method's name.
    pub method: String,
    /// What the method does.
    pub meaning: String,
    /// The models: a hub id or the name of a folder each, never a path.
    pub models: Vec<CardModel>,
    /// The base among them, by name.
    pub base: Option<String>,
    /// Parameters of the whole merge, by name.
    pub parameters: Vec<(String, Value)>,
    /// The licence, when all models have the same.
    pub license: Option<String>,
}

/// A model of a card.
#[derive(Debug, Clone, PartialEq)]
pub struct CardModel {
    /// Its hub id or the name of its folder.
    pub name: String,
    /// What the recipe says of it: layers and parameters.
    pub settings: String,
}

impl Card {
    /// The card's text.
    pub fn text(&self) -> String {
        let mut names: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(*name));
        let mut front = json!({ "base_model": names, "library_name": "transformers", "tags": ["merge", "thalweg"] });
        if let Some(license) = &self.license {
            front["license"] = license.as_str().into();
        }
        let mut text = format!("---\n{}---\n\n# Merged model\n\n", yaml::document(&front));
        text.push_str(&format!("Made by thalweg with the method `{}`: {}.\n\n", self.method, self.meaning));
        text.push_str("| model | settings |\n|---|---|\n");
        for model in &self.models {
            text.push_str(&format!("| {} | {} |\n", cell(&model.name), cell(&model.settings)));
        }
        if let Some(base) = &self.base {
            text.push_str(&format!("\nThe base is {}.\n", cell(base)));
        }
        if !self.parameters.is_empty() {
            text.push_str("\n| parameter | value |\n|---|---|\n");
            for (name, value) in &self.parameters {
                text.push_str(&format!("| {} | {} |\n", cell(name), cell(&value.to_string())));
            }
        }
        text.push_str("\n`mergekit_config.yml` is the recipe, `thalweg.json` has a checksum of every tensor.\n");
        text
    }
}

/// Text that ends neither its cell nor its line, and is no markup.
fn cell(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("`{}`", text.replace(['`', '\n', '\r'], " ").replace('|', "\\|"))
    }
}

/// The licence that a card's front matter states; none when it states none or several.
pub fn license_of(card: &str) -> Option<String> {
    let front = card.strip_prefix("---")?.trim_start_matches('\r').strip_prefix('\n')?;
    let lines = front.lines().take_while(|line| line.trim_end() != "---");
    let value = lines.into_iter().find_map(|line| line.strip_prefix("license:"))?;
    let value = value.trim().trim_matches(['"', '\'']);
    let is_plain =
        !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    is_plain.then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_names_models_method_and_weights() {
        let model = |name: &str, settings: &str| CardModel { name: name.into(), settings: settings.into() };
        let card = Card {
            method: "karcher".into(),
            meaning: "the mean".into(),
            models: vec![model("org/a", "weight 0.5"), model("b|c", ""), model("org/a", "layers 2 to 4")],
            base: Some("org/a".into()),
            parameters: vec![("tol".into(), json!(1e-9))],
            license: Some("apache-2.0".into()),
        };
        let wanted = "---\nbase_model:\n  - org/a\n  - \"b|c\"\nlibrary_name: transformers\ntags:\n  - merge\n  - thalweg\n\
                      license: apache-2.0\n---\n\n# Merged model\n\nMade by thalweg with the method `karcher`: the mean.\n\n\
                      | model | settings |\n|---|---|\n| `org/a` | `weight 0.5` |\n| `b\\|c` |  |\n| `org/a` | `layers 2 to 4` |\n\n\
                      The base is `org/a`.\n\n| parameter | value |\n|---|---|\n| `tol` | `1e-9` |\n\n\
                      `mergekit_config.yml` is the recipe, `thalweg.json` has a checksum of every tensor.\n";
        assert_eq!(card.text(), wanted);
        assert_eq!(license_of(&card.text()).as_deref(), Some("apache-2.0"));
    }

    #[test]
    fn only_one_plain_licence_in_the_front_matter_counts() {
        assert_eq!(license_of("---\ntags: [a]\nlicense: 'mit'\n---\n").as_deref(), Some("mit"));
        for card in ["license: mit\n", "---\nlicense:\n- mit\n- gpl\n---\n", "---\na: b\n---\nlicense: mit\n", ""] {
            assert_eq!(license_of(card), None, "{card}");
        }
    }
}
