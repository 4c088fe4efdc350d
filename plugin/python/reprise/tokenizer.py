"""tokenizer.json of a Hugging Face folder, with its special tokens and what a generated text ends with."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

from .errors import DataError
from .hashing import file_sha256

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_json(path: Path) -> dict:
    """The object in a file of the folder; empty where the file is absent."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: wants one JSON object")
    return value


class Tokenizer:
    """`core` is the tokenizers.Tokenizer; `bos` and `eos` are ids (bos may be None); `end_ids` are all ids at which
    generation stops: the end token, and eos_token_id of generation_config.json, else of config.json, as the program has it."""

    def __init__(self, folder: str | Path):
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        self.folder = Path(folder)
        file = self.folder / "tokenizer.json"
        if not file.exists():
            raise DataError(f"{file} not found: --tokenizer wants a Hugging Face folder with tokenizer.json")
        try:
            self.core = HuggingFaceTokenizer.from_file(str(file))
        except Exception as error:  # the library throws bare Exception
            raise DataError(f"{file}: {error}") from None
        self.core.no_truncation()
        self.core.no_padding()
        self.config = read_json(self.folder / "tokenizer_config.json")
        self.named_tokens = self._named_tokens()
        self.bos = self._id("bos_token")
        self.eos = self._id("eos_token")
        if self.eos is None:
            raise DataError(f"{self.folder / 'tokenizer_config.json'} names no eos_token: "
                            "without an end token a model never learns to stop")
        self.add_bos = self.bos is not None and (bool(self.config.get("add_bos_token")) or self._processor_adds_bos())
        self.end_ids = {self.eos, *self._stops()}

    def _named_tokens(self) -> dict[str, str]:
        """What a chat template knows: the texts of the special tokens that have a name, those of the model's own included."""
        older = read_json(self.folder / "special_tokens_map.json")
        found: dict[str, str] = {}
        names = [*NAMED_TOKENS, *(key for key in self.config if key.endswith("_token") and key not in NAMED_TOKENS)]
        for name in names:
            value = self.config.get(name) if self.config.get(name) is not None else older.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str) and text:
                found[name] = text
        return found

    def _id(self, name: str) -> int | None:
        text = self.named_tokens.get(name)
        if text is None:
            return None
        index = self.core.token_to_id(text)
        if index is None:
            raise DataError(f"{self.folder / 'tokenizer_config.json'}: {name} {text!r} is not in tokenizer.json")
        return index

    def _processor_adds_bos(self) -> bool:
        """Llama 3 keeps its begin token in tokenizer.json's post-processor alone."""
        return self.core.encode("", add_special_tokens=True).ids[:1] == [self.bos]

    def _stops(self) -> list[int]:
        for name in ("generation_config.json", "config.json"):
            value = read_json(self.folder / name).get("eos_token_id")
            if value is not None:
                return [id for id in (value if isinstance(value, list) else [value]) if isinstance(id, int)]
        return []

    def add_end_token(self, text: str) -> None:
        index = self.core.token_to_id(text)
        if index is None:
            raise DataError(f"--end-token {text!r} is not a token of {self.folder / 'tokenizer.json'}")
        self.end_ids.add(index)

    @property
    def sha256(self) -> str:
        return file_sha256(self.folder / "tokenizer.json")

    @property
    def vocab_size(self) -> int:
        return self.core.get_vocab_size(with_added_tokens=True)

    @cached_property
    def id_bound(self) -> int:
        """One more than the largest id; ids may have gaps, so it can exceed vocab_size."""
        return 1 + max(self.core.get_vocab(with_added_tokens=True).values(), default=-1)

    @cached_property
    def special_texts(self) -> tuple[str, ...]:
        return tuple(token.content for token in self.core.get_added_tokens_decoder().values() if token.special)

    @cached_property
    def end_texts(self) -> tuple[str, ...]:
        return tuple(text for text in map(self.core.id_to_token, sorted(self.end_ids)) if text)

    def encoding(self, text: str):
        """tokenizers.Encoding of the text alone: nothing is put before or behind it."""
        try:
            return self.core.encode(text, add_special_tokens=False)
        except TypeError:
            raise DataError("the text holds half of a surrogate pair, which no tokenizer takes") from None

    def encode(self, text: str) -> list[int]:
        return self.encoding(text).ids
