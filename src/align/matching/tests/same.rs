//! The same result on every path of computation, and from every point where a run is resumed.

use std::sync::Mutex;

use super::*;

fn mixed(units: u64) -> Case {
    let config = json!({ "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32, "head_dim": 8 });
    Case::new(
        "llama",
        config,
        &[
            ("model.embed_tokens.weight", &[60, 32]),
            ("model.layers.0.input_layernorm.weight", &[32]),
            ("model.layers.0.self_attn.q_proj.weight", &[32, 32]),
            ("model.layers.0.self_attn.k_proj.weight", &[16, 32]),
            ("model.layers.0.self_attn.v_proj.weight", &[16, 32]),
            ("model.layers.0.self_attn.o_proj.weight", &[32, 32]),
            ("model.layers.0.post_attention_layernorm.weight", &[32]),
            ("model.layers.0.mlp.gate_proj.weight", &[units, 32]),
            ("model.layers.0.mlp.up_proj.weight", &[units, 32]),
            ("model.layers.0.mlp.down_proj.weight", &[32, units]),
            ("model.norm.weight", &[32]),
            ("lm_head.weight", &[60, 32]),
        ],
    )
}

/// An observer that keeps the steps and the reported operations.
#[derive(Default)]
struct Kept {
    steps: Mutex<Vec<Step>>,
    planned: Mutex<u64>,
    advanced: Mutex<u64>,
}

impl Watch for Kept {
    fn planned(&self, operations: u64) {
        *self.planned.lock().expect("whole") += operations;
    }

    fn advanced(&self, operations: u64) {
        *self.advanced.lock().expect("whole") += operations;
    }

    fn taken(&self, step: &Step) -> Result<()> {
        self.steps.lock().expect("whole").push(step.clone());
        Ok(())
    }
}

/// Two models that have little in common, so that everything has to be solved.
struct Run {
    reference: Arc<Store>,
    moving: Arc<Store>,
    symmetries: Arc<Symmetries>,
    options: MatchOptions,
}

impl Run {
    fn new(case: &Case, options: MatchOptions) -> Self {
        let original = random(&case.shapes, 1);
        let symmetries = symmetries(case.spec, &original, &case.config);
        let moving = applied(
            &noised(&original, 3.0, 2),
            &symmetries,
            &Transform::random(&symmetries, 4),
        );
        Self {
            reference: store(&original),
            moving: store(&moving),
            symmetries,
            options,
        }
    }

    fn go(&self, replay: &[Step], watch: &dyn Watch) -> Result<Matched> {
        let start = Transform::identity(&self.symmetries);
        match_weights(
            self.reference.as_ref(),
            &self.moving,
            &self.symmetries,
            Start {
                transform: &start,
                steps: replay,
            },
            &self.options,
            watch,
        )
    }
}

fn least_memory(run: &mut Run) -> u64 {
    for mebibytes in 1..200 {
        run.options.memory = mebibytes << 20;
        match run.go(&[], &Unwatched) {
            Ok(_) => return run.options.memory,
            Err(error) => assert_eq!(error.kind(), Kind::Budget, "{error}"),
        }
    }
    panic!("200 MiB are enough for this");
}

#[test]
fn threads_and_memory_do_not_show() {
    let mut run = Run::new(
        &mixed(1300),
        MatchOptions {
            residual: Residual::Permute,
            sweeps: 2,
            ..MatchOptions::default()
        },
    );
    let least = least_memory(&mut run);
    assert!(least > 4 << 20, "some budgets are refused");
    let mut results = Vec::new();
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool");
        for memory in [least + (32 << 20), 1 << 30] {
            run.options.memory = memory;
            results.push(pool.install(|| run.go(&[], &Unwatched)).expect("matched"));
        }
    }
    assert!(
        results[0].steps.iter().all(|step| step.moved > 0),
        "there is something to move"
    );
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn a_run_goes_on_from_any_step() {
    let run = Run::new(
        &mixed(60),
        MatchOptions {
            residual: Residual::Permute,
            ..MatchOptions::default()
        },
    );
    let kept = Kept::default();
    let whole = run.go(&[], &kept).expect("matched");
    let steps = kept.steps.into_inner().expect("whole");
    assert!(steps.len() >= 4 && whole.sweeps > 1);
    for taken in 0..=steps.len() {
        let rest = Kept::default();
        assert_eq!(run.go(&steps[..taken], &rest).expect("matched"), whole);
        assert_eq!(
            rest.steps.into_inner().expect("whole"),
            steps[taken..],
            "only what is left is solved"
        );
    }
}

#[test]
fn steps_of_another_run_are_refused() {
    let run = Run::new(
        &mixed(60),
        MatchOptions {
            residual: Residual::Permute,
            ..MatchOptions::default()
        },
    );
    let kept = Kept::default();
    run.go(&[], &kept).expect("matched");
    let steps = kept.steps.into_inner().expect("whole");
    let mut swapped = steps.clone();
    swapped.swap(1, 2);
    let mut longer = steps.clone();
    longer.push(steps[0].clone());
    let mut broken = steps.clone();
    broken[0].elements[0].1.permutation[0] = 7000;
    let mut foreign = steps;
    foreign[0].elements[0].0 = 2;
    for odd in [swapped, longer, broken, foreign] {
        let error = run.go(&odd, &Unwatched).expect_err("refused");
        assert_eq!(error.kind(), Kind::Resume, "{error}");
    }
}

#[test]
fn the_work_is_announced_and_done() {
    let run = Run::new(&mixed(1100), MatchOptions::default());
    let kept = Kept::default();
    run.go(&[], &kept).expect("matched");
    let (planned, advanced) = (
        kept.planned.into_inner().expect("whole"),
        kept.advanced.into_inner().expect("whole"),
    );
    assert_eq!(planned, advanced, "one pass, and all of C is kept");
}
