//! The command line: what it says, where, and with which exit code.

mod doors;
mod judgement;
mod refusals;
mod sentences;

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use thalweg::dtype::Dtype;

use crate::crash_merge::small_shards;
use crate::support::files::flip;
use crate::support::files::{files_below, scratch};
use crate::support::program::{program, run, start};
use crate::support::slow::{slow_inputs, slow_merge};
use crate::support::striped::{Spec, spec, write, write_headers};

/// A folder with the models `a` and `b`.
fn two_models() -> TempDir {
    let root = scratch();
    for (name, seed) in [("a", 1), ("b", 2)] {
        write(&root.path().join(name), &small_shards(), seed);
    }
    root
}

const MERGE: [&str; 5] = ["merge", "a", "b", "--out", "out"];

#[test]
fn a_merge_prints_its_summary_and_nothing_else() {
    let root = two_models();
    let ended = run(root.path(), MERGE).ok();
    assert!(
        ended
            .stdout
            .starts_with("merged 2 models by karcher into out in "),
        "{ended:?}"
    );
    assert!(
        ended
            .stdout
            .contains("\noutput: 8 tensors, of them 2 unchanged, "),
        "{ended:?}"
    );
    assert!(
        ended.stdout.contains(" in 1 shard\n") && ended.stdout.contains("memory: at most "),
        "{ended:?}"
    );
    assert_eq!(ended.stderr, "");
    let verified = run(root.path(), ["verify", "out"]).ok();
    assert!(
        verified
            .stdout
            .starts_with("verified: 8 tensors in 1 shard, ")
            && verified.stderr.is_empty()
    );
}

#[test]
fn quiet_is_silent() {
    let root = two_models();
    for args in [&MERGE[..], &["verify", "out"]] {
        let ended = run(root.path(), args.iter().chain(&["--quiet"])).ok();
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""));
    }
}

#[test]
fn json_has_the_documented_fields() {
    let root = two_models();
    let keys = |args: &[&str]| -> Vec<String> {
        let value = run(root.path(), args.iter().chain(&["--json"])).ok().json();
        value
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect()
    };
    assert_eq!(
        keys(&["plan", "a", "b", "--out", "out"]),
        [
            "out",
            "identity",
            "memory",
            "device",
            "blocks",
            "block_elements",
            "read_bytes",
            "read_twice_bytes",
            "read_if_needed_bytes",
            "written_bytes",
            "disk_needed_bytes",
            "disk_free_bytes",
            "side_files",
            "left_beside",
            "outlook",
            "combined",
            "notes",
            "tensors",
            "dropped",
            "partial",
            "warnings"
        ]
    );
    assert!(!root.path().join("out").exists(), "a plan writes nothing");
    assert_eq!(
        keys(&MERGE),
        [
            "status",
            "out",
            "combined",
            "device",
            "tensors",
            "merged",
            "shards",
            "output_bytes",
            "stored_bytes",
            "verified_bytes",
            "read_bytes",
            "written_bytes",
            "seconds",
            "peak_resident_bytes",
            "memory_limit_bytes",
            "mean_angle",
            "largest_angle",
            "solved",
            "warnings"
        ]
    );
    assert_eq!(
        keys(&["verify", "out"]),
        [
            "status",
            "shards",
            "tensors",
            "data_bytes",
            "has_checksums",
            "unnamed",
            "side_files",
            "notes",
            "rechecked",
            "peak_resident_bytes",
            "memory_limit_bytes"
        ]
    );
}

#[test]
fn every_command_explains_its_flags() {
    let root = scratch();
    let shared = [
        "--out",
        "--method",
        "--weights",
        "--granularity",
        "--max-iter",
        "--tol",
        "--parameter",
        "--base",
        "--dtype",
        "--shard-size",
        "--nan",
        "--missing",
        "--memory",
        "--threads",
        "--device",
        "--device-memory",
        "--block-size",
        "--json",
        "--help",
    ];
    let merge = [
        "--align",
        "--restart",
        "--overwrite",
        "--verify",
        "--quiet",
        "--io",
        "--simd",
    ];
    let align = [
        "--out",
        "--spec",
        "--cost",
        "--residual",
        "--no-signs",
        "--seed",
        "--max-sweeps",
        "--any-vocabulary",
    ];
    let run_flags = [
        "--groups",
        "--memory",
        "--threads",
        "--restart",
        "--overwrite",
        "--io",
        "--simd",
        "--json",
        "--quiet",
    ];
    let align = [&align[..], &run_flags].concat();
    for (command, own) in [
        ("merge", &merge[..]),
        ("plan", &["--tensors", "--align"]),
        ("verify", &["--json", "--quiet", "--help"]),
        ("align", &align),
    ] {
        let help = run(root.path(), [command, "--help"]).ok().stdout;
        let wanted = shared
            .iter()
            .filter(|_| matches!(command, "merge" | "plan"))
            .chain(own);
        wanted.for_each(|flag| {
            assert!(
                help.contains(flag),
                "{command} --help does not mention {flag}"
            )
        });
        // Each flag that is listed says something.
        let lines: Vec<&str> = help.lines().collect();
        for (at, line) in lines
            .iter()
            .enumerate()
            .filter(|(_, line)| line.trim_start().starts_with('-'))
        {
            let words = line
                .split_whitespace()
                .filter(|word| !word.starts_with(['-', '<']))
                .count();
            let below = lines
                .get(at + 1)
                .is_some_and(|next| next.starts_with("          "));
            assert!(words > 0 || below, "{command}: {line}");
        }
    }
    let all = run(root.path(), ["--help"]).ok().stdout;
    assert!(
        ["merge", "plan", "verify", "3 stopped but resumable"]
            .iter()
            .all(|words| all.contains(words)),
        "{all}"
    );
    assert!(
        run(root.path(), ["--version"])
            .ok()
            .stdout
            .starts_with("thalweg ")
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let root = two_models();
    for args in [
        &MERGE[..],
        &["verify", "out"],
        &["plan", "a", "b", "--out", "other", "--tensors"],
    ] {
        let mut child = program(root.path(), args)
            .spawn()
            .expect("the program starts");
        drop(child.stdout.take());
        let mut stderr = String::new();
        child
            .stderr
            .take()
            .expect("piped")
            .read_to_string(&mut stderr)
            .expect("UTF-8");
        assert_eq!(
            (
                child.wait().expect("a child of ours").code(),
                stderr.as_str()
            ),
            (Some(0), ""),
            "{args:?}"
        );
    }
    // Help and usage go the way of the argument parser.
    let mut help: Command = program(root.path(), ["merge", "--help"]);
    let mut child = help
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    assert!(
        child.wait().expect("a child of ours").code().is_some(),
        "no signal, no panic"
    );
}

#[test]
fn progress_in_a_pipe_is_a_line_every_few_seconds() {
    let root = slow_inputs();
    let begun = Instant::now();
    let mut running = start(root.path(), slow_merge("out", &[]));
    assert!(running.until(|| root.path().join("out/.thalweg/journal").exists()));
    // The clock of its lines starts when it merges, a moment after the journal is there.
    std::thread::sleep(Duration::from_millis(100));
    // Held still until the next line is due.
    running.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(5100).saturating_sub(begun.elapsed()));
    running.signal(Signal::CONT);
    let ended = running.end().ok();
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert!((1..4).contains(&lines.len()), "{ended:?}");
    for line in lines {
        assert!(
            line.starts_with("merging ") && line.contains("%), ") && line.contains(" GB/s, "),
            "{line}"
        );
        assert!(line.ends_with(" of 256 MiB]"), "{line}");
    }
    assert!(ended.stdout.starts_with("merged "), "{ended:?}");
}

/// The tensors of a 70B Llama, spread over 30 shards of header and hole.
fn seventy_billion(folder: &Path) {
    let layer = |number: u64| {
        let name = |part: &str| format!("model.layers.{number}.{part}.weight");
        let matrix = |part: &str, rows, columns| spec(name(part), Dtype::BF16, &[rows, columns]);
        vec![
            spec(name("input_layernorm"), Dtype::BF16, &[8192]),
            matrix("self_attn.q_proj", 8192, 8192),
            matrix("self_attn.k_proj", 1024, 8192),
            matrix("self_attn.v_proj", 1024, 8192),
            matrix("self_attn.o_proj", 8192, 8192),
            spec(name("post_attention_layernorm"), Dtype::BF16, &[8192]),
            matrix("mlp.gate_proj", 28_672, 8192),
            matrix("mlp.up_proj", 28_672, 8192),
            matrix("mlp.down_proj", 8192, 28_672),
        ]
    };
    let mut tensors: Vec<Spec> = (0..80).flat_map(layer).collect();
    tensors.push(spec("model.norm.weight", Dtype::BF16, &[8192]));
    tensors.push(spec(
        "model.embed_tokens.weight",
        Dtype::BF16,
        &[128_256, 8192],
    ));
    tensors.push(spec("lm_head.weight", Dtype::BF16, &[128_256, 8192]));
    let shards: Vec<Vec<Spec>> = tensors
        .chunks(tensors.len().div_ceil(30))
        .map(<[Spec]>::to_vec)
        .collect();
    write_headers(folder, &shards);
}

#[test]
fn a_merge_of_two_70b_models_is_planned_in_a_second_from_their_headers() {
    let root = scratch();
    seventy_billion(&root.path().join("a"));
    seventy_billion(&root.path().join("b"));
    let args = [
        "plan", "a", "b", "--out", "out", "--memory", "1GiB", "--json",
    ];
    let timed = |_| {
        let begun = Instant::now();
        let ended = start(
            root.path(),
            args.map(|arg| if arg == "--json" { "--threads=8" } else { arg }),
        )
        .end_watched();
        // The plan is made all the same where this machine's disk is too small for the output.
        assert!(
            ended.code == Some(0) || ended.stderr.contains("no space left"),
            "{ended:?}"
        );
        (begun.elapsed(), ended.peak)
    };
    // The machine may be busy with other tests: the best of three counts. Reading 280 GB would take
    // minutes.
    let (span, peak) = (0..3).map(timed).min().expect("three runs");
    assert!(span < Duration::from_secs(1), "{span:?}");
    assert!(peak < 128 << 20, "{peak}");
    let plan = run(root.path(), args).json();
    assert_eq!(plan["tensors"].as_array().map(Vec::len), Some(723));
    assert_eq!(plan["written_bytes"], 141_107_412_992_u64);
}

#[test]
fn verify_finds_damage_in_every_file() {
    let root = two_models();
    let merge = [
        "merge",
        "a",
        "b",
        "--out",
        "out",
        "--shard-size",
        "170KB",
        "--quiet",
    ];
    run(root.path(), merge).ok();
    let out = root.path().join("out");
    let sound = files_below(&out);
    let weights = |name: &Path| name.extension().is_some_and(|end| end == "safetensors");
    assert_eq!(sound.keys().filter(|name| weights(name)).count(), 3);
    let verify = || run(root.path(), ["verify", "out", "--quiet"]);
    verify().ok();
    // Side files have no checksum: people edit them.
    let has_checksum = |name: &Path| {
        weights(name)
            || name.ends_with("thalweg.json")
            || name.to_string_lossy().ends_with(".index.json")
    };
    for (name, bytes) in sound.iter().filter(|(name, _)| has_checksum(name)) {
        let path = out.join(name);
        let last = bytes.len() as u64 - 1;
        // Length of the header, header, data; of the manifest, anything.
        let places = [0, 3, 9, 40, last / 2, last];
        for at in places {
            let is_blank = bytes[usize::try_from(at).expect("small")].is_ascii_whitespace();
            if is_blank && name.to_string_lossy().ends_with(".index.json") {
                continue;
            }
            flip(&path, at);
            let found = verify();
            assert_eq!(
                found.code,
                Some(1),
                "byte {at} of {}: {found:?}",
                name.display()
            );
            assert!(found.stderr.starts_with("thalweg: cannot "), "{found:?}");
            flip(&path, at);
        }
        std::fs::remove_file(&path).expect("removed");
        if name.ends_with("thalweg.json") {
            // Without its manifest it is any checkpoint, of which only the structure can be
            // checked.
            assert!(
                run(root.path(), ["verify", "out"])
                    .ok()
                    .stdout
                    .contains("no checksums")
            );
        } else {
            verify().fails(1, &["missing"]);
        }
        std::fs::write(&path, bytes).expect("written");
    }
    std::fs::write(
        out.join("model-00004-of-00003.safetensors"),
        &sound[Path::new("model-00001-of-00003.safetensors")],
    )
    .expect("written");
    verify().fails(
        1,
        &[
            "model-00004-of-00003.safetensors",
            "the manifest knows of no such shard",
        ],
    );
    run(root.path(), ["verify", "nowhere"]).fails(
        1,
        &["thalweg: cannot verify: nowhere: there is no such folder"],
    );
}
