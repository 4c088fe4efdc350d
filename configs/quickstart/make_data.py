"""The quickstart's data: the Python standard library as general text, questions over a telecom schema as the domain.

Writes FOLDER/{general_test,domain,domain_test,domain_valid}.{bin,idx,mask.bin,json} and the questions as JSONL; with
--base also the data that the shipped base model was trained on (base.*), and with --train-tokenizer the tokenizer itself.
domain_valid is what learning rates are chosen on, domain_test what the report measures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "plugin" / "python")]

import nl2sql  # noqa: E402
from reprise.prepare import prepare  # noqa: E402

VOCAB_SIZE = 8192
END = "<|end|>"
DOMAIN_SAMPLES, DOMAIN_TEST, BASE_HAS_SEEN, DOMAIN_VALID, SEED = 4200, 400, 900, 200, 1
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "encodings", "pydoc_data",
                   "turtledemo", "__pycache__", "ensurepip"}


def standard_library() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in root.rglob("*.py") if not SKIPPED_FOLDERS & set(f.relative_to(root).parts)
             and not f.name.startswith("_sysconfigdata")]
    return sorted(files, key=lambda f: str(f.relative_to(root)))


def is_held_out(file: Path) -> bool:
    """5 % of the files, chosen by name: the same ones on every machine."""
    return hashlib.sha256(file.name.encode()).digest()[0] < 14


def write_jsonl(path: Path, pairs: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def other_pairs(per_schema: int) -> list[dict[str, str]]:
    return [pair for schema in nl2sql.OTHER_SCHEMAS for pair in nl2sql.make_pairs(schema, per_schema, SEED)]


def domain_pairs() -> dict[str, list[dict[str, str]]]:
    """Disjoint questions by use; `seen` are the few of the domain in the base model's own training data."""
    counts = {"train": DOMAIN_SAMPLES, "test": DOMAIN_TEST, "seen": BASE_HAS_SEEN, "valid": DOMAIN_VALID}
    pairs = nl2sql.make_pairs(nl2sql.TELECOM, sum(counts.values()), SEED)
    parts, begin = {}, 0
    for name, count in counts.items():
        parts[name] = pairs[begin : begin + count]
        begin += count
    return parts


def train_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=[END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    texts = [f.read_text(errors="replace") for f in standard_library() if not is_held_out(f)]
    texts += [pair["prompt"] + pair["completion"] for pair in other_pairs(1200)]
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "model_max_length": 512}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=HERE / "base")
    parser.add_argument("--base", action="store_true", help="also the base model's training data")
    parser.add_argument("--train-tokenizer", action="store_true")
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    if options.train_tokenizer:
        train_tokenizer(options.tokenizer)

    pairs = domain_pairs()
    for name, part in (("domain", "train"), ("domain_test", "test"), ("domain_valid", "valid")):
        prepare([write_jsonl(folder / f"{name}.jsonl", pairs[part])], options.tokenizer, folder / name, quiet=True)
    held_out = [f for f in standard_library() if is_held_out(f)]
    prepare(held_out, options.tokenizer, folder / "general_test", split=512, quiet=True)
    if options.base:
        general = [f for f in standard_library() if not is_held_out(f)]
        others = write_jsonl(folder / "others.jsonl", other_pairs(3600))
        light = write_jsonl(folder / "light.jsonl", pairs["seen"])
        prepare(general + [others, light], options.tokenizer, folder / "base", split=512, quiet=True)


if __name__ == "__main__":
    main()
