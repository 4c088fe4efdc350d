"""A tiny Hugging Face folder with random weights and without any tokenizer file, and runs of the program."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np


def make_model(folder: Path, vocab_size: int, *, hidden: int = 32, ffn: int = 48, layers: int = 2, heads: int = 4, kv_heads: int = 2,
               positions: int = 64, seed: int = 1, **config: object) -> Path:
    """A llama."""
    folder.mkdir(parents=True)
    head = hidden // heads
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab_size, "hidden_size": hidden,
        "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": positions,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "torch_dtype": "float32", **config}))
    shapes = {"model.embed_tokens.weight": (vocab_size, hidden), "model.norm.weight": (hidden,), "lm_head.weight": (vocab_size, hidden)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in {
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "self_attn.q_proj": (heads * head, hidden),
            "self_attn.k_proj": (kv_heads * head, hidden), "self_attn.v_proj": (kv_heads * head, hidden),
            "self_attn.o_proj": (hidden, heads * head), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn)}.items()}
    rng = np.random.default_rng(seed)
    header, values, offset = {}, [], 0
    for name, shape in shapes.items():
        value = np.ones(shape, np.float32) if len(shape) == 1 else rng.normal(0, 0.05, shape).astype(np.float32)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
        values.append(value.tobytes())
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(values))
    return folder


def reprise(*words: object, ranks: int = 1, mpi: bool = False, folder: Path | None = None) -> str:
    """Runs the program that was built, its ranks as threads or under mpirun; what it printed."""
    launch = [os.environ.get("REPRISE_MPIEXEC", "mpirun"), "-n", str(ranks)] if mpi else []
    inside = ["--ranks", str(ranks)] if ranks > 1 and not mpi else []
    command = [*launch, os.environ["REPRISE_PROGRAM"], *map(str, words), *inside]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=110)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout
