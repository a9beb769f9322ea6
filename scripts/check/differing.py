"""Merges small models whose names, ties, layers and tokenizers differ, and loads the results: PROGRAM WORK."""

import json
import os
import shutil
import subprocess
import sys

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

PROGRAM, WORK = os.path.abspath(sys.argv[1]), sys.argv[2]


def llama(name, seed, layers=3, tied=False):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(f"{WORK}/{name}")
    return f"{WORK}/{name}"


def merge(*arguments, refused=None):
    """Runs a merge; with `refused`, one that must be refused with these words."""
    shutil.rmtree(f"{WORK}/out", ignore_errors=True)
    command = [PROGRAM, "merge", *arguments, "--out", f"{WORK}/out", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if refused is None:
        assert done.returncode == 0, f"{command}: {done.stderr}"
    else:
        assert done.returncode == 2 and refused in done.stderr, f"{command}: {done.returncode} {done.stderr}"


def loaded(kind=AutoModelForCausalLM):
    """The merged model, after checking that loading finds every tensor and needs no other."""
    model, info = kind.from_pretrained(f"{WORK}/out", output_loading_info=True)
    wrong = {key: value for key, value in info.items() if value}
    assert not wrong, f"loading complains: {wrong}"
    return model


def stored(folder):
    return load_file(f"{folder}/model.safetensors")


def same(got, wanted, what):
    assert torch.allclose(got.float(), wanted.float(), atol=1e-6), what


def ties():
    own, tied, other = llama("own", 1), llama("tied", 2, tied=True), llama("other", 3, tied=True)
    merge(own, tied, "--method", "linear")
    model = loaded()
    assert not model.config.tie_word_embeddings
    head = (stored(own)["lm_head.weight"] + stored(tied)["model.embed_tokens.weight"]) / 2
    same(model.lm_head.weight, head, "a head of one and the embeddings of the other")
    merge(tied, other, "--method", "linear")
    model = loaded()
    assert model.config.tie_word_embeddings and "lm_head.weight" not in stored(f"{WORK}/out")
    same(model.lm_head.weight, model.model.embed_tokens.weight, "one tensor under two names")


def encoder_decoder():
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=48, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        T5ForConditionalGeneration(config).save_pretrained(f"{WORK}/t5-{seed}")
        folders.append(f"{WORK}/t5-{seed}")
    # The second stores its shared embeddings under another of their names.
    tensors = stored(folders[1])
    shared = tensors.pop("shared.weight")
    save_file(tensors | {"encoder.embed_tokens.weight": shared}, f"{folders[1]}/model.safetensors", {"format": "pt"})
    merge(*folders, "--method", "linear")
    model = loaded(T5ForConditionalGeneration)
    same(model.shared.weight, (stored(folders[0])["shared.weight"] + shared) / 2, "an alias of shared embeddings")


def names():
    plain, wrapped = llama("plain", 4), llama("wrapped", 5)
    before = stored(wrapped)
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in before.items()}
    save_file(tensors, f"{wrapped}/model.safetensors", {"format": "pt"})
    merge(plain, wrapped, "--method", "linear", refused=r"2:^_orig_mod\.=")
    merge(plain, wrapped, "--method", "linear", "--rename", r"2:^_orig_mod\.=")
    model = loaded()
    same(model.lm_head.weight, (stored(plain)["lm_head.weight"] + before["lm_head.weight"]) / 2, "renamed")


def layers():
    deep, shallow = llama("deep", 6, layers=4), llama("shallow", 7, layers=3)
    merge(shallow, deep, "--method", "linear", refused="--missing")
    merge(shallow, deep, "--method", "linear", "--missing", "common")
    model = loaded()
    assert model.config.num_hidden_layers == len(model.model.layers) == 4
    last = "model.layers.3.mlp.up_proj.weight"
    same(model.state_dict()[last], stored(deep)[last], "a layer of one model alone")
    merge(shallow, deep, "--method", "linear", "--missing", "base", "--base", "1")
    assert loaded().config.num_hidden_layers == 3


def tokenizers():
    folders = [llama("words", 8), llama("swapped", 9)]
    words = ["<unk>", "<s>", "</s>"] + [f"w{number}" for number in range(45)]
    for folder, order in zip(folders, [words, words[:3] + words[4:5] + words[3:4] + words[5:]]):
        vocabulary = {word: number for number, word in enumerate(order)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    merge(*folders, refused="--any-vocabulary")
    merge(*folders, "--any-vocabulary")
    loaded()
    merge(folders[0], folders[0])
    loaded()


def main():
    shutil.rmtree(WORK, ignore_errors=True)
    os.makedirs(WORK)
    for check in (ties, encoder_decoder, names, layers, tokenizers):
        check()
        print(f"ok: {check.__name__}", flush=True)
    with open(f"{WORK}/out/config.json") as file:
        assert json.load(file)["model_type"] == "llama"


main()
