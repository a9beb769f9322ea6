//! The model card, `README.md`: the models and the recipe of a merge, for people and for the hub.
//!
//! It omits time, machine and folders, so the same merge has the same card everywhere.

use serde_json::{Value, json};

use super::yaml;

/// The longest recipe that is shown in the text; longer ones are in their own file only.
const RECIPE_BYTES: usize = 64 << 10;

/// The contents of a card.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// The method's name.
    pub method: String,
    /// The description of the method.
    pub meaning: String,
    /// The models.
    pub models: Vec<CardModel>,
    /// The base among them, by name.
    pub base: Option<String>,
    /// Parameters of the whole merge, by name.
    pub parameters: Vec<(String, Value)>,
    /// The licence, when all models have the same.
    pub license: Option<String>,
    /// The library that loads the model, by its name on the hub.
    pub loader: &'static str,
    /// The recipe as YAML, without paths of this machine.
    pub recipe: String,
}

/// A model of a card.
#[derive(Debug, Clone, PartialEq)]
pub struct CardModel {
    /// Its hub id or the name of its folder, never a path.
    pub name: String,
    /// The commit, where the name is known to be a hub id.
    pub commit: Option<String>,
    /// Its settings in the recipe: layers and parameters.
    pub settings: String,
}

impl Card {
    /// Writes the card's text.
    ///
    /// The front matter lists only models on the hub as base models: a folder's name would be a
    /// dead link.
    pub fn text(&self) -> String {
        let mut text = format!(
            "---\n{}---\n\n# Merged model\n\n",
            yaml::document(&self.front())
        );
        text.push_str(&format!(
            "Made by thalweg with the method `{}`: {}.\n\n",
            self.method, self.meaning
        ));
        text.push_str("| model | settings |\n|---|---|\n");
        for model in &self.models {
            text.push_str(&format!(
                "| {} | {} |\n",
                model.cell(),
                cell(&model.settings)
            ));
        }
        if let Some(base) = &self.base {
            text.push_str(&format!("\nThe base is {}.\n", cell(base)));
        }
        if !self.parameters.is_empty() {
            text.push_str("\n| parameter | value |\n|---|---|\n");
            for (name, value) in &self.parameters {
                text.push_str(&format!(
                    "| {} | {} |\n",
                    cell(name),
                    cell(&value.to_string())
                ));
            }
        }
        if self.recipe.len() <= RECIPE_BYTES {
            text.push_str(&format!("\nThe recipe:\n\n{}", fenced(&self.recipe)));
        }
        text.push_str("\n`mergekit_config.yml` is the recipe, `thalweg.json` has a checksum of every tensor.\n");
        text
    }

    fn front(&self) -> Value {
        let mut front = json!({});
        let known = self.models.iter().filter(|model| model.commit.is_some());
        let mut ids: Vec<&str> = known.map(|model| model.name.as_str()).collect();
        let mut seen = std::collections::HashSet::new();
        ids.retain(|id| seen.insert(*id));
        if !ids.is_empty() {
            front["base_model"] = json!(ids);
            front["base_model_relation"] = "merge".into();
        }
        front["library_name"] = self.loader.into();
        front["tags"] = json!(["merge", "thalweg"]);
        if let Some(license) = &self.license {
            front["license"] = license.as_str().into();
        }
        front
    }
}

impl CardModel {
    /// Formats the name, with a link to the commit if the model is on the hub.
    fn cell(&self) -> String {
        let name = &self.name;
        match &self.commit {
            Some(commit) => {
                format!("[{name}](https://huggingface.co/{name}/tree/{commit}) at `{commit}`")
            }
            None => cell(name),
        }
    }
}

/// Fences `text` as a YAML block that no line of it can end.
fn fenced(text: &str) -> String {
    let ticks = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat((ticks + 1).max(3));
    let end = if text.ends_with('\n') { "" } else { "\n" };
    format!("{fence}yaml\n{text}{end}{fence}\n")
}

/// Formats text for a table cell, so that it cannot end the cell or line, or act as markup.
fn cell(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(
            "`{}`",
            text.replace(['`', '\n', '\r'], " ").replace('|', "\\|")
        )
    }
}

/// Reads the licence in a card's front matter; `None` when it has none or several.
pub fn license_of(card: &str) -> Option<String> {
    let front = card
        .strip_prefix("---")?
        .trim_start_matches('\r')
        .strip_prefix('\n')?;
    let lines = front.lines().take_while(|line| line.trim_end() != "---");
    let value = lines
        .into_iter()
        .find_map(|line| line.strip_prefix("license:"))?;
    let value = value.trim().trim_matches(['"', '\'']);
    let is_plain = !value.is_empty()
        && value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    is_plain.then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(models: Vec<CardModel>, recipe: &str) -> Card {
        Card {
            method: "karcher".into(),
            meaning: "the mean".into(),
            models,
            base: Some("org/a".into()),
            parameters: vec![("tol".into(), json!(1e-9))],
            license: Some("apache-2.0".into()),
            loader: "transformers",
            recipe: recipe.into(),
        }
    }

    #[test]
    fn a_card_names_models_method_and_weights() {
        let model = |name: &str, commit: Option<&str>, settings: &str| CardModel {
            name: name.into(),
            commit: commit.map(str::to_owned),
            settings: settings.into(),
        };
        let models = vec![
            model("org/a", Some("c0"), "weight 0.5"),
            model("b|c", None, ""),
            model("org/a", Some("c0"), "layers 2 to 4"),
        ];
        let card = card(models, "merge_method: karcher");
        let wanted = "---\nbase_model:\n  - org/a\nbase_model_relation: merge\nlibrary_name: transformers\ntags:\n  - merge\n  \
                      - thalweg\nlicense: apache-2.0\n---\n\n# Merged model\n\nMade by thalweg with the method `karcher`: the \
                      mean.\n\n| model | settings |\n|---|---|\n\
                      | [org/a](https://huggingface.co/org/a/tree/c0) at `c0` | `weight 0.5` |\n| `b\\|c` |  |\n\
                      | [org/a](https://huggingface.co/org/a/tree/c0) at `c0` | `layers 2 to 4` |\n\n\
                      The base is `org/a`.\n\n| parameter | value |\n|---|---|\n| `tol` | `1e-9` |\n\n\
                      The recipe:\n\n```yaml\nmerge_method: karcher\n```\n\n\
                      `mergekit_config.yml` is the recipe, `thalweg.json` has a checksum of every tensor.\n";
        assert_eq!(card.text(), wanted);
        assert_eq!(license_of(&card.text()).as_deref(), Some("apache-2.0"));
    }

    #[test]
    fn without_a_model_of_the_hub_no_base_is_named() {
        let folder = CardModel {
            name: "a".into(),
            commit: None,
            settings: String::new(),
        };
        let text = card(vec![folder], "").text();
        assert!(
            text.starts_with("---\nlibrary_name: transformers\n") && !text.contains("base_model"),
            "{text}"
        );
    }

    #[test]
    fn a_recipe_with_a_fence_of_its_own_does_not_end_the_block() {
        assert_eq!(
            fenced("a: |\n  ````x\n"),
            "`````yaml\na: |\n  ````x\n`````\n"
        );
    }

    #[test]
    fn only_one_plain_licence_in_the_front_matter_counts() {
        assert_eq!(
            license_of("---\ntags: [a]\nlicense: 'mit'\n---\n").as_deref(),
            Some("mit")
        );
        for card in [
            "license: mit\n",
            "---\nlicense:\n- mit\n- gpl\n---\n",
            "---\na: b\n---\nlicense: mit\n",
            "",
        ] {
            assert_eq!(license_of(card), None, "{card}");
        }
    }
}
