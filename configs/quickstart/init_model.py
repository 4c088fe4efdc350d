"""Writes the quickstart's model with random weights as a Hugging Face folder: where `build_base` starts from."""

from __future__ import annotations

import argparse
import json
import shutil
import struct
from pathlib import Path

import numpy as np

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8192, "hidden_size": 192,
    "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 48,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512,
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "bos_token_id": None, "eos_token_id": 0,
    "torch_dtype": "float32",
}


def tensors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    hidden, ffn, layers = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["num_hidden_layers"]
    residual = 0.02 / np.sqrt(2 * layers)

    def normal(rows: int, cols: int, deviation: float = 0.02) -> np.ndarray:
        return (rng.standard_normal((rows, cols)) * deviation).astype(np.float32)

    result = {"model.embed_tokens.weight": normal(CONFIG["vocab_size"], hidden), "model.norm.weight": np.ones(hidden, np.float32)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            result[f"{layer}{name}.weight"] = np.ones(hidden, np.float32)
        for name in "qkv":
            result[f"{layer}self_attn.{name}_proj.weight"] = normal(hidden, hidden)
        result[f"{layer}self_attn.o_proj.weight"] = normal(hidden, hidden, residual)
        for name in ("gate", "up"):
            result[f"{layer}mlp.{name}_proj.weight"] = normal(ffn, hidden)
        result[f"{layer}mlp.down_proj.weight"] = normal(hidden, ffn, residual)
    return result


def write_safetensors(path: Path, values: dict[str, np.ndarray]) -> None:
    header, offset = {}, 0
    for name, value in values.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in values.values():
            file.write(value.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    write_safetensors(options.folder / "model.safetensors", tensors(options.seed))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(options.tokenizer / name, options.folder / name)


if __name__ == "__main__":
    main()
