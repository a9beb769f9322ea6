#!/usr/bin/env python3
"""Trains small Llama nets, aligns and merges pairs of them with thalweg, and prints the losses of the midpoints.

Called by llama-pairs.sh. The nets read bytes of ASCII text: the sources of Python's standard library, one file in fifty
held out. A unigram model of that text loses about 3.2 nats a byte, a bigram model 2.4: a midpoint above that has learnt
nothing that its parents know.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import figures

CONTEXT = 128
BATCH = 8
WINDOWS = 96
PAIRS = [("a", "b", "independent"), ("a", "c", "shared initialisation")]
METHODS = ["linear", "karcher"]
# Name of the row, options of `thalweg align`; none: merged as they are.
WAYS = [
    ("nothing", None),
    ("orders, residual fixed", ["--no-signs"]),
    ("orders and signs, residual fixed", []),
    ("orders, residual permuted", ["--residual", "permute", "--no-signs"]),
    ("orders and signs, residual permuted", ["--residual", "permute"]),
    ("orders and signs, residual orthogonal", ["--residual", "orthogonal"]),
]


def texts():
    """Training and held-out bytes."""
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in folder.rglob("*.py") if not {"site-packages", "__pycache__"} & set(path.parts))
    parts = {True: [], False: []}
    for number, path in enumerate(files):
        text = path.read_bytes()
        if text.isascii():
            parts[number % 50 == 7].append(text)
    return [torch.frombuffer(bytearray(b"\n".join(parts[held])), dtype=torch.uint8).long() for held in (False, True)]


def windows(text, starts):
    return torch.stack([text[start : start + CONTEXT + 1] for start in starts])


def loss_of(model, batch):
    logits = model(batch[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1)), logits


def evaluated(folder, held):
    """Held-out loss and accuracy."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    starts = [at * (len(held) - CONTEXT - 1) // WINDOWS for at in range(WINDOWS)]
    batch = windows(held, starts)
    with torch.no_grad():
        loss, logits = loss_of(model, batch)
    accuracy = (logits.argmax(-1) == batch[:, 1:]).float().mean()
    return float(loss), float(accuracy)


def train(args):
    done = args.out / "config.json"
    if done.exists():
        return
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=128, hidden_size=128, intermediate_size=344, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=False, initializer_range=0.02,
    )
    model = LlamaForCausalLM(config)
    text, held = texts()
    order = torch.Generator().manual_seed(1000 + args.data)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95)
    )
    warm = min(100, args.steps // 10 + 1)
    begun = time.time()
    for step in range(args.steps):
        rate = min((step + 1) / warm, 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / args.steps))).item() + 0.02)
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * rate
        starts = torch.randint(len(text) - CONTEXT - 1, (BATCH,), generator=order).tolist()
        loss, _ = loss_of(model, windows(text, starts))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 99:
            print(f"{args.out.name}: step {step + 1}, loss {loss.item():.3f}, {time.time() - begun:.0f} s", file=sys.stderr)
    part = args.out.with_name(args.out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    shutil.rmtree(args.out, ignore_errors=True)
    part.rename(args.out)


def table(args):
    _, held = texts()
    figures.describe(True)

    def run(*command):
        subprocess.run([args.thalweg, *map(str, command), "--quiet"], check=True)

    for one, other, kind in PAIRS:
        folders = [args.work / f"{name}-{args.steps}" for name in (one, other)]
        ends = [evaluated(folder, held) for folder in folders]
        straight = sum(loss for loss, _ in ends) / 2
        print(f"\n{one} and {other} ({kind}): " + ", ".join(f"loss {loss:.3f}, accuracy {share:.3f}" for loss, share in ends))
        table = figures.Table(["aligned", *(f"{method}: loss, barrier, accuracy" for method in METHODS), "align"], True)
        for name, options in WAYS:
            out = args.work / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            aligned, seconds = [], 0.0
            if options is not None:
                begun = time.time()
                run("align", *folders, "--out", out / "map.safetensors", *options)
                seconds = time.time() - begun
                aligned = ["--align", out / "map.safetensors"]
            cells = []
            for method in METHODS:
                run("merge", *folders, "--method", method, "--out", out / method, *aligned)
                loss, share = evaluated(out / method, held)
                cells.append(f"{loss:.2f}, {loss - straight:.2f}, {share:.2f}")
            table.row(name, *cells, f"{seconds:.1f} s")
            shutil.rmtree(out)


def main():
    logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train")
    command.add_argument("out", type=pathlib.Path)
    command.add_argument("--seed", type=int, required=True)
    command.add_argument("--data", type=int, required=True)
    command.add_argument("--steps", type=int, required=True)
    command.set_defaults(run=train)
    command = commands.add_parser("table")
    command.add_argument("--thalweg", required=True)
    command.add_argument("--work", type=pathlib.Path, required=True)
    command.add_argument("--steps", type=int, required=True)
    command.set_defaults(run=table)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
