#!/usr/bin/env python3
"""Makes the folders of tests/layers/data: tiny random models and what transformers computes with them.

Needs torch and transformers (made with 2.15 and 5.24). Each folder holds config.json, model.safetensors and
expected.safetensors with `tokens` [sequences, length], `hidden` (after the final norm) and `logits`, all from float32
on a CPU. Run it again only to add a model: the test compares values, so new random weights are as good as the old ones.

    python tests/layers/make_hugging_face_expectations.py
"""

import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file

SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_untied": ("llama", {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}),
    "llama_biases_llama3_rope": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "rope_parameters": LLAMA3},
    ),
    "mistral": ("mistral", {"tie_word_embeddings": False, "sliding_window": None, "num_key_value_heads": 1}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("qwen3", {"head_dim": 8, "tie_word_embeddings": False, "num_key_value_heads": 1}),
}


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights large enough that every path shows in the output: norms away from 1, biases away from 0."""
    for name, parameter in model.named_parameters():
        mean, deviation = (1.0, 0.2) if "norm" in name else (0.0, 0.25)
        with torch.no_grad():
            parameter.copy_(mean + deviation * torch.randn(parameter.shape, generator=generator))


def make(folder: pathlib.Path, model_type: str, options: dict, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **options})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    randomise(model, generator)
    if folder.exists():
        shutil.rmtree(folder)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)

    tokens = torch.randint(0, config.vocab_size, (2, 24), generator=generator)
    with torch.no_grad():
        hidden = model.model(tokens).last_hidden_state
        logits = model(tokens).logits
    expected = {"tokens": tokens.int(), "hidden": hidden, "logits": logits}
    save_file({name: value.contiguous() for name, value in expected.items()}, folder / "expected.safetensors")


def main() -> None:
    data = pathlib.Path(__file__).parent / "data"
    for seed, (name, (model_type, options)) in enumerate(MODELS.items()):
        make(data / name, model_type, options, seed + 1)
        print(name, sum(file.stat().st_size for file in (data / name).iterdir()), "bytes")


if __name__ == "__main__":
    main()
