#!/usr/bin/env bash
# Loads merged models in transformers and runs them: scripts/check/transformers.sh
#
# Makes a virtual environment with torch and transformers under target (some GB, once), or uses PYTHON=/path/to/python
# that has them. Not a part of continuous integration, for the size of the download.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

python=$(python_with transformers "torch transformers" torch transformers)
build thalweg make-checkpoint
work=$target/transformers
rm -rf "$work"
"$target/release/make-checkpoint" --out "$work/tuned" --shape tiny --shard-size 100KB \
    --base-seed 1 --seed 10 --noise 0.05 --models 2
"$target/release/thalweg" merge "$work/tuned/model-1" "$work/tuned/model-2" --shard-size 100KB --quiet \
    --out "$work/merged"
# Every type that can be written; those of 8 bits are widened when they are loaded.
dtypes=(float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2)
for dtype in "${dtypes[@]}"; do
    "$target/release/thalweg" merge "$work/tuned/model-1" "$work/tuned/model-2" --quiet \
        --dtype "$dtype" --out "$work/$dtype"
done

for folder in "$work/tuned/model-1" "$work/merged" "${dtypes[@]/#/$work/}"; do
    HF_HUB_OFFLINE=1 "$python" - "$folder" <<'PYTHON'
import os
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
wrong = {key: value for key, value in info.items() if value}
assert not wrong, f"loading complains: {wrong}"
name = os.path.basename(folder)
wanted = torch.bfloat16 if name.startswith("float8") else getattr(torch, name, torch.bfloat16)
assert {parameter.dtype for parameter in model.parameters()} == {wanted}, (model.dtype, wanted)
tokenizer = AutoTokenizer.from_pretrained(folder)
text = "The line of fastest flow, für immer."
tokens = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
assert tokenizer.decode(tokens.input_ids[0], skip_special_tokens=True) == text
logits = model(**tokens).logits
assert logits.shape == (1, tokens.input_ids.shape[1], model.config.vocab_size), logits.shape
assert torch.isfinite(logits).all() and logits.std() > 0
print(f"ok: {folder}: {sum(p.numel() for p in model.parameters())} parameters, logits {tuple(logits.shape)}")
PYTHON
done

# Ties, names, layers and tokenizers that differ between the inputs.
HF_HUB_OFFLINE=1 "$python" scripts/check/differing.py "$target/release/thalweg" "$work/differing"
