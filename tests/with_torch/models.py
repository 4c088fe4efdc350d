"""Random tiny checkpoints of every family, as transformers writes them, and the programs to run on them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from support import make_tokenizer

from reprise.indexed_dataset import IndexedDatasetWriter

transformers.utils.logging.disable_progress_bar()

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TOKENS = 260  # of the tokenizer of `support`: every byte and four special tokens
SIZES = {"vocab_size": TOKENS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
OF_FAMILY = {"llama": {}, "mistral": {"sliding_window": None}, "qwen2": {}, "qwen3": {"head_dim": 8}}


def make_config(family: str, **options: object) -> transformers.PreTrainedConfig:
    return transformers.AutoConfig.for_model(family, **{**SIZES, **OF_FAMILY[family], **options})


def make_model(folder: Path, family: str, *, seed: int = 1, dtype: torch.dtype = torch.float32, tokenizer: bool = True,
               max_shard_size: str = "50GB", **options: object) -> transformers.PreTrainedModel:
    """A folder with weights so large that every path shows in the output: norms away from 1, biases away from 0."""
    generator = torch.Generator().manual_seed(seed)
    config = make_config(family, **options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, deviation = (1.0, 0.2) if "norm" in name else (0.0, 0.25)
            parameter.copy_(mean + deviation * torch.randn(parameter.shape, generator=generator))
    model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        make_tokenizer(folder, tokenizer_class="PreTrainedTokenizerFast")
    return model


def write_old_spelling(folder: Path) -> None:
    """Turns the config.json of transformers 5 into what transformers 4 wrote."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype", "float32")
    config.pop("layer_types", None)
    path.write_text(json.dumps(config, indent=2))


def write_dataset(prefix: Path, documents: list[list[int]], vocab_size: int = TOKENS) -> Path:
    """Every token but the first of a document is a target."""
    with IndexedDatasetWriter(prefix, vocab_size) as writer:
        for tokens in documents:
            writer.add(tokens, [0] + [1] * (len(tokens) - 1))
    return prefix


def random_documents(lengths: list[int], vocab_size: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def log_probs(model: torch.nn.Module, document: list[int], vocab_size: int) -> torch.Tensor:
    """Of every token but the first, over the first vocab_size rows of the head."""
    tokens = torch.tensor([document])
    logits = model(tokens[:, :-1]).logits[0, :, :vocab_size]
    return torch.log_softmax(logits, -1).gather(-1, tokens[0, 1:, None])[:, 0]


def run(words: list[object], *, ranks: int = 1, fails: bool = False, cwd: Path | None = None) -> str:
    """Runs a program, under mpirun with several ranks; returns what it printed. A wrong exit code is an error."""
    words = [str(word) for word in words]
    if ranks > 1:
        words = [os.environ["REPRISE_MPIEXEC"], "-n", str(ranks), *words]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, check=False)
    if (done.returncode != 0) != fails:
        raise AssertionError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def run_reprise(*words: object, ranks: int = 1, fails: bool = False, cwd: Path | None = None) -> str:
    """`ranks` are processes under mpirun; pass "--ranks", n for threads of one process."""
    return run([os.environ["REPRISE_PROGRAM"], *words], ranks=ranks, fails=fails, cwd=cwd)


def dump_gradients(*words: object, fails: bool = False) -> str:
    return run([Path(os.environ["REPRISE_BINARY_DIR"]) / "dump_gradients", *words], fails=fails)


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model folder, of one file or many."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors
