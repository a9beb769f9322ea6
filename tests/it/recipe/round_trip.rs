//! Any document, written as JSON or YAML, reads back equal.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;
use thalweg::device::Choice;
use thalweg::dtype::Dtype;
use thalweg::recipe::{
    Align, AlignFrom, BaseRule, CHAT_TEMPLATES, ChatTemplate, Condition, Cost, Document, Domain,
    Granularity, LayerRange, METHODS, MethodInfo, MethodName, Mismatch, Missing, ModelEntry,
    ModelRef, Module, NanPolicy, OwnKeys, Parameters, Quantised, Recipe, RescaleBy, Residual,
    Scope, Setting, SignRule, Slice, SliceSource, Sources, TieRule, Tokenizer, WeightMatching,
};

fn number(domain: Domain) -> BoxedStrategy<f64> {
    match domain {
        Domain::Real | Domain::Switch => {
            prop_oneof![-1e3..1e3, -1e300..1e300, Just(-0.0), Just(1e-5)].boxed()
        }
        Domain::NonNegative => prop_oneof![0.0..1e9, Just(0.0)].boxed(),
        Domain::Positive => (1e-300..1e3).boxed(),
        Domain::Fraction => (0.0..=1.0).boxed(),
        Domain::Count => (0u32..=1_000_000).prop_map(f64::from).boxed(),
    }
}

fn setting(domain: Domain) -> BoxedStrategy<Setting> {
    let leaf = match domain {
        Domain::Switch => any::<bool>().prop_map(Setting::Switch).boxed(),
        _ => prop_oneof![
            3 => number(domain).prop_map(Setting::Number),
            1 => prop::collection::vec(number(domain), 1..5).prop_map(Setting::Gradient),
        ]
        .boxed(),
    };
    let filter = prop::option::of(prop_oneof![
        "[a-z_.]{1,8}",
        Just("no".to_owned()),
        Just("1e5: #".to_owned())
    ]);
    leaf.prop_recursive(2, 8, 3, move |inner| {
        let condition =
            (filter.clone(), inner).prop_map(|(filter, value)| Condition { filter, value });
        prop::collection::vec(condition, 1..4).prop_map(Setting::Filtered)
    })
    .boxed()
}

/// Some parameters of the method; `all` of those without a default when they are needed here.
fn parameters(info: &'static MethodInfo, one_model: bool, all: bool) -> BoxedStrategy<Parameters> {
    let wanted = info
        .parameters
        .iter()
        .filter(move |parameter| !one_model || parameter.scope == Scope::PerModel);
    let each: Vec<_> = wanted
        .map(move |parameter| {
            let given = if all && parameter.default.is_none() {
                Just(true).boxed()
            } else {
                any::<bool>().boxed()
            };
            (given, setting(parameter.domain))
                .prop_map(move |(given, value)| given.then_some((parameter.name, value)))
        })
        .collect();
    each.prop_map(|given| {
        given
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    })
    .boxed()
}

fn model() -> impl Strategy<Value = ModelRef> {
    let path = prop_oneof![
        "[a-z]{1,6}/[a-zA-Z0-9_.-]{1,8}",
        "/[a-z @+~'\"#:]{1,12}",
        Just("base".to_owned()),
        Just("union".to_owned()),
        Just("~".to_owned()),
        Just("null".to_owned()),
        Just("0x1F".to_owned()),
        Just("- é \\".to_owned()),
    ];
    (path, prop::option::weighted(0.2, "[a-z0-9/]{1,8}"))
        .prop_map(|(path, revision)| ModelRef { path, revision })
}

/// Distinct models: as many as the method takes, and one more to be the base.
fn models(info: &'static MethodInfo) -> impl Strategy<Value = Vec<ModelRef>> {
    let most = info.most.min(info.fewest + 3);
    (prop::collection::vec(model(), most + 1), info.fewest..=most).prop_map(
        |(mut models, count)| {
            for (index, model) in models.iter_mut().enumerate() {
                model.path.push_str(&format!("-{index}"));
            }
            models.drain(1..models.len() - count);
            models
        },
    )
}

/// Sources and base: a base is the first of `models`, apart from the others or one of them as the
/// method has it.
fn sources(info: &'static MethodInfo) -> BoxedStrategy<(Sources, Option<ModelRef>)> {
    let slice = || {
        (
            models(info),
            parameters(info, true, false),
            parameters(info, false, false),
            0u32..50,
            1u32..50,
        )
    };
    let slices = prop::collection::vec(slice(), 1..4).prop_map(move |all| {
        let mut slices = Vec::new();
        for (mut models, of_models, of_slice, start, count) in all {
            let base = models[0].clone();
            if matches!(info.base, BaseRule::Counted | BaseRule::RequiredCounted) {
                models.remove(0);
            }
            let based = info.base != BaseRule::Counted;
            let sources = models
                .into_iter()
                .map(|model| SliceSource {
                    model,
                    layer_range: (start % 7 > 0).then_some(LayerRange {
                        start,
                        end: start + count,
                    }),
                    parameters: of_models.clone(),
                })
                .collect::<Vec<_>>();
            let base = if info.base == BaseRule::RequiredCounted {
                sources[0].model.clone()
            } else {
                base
            };
            slices.push(Slice {
                sources,
                base_model: based.then_some(base),
                parameters: of_slice,
            });
        }
        (Sources::Slices(slices), None)
    });
    let whole =
        (models(info), parameters(info, true, false)).prop_map(move |(mut models, of_models)| {
            let base = models[0].clone();
            let base = match info.base {
                BaseRule::Counted => None,
                _ => Some(base),
            };
            // For slerp the base counts, so it takes the place of a model.
            let dropped = if info.base == BaseRule::RequiredCounted {
                2
            } else {
                1
            };
            models.drain(..dropped);
            let entries = models
                .into_iter()
                .map(|model| ModelEntry {
                    model,
                    parameters: of_models.clone(),
                })
                .collect();
            (Sources::Models(entries), base)
        });
    prop_oneof![whole, slices].boxed()
}

fn choice<T: Copy + std::fmt::Debug + 'static>(
    choices: &'static [(&'static str, T)],
) -> BoxedStrategy<Option<T>> {
    prop::option::of(select(choices).prop_map(|(_, choice)| choice)).boxed()
}

fn device() -> BoxedStrategy<Option<Choice>> {
    let known = [Choice::Cpu, Choice::Auto, Choice::Cuda(0), Choice::Cuda(17)];
    prop::option::of(select(known.to_vec())).boxed()
}

fn own(method: MethodName) -> impl Strategy<Value = OwnKeys> {
    let policies = (
        choice(Granularity::CHOICES),
        choice(Mismatch::CHOICES),
        choice(Missing::CHOICES),
    );
    let limits = (
        prop::option::of(1u64..1 << 62),
        prop::option::of(1u64..1 << 62),
        prop::option::of(1u32..=1024),
    );
    let content = (choice(NanPolicy::CHOICES), choice(Quantised::CHOICES));
    let of_elements = (
        prop::option::of(0u64..1 << 53),
        choice(TieRule::CHOICES),
        choice(SignRule::CHOICES),
        choice(RescaleBy::CHOICES),
    );
    let rest = (
        content,
        prop::option::of(1i32..=19),
        prop::option::of("[a-z.0-9 ]{0,9}"),
    );
    let means = move |key: &str| method.info().choices.contains(&key);
    let all = (policies, limits, rest, device(), of_elements);
    all.prop_map(
        move |(policies, limits, rest, device, of_elements)| OwnKeys {
            seed: of_elements.0.filter(|_| means("seed")),
            // Over the model nobody knows which is the first.
            ties: of_elements.1.filter(|choice| {
                means("ties")
                    && (policies.0 != Some(Granularity::Model) || *choice == TieRule::Spread)
            }),
            sign_tie: of_elements.2.filter(|_| means("sign_tie")),
            rescale_by: of_elements.3.filter(|_| means("rescale_by")),
            granularity: policies.0.map(|choice| {
                if method == MethodName::Frechet {
                    Granularity::Model
                } else {
                    choice
                }
            }),
            // Taking from the base needs one, which not every document has.
            mismatch: policies.1.filter(|choice| *choice != Mismatch::Skip),
            missing: policies.2.filter(|choice| *choice != Missing::Base),
            nan: rest.0.0.filter(|choice| *choice != NanPolicy::Base),
            out_shard_size: limits.0,
            memory: limits.1,
            threads: limits.2,
            zstd: rest.1,
            quantised: rest.0.1,
            state_dict_key: rest.2,
            device,
            any_vocabulary: limits.2.map(|threads| threads % 2 == 0),
            any_config: limits.2.map(|threads| threads % 3 == 0),
            align: None,
            rename: Vec::new(),
        },
    )
}

/// How these models could be aligned.
fn align(models: Vec<String>) -> BoxedStrategy<Option<Align>> {
    if models.len() < 2 {
        return Just(None).boxed();
    }
    let file = || "[a-z~ :#'.]{0,6}[a-z]";
    let options = (any::<[bool; 2]>(), 0_usize..3, 0u64..1 << 62, 1usize..1000).prop_map(
        |([raw, signs], way, seed, sweeps)| {
            let cost = if raw { Cost::Raw } else { Cost::Normalised };
            let residual = [Residual::Fixed, Residual::Permute, Residual::Orthogonal][way];
            AlignFrom::Weights(WeightMatching {
                cost,
                residual,
                signs,
                seed,
                sweeps,
            })
        },
    );
    let from = prop_oneof![
        options,
        prop::collection::vec(file(), 1..4).prop_map(AlignFrom::Files),
        (select(models), file()).prop_map(|of| AlignFrom::FilesOf(vec![of])),
    ];
    let all = (from, prop::option::of(file()), any::<[bool; 2]>());
    let align = all.prop_map(|(from, spec, [any_vocabulary, together])| Align {
        together: together && matches!(from, AlignFrom::Weights(_)),
        from,
        spec,
        any_vocabulary,
    });
    prop::option::of(align).boxed()
}

pub fn document() -> impl Strategy<Value = Document> {
    let dtype = || prop::option::of(select(&Dtype::MERGEABLE[..]));
    select(&METHODS[..]).prop_flat_map(move |info| {
        let info = info.method.info();
        let tokenizer = prop_oneof![Just(Tokenizer::Base), model().prop_map(Tokenizer::Model)];
        let template = prop_oneof![
            Just(ChatTemplate::Auto),
            select(&CHAT_TEMPLATES[..]).prop_map(ChatTemplate::Preset),
            "\\{\\{[ a-z|\n\t\"'#:&]{0,20}\\}\\}".prop_map(ChatTemplate::Jinja),
        ];
        let module = ("[a-z_: ]{0,9}", parameters(info, false, false));
        let head = (
            prop::option::of("[a-z][a-z0-9 -]{0,8}"),
            sources(info),
            prop::option::weighted(0.2, module),
        );
        let body = (
            parameters(info, false, true),
            dtype(),
            dtype(),
            prop::option::of(tokenizer),
        );
        let tail = (
            prop::option::of(template),
            prop::option::of(1u64..1 << 20),
            own(info.method),
        );
        let plain = (head, body, tail).prop_map(
            move |((name, (sources, base_model), module), body, tail)| Document {
                name,
                method: info.method,
                sources,
                module: module.map(|(name, parameters)| Module { name, parameters }),
                base_model,
                parameters: body.0,
                dtype: body.1,
                out_dtype: body.2,
                tokenizer: body.3,
                chat_template: tail.0,
                pad_to_multiple_of: tail.1,
                own: tail.2,
                places: thalweg::recipe::Places::default(),
            },
        );
        plain.prop_flat_map(|document| {
            let models = document
                .models()
                .into_iter()
                .map(ToString::to_string)
                .collect();
            align(models).prop_map(move |align| {
                let mut document = document.clone();
                document.own.align = align;
                document
            })
        })
    })
}

/// `value` as block YAML: lists and mappings on lines of their own, scalars as JSON writes them.
fn yaml(value: &Value, indent: usize, out: &mut String) {
    let margin = " ".repeat(indent);
    let mut item = |head: String, value: &Value| {
        out.push_str(&head);
        let nested = value.as_array().is_some_and(|list| !list.is_empty())
            || value.as_object().is_some_and(|map| !map.is_empty());
        if nested {
            out.push('\n');
            yaml(value, indent + 2, out);
        } else {
            out.push_str(&format!(" {value}\n"));
        }
    };
    match value {
        Value::Array(list) => list
            .iter()
            .for_each(|value| item(format!("{margin}-"), value)),
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| {
                item(format!("{margin}{}:", Value::from(key.as_str())), value)
            });
        }
        scalar => out.push_str(&format!("{margin}{scalar}\n")),
    }
}

proptest! {
    #[test]
    fn a_document_reads_back_equal_from_json_and_from_yaml(document in document()) {
        let json = serde_json::to_value(&document).expect("plain values");
        let mut block = String::new();
        yaml(&json, 0, &mut block);
        for text in [json.to_string(), serde_json::to_string_pretty(&document).expect("plain values"), block] {
            match Recipe::parse(&text, "r") {
                Ok(recipe) => prop_assert_eq!(&recipe.documents, std::slice::from_ref(&document)),
                Err(error) => prop_assert!(false, "{}\n{}\n{}", error, error.hint().unwrap_or(""), text),
            }
        }
    }
}
