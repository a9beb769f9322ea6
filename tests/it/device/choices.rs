//! Choosing a device on the command line and in a recipe, on machines without one.

use std::fs;
use std::path::Path;

use crate::align::applying::same_bytes;
use crate::align::planted::{llama, planted};
use crate::merge::{Kinship, Place, random_models};
use crate::support::program::run;
use crate::support::reference::Random;
use safetensors::Dtype;

/// A device number that no machine has: the driver is missing, or there is no such device.
const NOWHERE: &str = "cuda:4294967295";

fn place() -> Place {
    let place = Place::new();
    place.models(&random_models(
        &mut Random::new(710),
        &[Dtype::F32; 2],
        &[&[3, 5]],
        Kinship::Independent,
    ));
    place
}

fn root(place: &Place) -> std::path::PathBuf {
    place.path("")
}

/// Why `device` cannot be used.
fn reason(device: &str) -> String {
    let why = match (cfg!(feature = "cuda"), has_driver()) {
        (false, _) => "this program was built without cuda",
        (true, false) => "the CUDA driver is missing",
        (true, true) => "no such device",
    };
    format!("cannot use device: {device}: {why}")
}

/// Whether there is a driver, as a loader finds it.
fn has_driver() -> bool {
    // SAFETY: the driver's library may be loaded by anybody.
    unsafe { libloading::Library::new("libcuda.so.1") }.is_ok()
}

#[test]
fn a_device_that_is_not_there_is_one_clear_error_and_never_the_processor() {
    let place = place();
    let root = root(&place);
    let why = reason(NOWHERE);
    for command in ["merge", "plan", "align"] {
        run(
            &root,
            [
                command,
                "m0",
                "m1",
                "--out",
                "out.safetensors",
                "--device",
                NOWHERE,
            ],
        )
        .fails(2, &[&why]);
    }
    run(&root, ["align", "m0", "m1", "m2", "--device", NOWHERE]).fails(2, &[&why]);
    let recipe = format!("merge_method: karcher\nmodels: [m0, m1]\ndevice: {NOWHERE}\n");
    fs::write(root.join("r.yml"), recipe).expect("written");
    run(&root, ["merge", "r.yml", "--out", "out"]).fails(2, &[&why]);
    assert!(
        !root.join("out").exists() && !root.join("out.safetensors").exists(),
        "something was written"
    );
    // The command line has the last word.
    let done = run(
        &root,
        [
            "merge", "r.yml", "--out", "out", "--device", "cpu", "--json",
        ],
    )
    .ok()
    .json();
    assert_eq!(done["device"], "cpu");
}

#[test]
fn auto_takes_the_processor_where_there_is_no_driver_and_says_so() {
    if cfg!(feature = "cuda") && has_driver() {
        return;
    }
    let place = place();
    let root = root(&place);
    let reason = format!("computed on the cpu: {}", reason("cuda:0"));
    let planned = run(
        &root,
        ["plan", "m0", "m1", "--out", "out", "--device", "auto"],
    )
    .ok()
    .stdout;
    assert!(planned.contains(&reason), "{planned}");
    let done = run(
        &root,
        [
            "merge", "m0", "m1", "--out", "out", "--device", "auto", "--json",
        ],
    )
    .ok();
    let (said, done) = (done.stderr.clone(), done.json());
    assert!(said.contains(&reason), "{said}");
    assert_eq!(done["device"], "cpu");
    assert!(
        done["warnings"][0]
            .as_str()
            .is_some_and(|warning| warning.starts_with(&reason)),
        "{done}"
    );
    run(&root, ["merge", "m0", "m1", "--out", "plain"]).ok();
    let bytes = |out: &str| {
        fs::read(Path::new(&root).join(out).join("model.safetensors")).expect("an output")
    };
    assert!(bytes("out") == bytes("plain"));
}

#[test]
fn names_that_mean_nothing_and_memory_of_no_device_are_refused() {
    let place = place();
    let root = root(&place);
    for odd in ["gpu", "cuda:x", "cuda:"] {
        run(
            &root,
            ["merge", "m0", "m1", "--out", "out", "--device", odd],
        )
        .fails(2, &["cpu, cuda, cuda:N or auto"]);
    }
    let memory = [
        "merge",
        "m0",
        "m1",
        "--out",
        "out",
        "--device-memory",
        "1GiB",
    ];
    run(&root, memory).fails(2, &["--device-memory", "no device", "--device cuda"]);
    let memory = ["align", "m0", "m1", "--device-memory", "1GiB"];
    run(&root, memory).fails(2, &["--device-memory", "no device", "--device cuda"]);
    assert!(!root.join("out").exists());
}

#[test]
fn an_alignment_left_to_us_is_computed_on_the_processor_and_says_so() {
    if cfg!(feature = "cuda") && has_driver() {
        return;
    }
    let stored = planted(&llama(), false);
    let dir = stored.dir.path();
    let reason = format!("computed on the cpu: {}", reason("cuda:0"));
    let done = run(
        dir,
        ["align", "model", "planted", "--device", "auto", "--json"],
    )
    .ok();
    assert!(done.stderr.contains(&reason), "{}", done.stderr);
    assert_eq!(done.json()["device"], "cpu");
    let merge = [
        "merge", "model", "planted", "--align", "weights", "--device", "auto", "--out", "out",
        "--json",
    ];
    let done = run(dir, merge).ok();
    assert!(done.stderr.contains(&reason), "{}", done.stderr);
    assert_eq!(done.json()["device"], "cpu");
    run(
        dir,
        [
            "merge", "model", "planted", "--align", "weights", "--out", "plain", "--quiet",
        ],
    )
    .ok();
    same_bytes(&stored, "out", "plain");
}
