"""Small tokenizers, run folders and stores for the tests of the Python package."""

from __future__ import annotations

import json
from pathlib import Path

CHAT_TEMPLATE = ("{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
                 "{% if add_generation_prompt %}<|assistant|>{% endif %}")


def make_tokenizer(folder: Path, special_tokens: tuple[str, ...] = (), text_to_merge: str = "", **config: object) -> Path:
    """A byte-level tokenizer: every byte is a token, and so are pairs often seen in `text_to_merge`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if text_to_merge:
        tokenizer.train_from_iterator([text_to_merge], trainers.BpeTrainer(vocab_size=500, show_progress=False, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(["<|end|>", "<|user|>", "<|assistant|>", "<s>", *special_tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def make_run(folder: Path, *, normalization: str, optimizer: str, steps: int = 40, store: str = "", results: dict | None = None,
             spike_at: int = -1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.toml").write_text(f"""
[replay]
store = "{store}"
normalization = "{normalization}"
tile_tokens = 8
negatives = 0
[optimizer]
name = "{optimizer}"
max_angle = 45.0
angle_scope = "tensor"
""")
    lines: list[dict] = [{"schema": 1}]
    for step in range(1, steps + 1):
        noise = 0.01 * ((step * 7919) % 11 - 5) / 5
        record = {"step": step, "loss": 1.0 + noise + (5.0 if step == spike_at else 0.0), "lr": 1e-3, "grad_norm": 1.0,
                  "skipped": False, "tokens": 100, "head_ms": 2.0 + step, "step_ms": 10.0 + step, "tokens_per_second": 1e4,
                  "memory_bytes": 100 << 20}
        if optimizer == "moclip":
            record |= {"angle_mean": 80.0, "angle_max": 100.0, "clipped_share": 0.5, "angle_quantiles": [60, 70, 80, 90, 99]}
        if step % 10 == 0:
            record["out_of_set_mass"] = 0.01 * step
        lines.append(record)
    lines.append({"step": 0, "eval": "general", "loss": 2.0, "tokens": 10})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def make_store(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [0] * 201
    sizes[1], sizes[40], sizes[200] = 50, 40, 10
    (folder / "manifest.json").write_text(json.dumps({
        "provenance": {"vocab_size": "8192", "tau": "0.95", "k_max": "200"},
        "shards": [{"tokens": 100, "bytes": 6000, "ids": 3650}],
        "statistics": {"samples": 5, "tokens": 100, "ids": 3650, "gold_outside": 1, "at_k_max": 10, "mass": 96.0, "set_size": sizes,
                       "bucket": [10, 10, 10, 20, 50]}}))
    return folder
