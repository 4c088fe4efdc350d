"""python -m reprise prepare: text or JSONL to Megatron's indexed format, with a mask of the tokens to train on.

Plain text: one document a file (or pieces of --split tokens), every token but the first is trained on.
JSONL: one sample a line, either {"prompt", "completion"} (trained on the completion) or {"messages": [{"role",
"content"}, ...]} (rendered by the tokenizer's chat template, trained on the assistant's turns). The end token of
tokenizer_config.json closes every sample and is trained on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Iterator

from .indexed_dataset import IndexedDatasetWriter


class DataError(Exception):
    """Input that cannot be used; the message says which file and line, and what to do."""


@dataclass
class Statistics:
    documents: int = 0
    tokens: int = 0
    targets: int = 0
    dropped_empty: int = 0
    dropped_without_targets: int = 0
    longer_than_sequence: int = 0
    double_bos: int = 0
    missing_end: int = 0
    invalid_utf8: int = 0
    longest: int = 0


class Tokenizer:
    """tokenizer.json with the special tokens and the chat template of tokenizer_config.json."""

    def __init__(self, folder: str | Path):
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        folder = Path(folder)
        file = folder / "tokenizer.json"
        if not file.exists():
            raise DataError(f"{file} not found: --tokenizer wants a Hugging Face folder with tokenizer.json")
        self.core = HuggingFaceTokenizer.from_file(str(file))
        self.core.no_truncation()
        self.core.no_padding()
        self.sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        config_file = folder / "tokenizer_config.json"
        config = json.loads(config_file.read_text()) if config_file.exists() else {}
        self.bos = self._special(config, "bos_token")
        self.eos = self._special(config, "eos_token")
        if self.eos is None:
            raise DataError(f"{config_file} names no eos_token: without an end token a model never learns to stop")
        self.add_bos = bool(config.get("add_bos_token", False)) and self.bos is not None
        template_file = folder / "chat_template.jinja"
        self.template = template_file.read_text() if template_file.exists() else config.get("chat_template")
        self.special_texts = {name: self._text(config.get(name)) for name in ("bos_token", "eos_token")}

    @staticmethod
    def _text(token: object) -> str:
        return str(token["content"] if isinstance(token, dict) else token or "")

    def _special(self, config: dict, name: str) -> int | None:
        text = self._text(config.get(name))
        if not text:
            return None
        index = self.core.token_to_id(text)
        if index is None:
            raise DataError(f"tokenizer_config.json: {name} {text!r} is not in tokenizer.json")
        return index

    @property
    def vocab_size(self) -> int:
        return self.core.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self.core.encode(text, add_special_tokens=False).ids

    def render(self, messages: list[dict], add_generation_prompt: bool) -> str:
        import jinja2
        import jinja2.sandbox

        if not isinstance(self.template, str):
            raise DataError("the tokenizer has no single chat_template: give one with --template FILE")
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

        def raise_exception(message: str) -> None:
            raise DataError(f"the chat template refuses the sample: {message}")

        environment.globals["raise_exception"] = raise_exception
        return environment.from_string(self.template).render(
            messages=messages, add_generation_prompt=add_generation_prompt, **self.special_texts
        )


def encode_pair(tokenizer: Tokenizer, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Prompt and completion are encoded apart, as they are at generation time."""
    head = ([tokenizer.bos] if tokenizer.add_bos else []) + tokenizer.encode(prompt)
    tail = tokenizer.encode(completion) + [tokenizer.eos]
    return head + tail, [0] * len(head) + [1] * len(tail)


def encode_messages(tokenizer: Tokenizer, messages: list[dict]) -> tuple[list[int], list[int]]:
    """The whole conversation is encoded once; a token is trained on when it begins inside an assistant turn."""
    text = tokenizer.render(messages, add_generation_prompt=False)
    spans = []
    for i, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        before = tokenizer.render(messages[:i], add_generation_prompt=True)
        after = tokenizer.render(messages[: i + 1], add_generation_prompt=False)
        if not after.startswith(before) or not text.startswith(after.rstrip()):
            raise DataError("the chat template rewrites earlier turns: its assistant turns cannot be told apart")
        spans.append((len(before), len(after)))
    encoding = tokenizer.core.encode(text, add_special_tokens=False)
    tokens = list(encoding.ids)
    mask = [int(any(begin <= start < end for begin, end in spans)) for start, _ in encoding.offsets]
    if not tokens or tokens[-1] != tokenizer.eos:
        tokens.append(tokenizer.eos)
        mask.append(1)
    return tokens, mask


def _lines(path: Path, statistics: Statistics) -> Iterator[tuple[int, str]]:
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                statistics.invalid_utf8 += 1
                continue
            if line.strip():
                yield number, line


def _encode_json_line(tokenizer: Tokenizer, line: str, where: str) -> tuple[list[int], list[int]]:
    try:
        sample = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error})") from None
    if isinstance(sample, dict) and isinstance(sample.get("messages"), list):
        return encode_messages(tokenizer, sample["messages"])
    if isinstance(sample, dict) and isinstance(sample.get("prompt"), str) and isinstance(sample.get("completion"), str):
        return encode_pair(tokenizer, sample["prompt"], sample["completion"])
    raise DataError(f'{where}: wants {{"messages": [...]}} or {{"prompt": "...", "completion": "..."}}')


def encode_file(path: Path, tokenizer: Tokenizer, split: int, statistics: Statistics) -> Iterator[tuple[list[int], list[int]]]:
    """Documents of one file as (tokens, mask)."""
    if path.suffix in (".jsonl", ".ndjson"):
        for number, line in _lines(path, statistics):
            try:
                yield _encode_json_line(tokenizer, line, f"{path}:{number}")
            except DataError as error:
                raise error if str(path) in str(error) else DataError(f"{path}:{number}: {error}") from None
        return
    data = path.read_bytes()
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n")
    statistics.invalid_utf8 += int("\ufffd" in text)
    tokens = ([tokenizer.bos] if tokenizer.add_bos else []) + tokenizer.encode(text)
    if text.strip():
        tokens.append(tokenizer.eos)
    for begin in range(0, len(tokens), split or max(len(tokens), 1)):
        piece = tokens[begin : begin + split] if split else tokens
        yield piece, [0] + [1] * (len(piece) - 1)


def _show(tokenizer: Tokenizer, tokens: list[int], mask: list[int]) -> None:
    """One decoded sample: what is trained on stands in brackets (bold on a terminal)."""
    begin, end = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("[[", "]]")
    print("first sample (marked: trained on):")
    position = 0
    while position < min(len(tokens), 400):
        stop = position
        while stop < len(tokens) and mask[stop] == mask[position]:
            stop += 1
        text = tokenizer.core.decode(tokens[position:stop], skip_special_tokens=False)
        print(begin + text + end if mask[position] else text, end="")
        position = stop
    print()


def _count(tokenizer: Tokenizer, tokens: list[int], mask: list[int], sequence_length: int, statistics: Statistics) -> bool:
    """Notes a document in the statistics; False when it is dropped."""
    if len(tokens) < 2:
        statistics.dropped_empty += 1
        return False
    if not any(mask[1:]):
        statistics.dropped_without_targets += 1
        return False
    statistics.double_bos += int(tokenizer.bos is not None and tokens[0] == tokens[1] == tokenizer.bos)
    statistics.missing_end += int(tokens[-1] != tokenizer.eos)
    statistics.longer_than_sequence += int(bool(sequence_length) and len(tokens) > sequence_length + 1)
    statistics.documents += 1
    statistics.tokens += len(tokens)
    statistics.targets += sum(mask[1:])
    statistics.longest = max(statistics.longest, len(tokens))
    return True


def prepare(files: list[Path], tokenizer_folder: Path, prefix: Path, *, split: int = 0, sequence_length: int = 0,
            template: Path | None = None, quiet: bool = False) -> Statistics:
    """Encodes `files` in the given order into `prefix`; returns what was written, dropped and noticed."""
    tokenizer = Tokenizer(tokenizer_folder)
    if template is not None:
        tokenizer.template = template.read_text()
    statistics = Statistics()
    missing = [str(f) for f in files if not f.is_file()]
    if missing:
        raise DataError(f"no such file: {', '.join(missing)}")
    sources = []
    with IndexedDatasetWriter(prefix, tokenizer.vocab_size) as writer:
        for number, path in enumerate(files):
            for tokens, mask in encode_file(path, tokenizer, split, statistics):
                if _count(tokenizer, tokens, mask, sequence_length, statistics):
                    if statistics.documents == 1 and not quiet:
                        _show(tokenizer, tokens, [0] + list(mask[1:]))
                    writer.add(tokens, [0] + list(mask[1:]))
            sources.append({"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
            if not quiet and sys.stderr.isatty() and len(files) > 1:
                print(f"\r{number + 1}/{len(files)} files, {statistics.tokens:,} tokens", end="", file=sys.stderr)
        if statistics.documents == 0:
            raise DataError("no sample with anything to train on was found")
    facts = {"format": "reprise-data", "version": 1, "vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.eos,
             "tokenizer_sha256": tokenizer.sha256, "template": tokenizer.template, "sources": sources,
             "statistics": asdict(statistics)}
    Path(f"{prefix}.json").write_text(json.dumps(facts, indent=1) + "\n")
    return statistics


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("prepare", help="text or JSONL to .bin/.idx/.mask.bin", description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--tokenizer", required=True, type=Path, help="Hugging Face folder with tokenizer.json")
    parser.add_argument("--out", required=True, type=Path, metavar="PREFIX")
    parser.add_argument("--split", type=int, default=0, metavar="N", help="cut plain text into pieces of N tokens")
    parser.add_argument("--sequence-length", type=int, default=0, metavar="N",
                        help="count the samples that training with this length will truncate")
    parser.add_argument("--template", type=Path, metavar="FILE", help="Jinja chat template instead of the tokenizer's")
    parser.add_argument("--quiet", action="store_true")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    statistics = prepare(options.files, options.tokenizer, options.out, split=options.split,
                         sequence_length=options.sequence_length, template=options.template, quiet=options.quiet)
    share = 100.0 * statistics.targets / statistics.tokens
    print(f"{options.out}: {statistics.documents:,} documents, {statistics.tokens:,} tokens, "
          f"{statistics.targets:,} trained on ({share:.1f} %), longest {statistics.longest:,}")
    for count, what in ((statistics.dropped_empty, "dropped: fewer than two tokens"),
                        (statistics.dropped_without_targets, "dropped: nothing to train on"),
                        (statistics.longer_than_sequence, f"longer than {options.sequence_length} + 1 tokens: training truncates them"),
                        (statistics.double_bos, "begin with two BOS tokens: check the chat template"),
                        (statistics.missing_end if not options.split else 0, "do not end with the end token"),
                        (statistics.invalid_utf8, "lines or files with invalid UTF-8")):
        if count:
            print(f"  {count:,} {what}")
    return 0
