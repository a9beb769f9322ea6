//! A merge by recipe and by definition.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::merge::{Place, Run};
use crate::support::reference::selecting::{
    Counts, Family, Keys, Method, Part, RescaleBy, SignTie, Sparsifier, Ties, choose::floor,
    counts, fused, merge_elements,
};
use crate::support::reference::{Granularity, Model, Tensor, float::ulp_distance, round_to};

/// A method with its parameters, as a recipe and as its definition have them.
#[derive(Debug, Clone)]
pub struct Choice {
    pub name: &'static str,
    pub parts: Vec<Part>,
    /// What a recipe says besides.
    pub whole: BTreeMap<&'static str, f64>,
    pub normalize: Option<bool>,
    pub rescale: Option<bool>,
}

impl Choice {
    /// A method of so many models besides the base.
    pub fn of(name: &'static str, parts: &[Part]) -> Self {
        Self {
            name,
            parts: parts.to_vec(),
            whole: BTreeMap::new(),
            normalize: None,
            rescale: None,
        }
    }

    /// With one more parameter.
    pub fn with(mut self, parameter: &'static str, value: f64) -> Self {
        self.whole.insert(parameter, value);
        self
    }

    /// With `rescale`.
    pub fn rescaled(mut self, rescale: bool) -> Self {
        self.rescale = Some(rescale);
        self
    }

    /// With `normalize`.
    pub fn normalized(mut self, normalize: bool) -> Self {
        self.normalize = Some(normalize);
        self
    }

    fn get(&self, parameter: &str, usual: f64) -> f64 {
        self.whole.get(parameter).copied().unwrap_or(usual)
    }

    /// Whether models have weights and the parameters that go with them.
    fn is_family(&self) -> bool {
        !["nearswap", "ram", "ramplus_tl", "sce", "arcee_fusion"].contains(&self.name)
    }

    /// Whether it needs sums over a group, whose last digit depends on their order.
    fn has_sums(&self, keys: Keys) -> bool {
        self.name == "sce"
            || (self.is_family() && self.family().rescale && keys.rescale_by == RescaleBy::Norm)
    }

    fn family(&self) -> Family {
        let (sparsifier, elects, normalize, rescale) = match self.name {
            "consensus_ta" => (Sparsifier::All, false, false, false),
            "ties" | "consensus_ties" => (Sparsifier::Largest, true, true, false),
            "dare_linear" => (Sparsifier::Random, false, false, true),
            "dare_ties" => (Sparsifier::Random, true, false, true),
            "della_linear" => (Sparsifier::RandomByRank, false, false, true),
            "della" => (Sparsifier::RandomByRank, true, true, true),
            "breadcrumbs" => (Sparsifier::Band, false, false, false),
            "breadcrumbs_ties" => (Sparsifier::Band, true, false, false),
            other => panic!("{other} adds no weighted differences"),
        };
        Family {
            sparsifier,
            elects,
            normalize: self.normalize.unwrap_or(normalize),
            rescale: self.rescale.unwrap_or(rescale),
            rescale_floor: self.get("rescale_floor", 1e-7),
            lambda: self.get("lambda", 1.0),
            parts: self.parts.clone(),
        }
    }

    /// The method by its definition.
    pub fn method(&self) -> Method {
        let epsilon = self.get("epsilon", 1e-5);
        match self.name {
            "nearswap" => Method::Nearswap {
                t: self.get("t", f64::NAN),
            },
            "ram" => Method::Ram { epsilon },
            "ramplus_tl" => Method::RamPlus {
                r: self.get("r", 0.1),
                alpha: self.get("alpha", 0.2),
                epsilon,
            },
            "sce" => Method::Sce {
                select_topk: self.get("select_topk", 1.0),
                weight_floor: self.get("weight_floor", 1e-6),
            },
            "arcee_fusion" => Method::Fusion,
            "consensus_ta" | "consensus_ties" => Method::Consensus {
                merged: self.family(),
                tall_lambda: vec![self.get("tall_lambda", 0.4); self.parts.len()],
                agree: usize::try_from(floor(self.get("agree", 2.0))).expect("few models"),
            },
            _ => Method::Family(self.family()),
        }
    }

    /// The parameters that a recipe gives the model of this number.
    fn own(&self, model: usize) -> Value {
        let part = self.parts[model];
        let mut own = Map::new();
        own.insert("weight".to_owned(), json!(part.weight));
        if self.name != "consensus_ta" {
            own.insert("density".to_owned(), json!(part.density));
        }
        if self.name.starts_with("della") {
            own.insert("epsilon".to_owned(), json!(part.epsilon));
        }
        if self.name.starts_with("breadcrumbs") {
            own.insert("gamma".to_owned(), json!(part.gamma));
        }
        Value::Object(own)
    }

    fn parameters(&self) -> Value {
        let mut all = json!(self.whole);
        if let Some(agree) = self.whole.get("agree") {
            all["agree"] = floor(*agree).into();
        }
        for (name, switch) in [("normalize", self.normalize), ("rescale", self.rescale)] {
            if let Some(switch) = switch {
                all[name] = switch.into();
            }
        }
        all
    }
}

/// Models, the base among them, and how they are merged.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The base, then the others.
    pub models: Vec<Model>,
    /// The place of the base among the models that the recipe lists, if it lists it.
    pub base: Option<usize>,
    pub choice: Choice,
    pub keys: Keys,
}

impl Trial {
    /// By the usual keys; the base is not listed.
    pub fn new(models: Vec<Model>, choice: Choice) -> Self {
        Self {
            models,
            base: None,
            choice,
            keys: Keys::USUAL,
        }
    }

    /// With other keys.
    pub fn by(mut self, keys: Keys) -> Self {
        self.keys = keys;
        self
    }

    /// The models as the definition numbers them, and the base's place.
    fn listed(&self) -> (Vec<&Model>, usize) {
        let mut listed: Vec<&Model> = self.models[1..].iter().collect();
        let base = self.base.unwrap_or(listed.len());
        listed.insert(base, &self.models[0]);
        (listed, base)
    }

    /// The merge by recipe; writes the models.
    pub fn run(&self, place: &Place) -> Run {
        let paths = place.models(&self.models);
        let entry = |model: usize| match self.choice.is_family() {
            true => json!({"model": paths[model + 1], "parameters": self.choice.own(model)}),
            false => json!({"model": paths[model + 1]}),
        };
        let mut entries: Vec<Value> = (0..paths.len() - 1).map(entry).collect();
        if let Some(base) = self.base {
            entries.insert(base, json!({"model": paths[0]}));
        }
        let mut recipe = json!({
            "merge_method": self.choice.name,
            "base_model": paths[0],
            "models": entries,
        });
        let parameters = self.choice.parameters();
        if parameters.as_object().is_some_and(|all| !all.is_empty()) {
            recipe["parameters"] = parameters;
        }
        self.say(&mut recipe);
        Run::new(recipe)
    }

    /// Puts the keys that are not usual into the recipe, those that mean something for the method.
    fn say(&self, recipe: &mut Value) {
        let (keys, usual, name) = (self.keys, Keys::USUAL, self.choice.name);
        let selects = name == "sce" || name.starts_with("breadcrumbs") || name.starts_with("della");
        let selects = selects || name.ends_with("ties") && name != "dare_ties";
        let elects = name == "sce" || name == "della" || name.ends_with("ties");
        let draws = name.starts_with("dare") || name.starts_with("della");
        let rescales = self.choice.is_family() && !name.starts_with("consensus");
        if keys.seed != usual.seed && (selects || draws) {
            recipe["seed"] = keys.seed.into();
        }
        if keys.ties == Ties::First && selects {
            recipe["ties"] = "first".into();
        }
        if keys.sign_tie == SignTie::Zero && elects {
            recipe["sign_tie"] = "zero".into();
        }
        let by = match keys.rescale_by {
            RescaleBy::Norm => "norm",
            RescaleBy::Density => "density",
            RescaleBy::Probability => "probability",
        };
        if keys.rescale_by != usual.rescale_by && rescales {
            recipe["rescale_by"] = by.into();
        }
        match keys.granularity {
            Granularity::Tensor => {}
            Granularity::Row => recipe["granularity"] = "row".into(),
            Granularity::Model => recipe["granularity"] = "model".into(),
        }
    }

    /// The merge by definition, not rounded.
    pub fn wanted(&self) -> BTreeMap<String, Vec<f64>> {
        self.wanted_by(&|_| self.choice.method())
    }

    /// The same with a method for each tensor.
    pub fn wanted_by(&self, method: &dyn Fn(&str) -> Method) -> BTreeMap<String, Vec<f64>> {
        let (listed, base) = self.listed();
        let listed: Vec<Model> = listed.into_iter().cloned().collect();
        merge_elements(&listed, base, self.keys, method)
    }

    /// What the definition counts while it merges a tensor.
    pub fn counts(&self, name: &str) -> Counts {
        let (listed, base) = self.listed();
        let listed: Vec<Model> = listed.into_iter().cloned().collect();
        counts(&listed, base, self.keys, &self.choice.family(), name)
    }

    /// Merges and compares.
    #[track_caller]
    pub fn check(&self) {
        let place = Place::in_memory();
        let got = place.merged(&self.run(&place));
        self.compare(&got);
    }

    /// Asserts that `got` is what the definition says, rounded once.
    #[track_caller]
    pub fn compare(&self, got: &Model) {
        if self.choice.name == "arcee_fusion" {
            return self.compare_fused(got);
        }
        self.compare_with(got, &self.wanted());
    }

    /// Asserts that `got` is `wanted` rounded once. Where sums over a group have a part, one
    /// element of a thousand may be the next number: their last digit depends on their order.
    #[track_caller]
    pub fn compare_with(&self, got: &Model, wanted: &BTreeMap<String, Vec<f64>>) {
        let about = self.about();
        let (mut elements, mut off) = (0, 0);
        for (name, wanted) in wanted {
            let tensor = &got[name];
            assert_eq!(
                tensor.values.len(),
                wanted.len(),
                "{about}: elements of {name}"
            );
            let inputs = |at: usize| {
                let own = self
                    .models
                    .iter()
                    .filter_map(|model| model[name].values.get(at));
                own.fold(0.0, |size, x| size + x.abs())
            };
            for (at, (bits, wanted)) in tensor.bits().into_iter().zip(wanted).enumerate() {
                let value = tensor.values[at];
                let ulps = ulp_distance(tensor.dtype, bits, round_to(tensor.dtype, *wanted));
                // A few roundings of f64.
                let close = tensor.dtype == Dtype::F64
                    && (value - wanted).abs() <= 2e-15 * (wanted.abs() + inputs(at));
                let may = close || ulps <= u64::from(self.choice.has_sums(self.keys));
                assert!(
                    may,
                    "{about}: element {at} of {name} {:?} is {value:e}, wanted {wanted:e}, {ulps} steps off",
                    tensor.shape
                );
                off += usize::from(ulps > 0 && !close);
            }
            elements += wanted.len();
        }
        assert!(
            1000 * off <= elements,
            "{about}: {off} of {elements} are off"
        );
    }

    /// Asserts that every element is the model's or the base's as the importances say; which one is
    /// open within the last digits of the exponential and the logarithm.
    #[track_caller]
    fn compare_fused(&self, got: &Model) {
        let (listed, base) = self.listed();
        let listed: Vec<Model> = listed.into_iter().cloned().collect();
        for (name, choices) in fused(&listed, base, self.keys.granularity) {
            let tensor = &got[&name];
            assert_eq!(tensor.values.len(), choices.len(), "{name}");
            for (at, (choice, bits)) in choices.iter().zip(tensor.bits()).enumerate() {
                let is = |value: f64| {
                    ulp_distance(tensor.dtype, bits, round_to(tensor.dtype, value)) == 0
                };
                let near = (choice.importance - choice.threshold).abs() <= 1e-6 * choice.threshold;
                assert!(
                    is(choice.value) || (near && is(choice.other)),
                    "{}: element {at} of {name} is {:e}, wanted {choice:?}",
                    self.about(),
                    tensor.values[at]
                );
            }
        }
    }

    /// What a failure is about.
    pub fn about(&self) -> String {
        let dtypes: Vec<Vec<Dtype>> = self
            .models
            .iter()
            .map(|model| {
                model
                    .values()
                    .map(|tensor: &Tensor| tensor.dtype)
                    .take(1)
                    .collect()
            })
            .collect();
        format!(
            "{:?} by {:?}, base at {:?}, {dtypes:?}",
            self.choice, self.keys, self.base
        )
    }
}
