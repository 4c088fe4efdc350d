"""Samples to documents: token ids, and for each whether predicting it is trained on."""

from __future__ import annotations

import bisect
import datetime
import json
import math
from dataclasses import dataclass, field, fields

from .chat_template import ChatTemplate, Span, UnstableTurns
from .errors import DataError
from .tokenizer import Tokenizer

TRAIN_ON = ("assistant", "last", "all")
_KINDS = '{"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": "..."}'
_EXAMPLES = 3  # bad lines that are told in full


@dataclass(frozen=True)
class EncodeOptions:
    """What decides the documents of a sample, beside the tokenizer: everything here is part of a result's identity."""

    templates: dict[str, str] = field(default_factory=dict)
    variables: dict[str, object] = field(default_factory=dict)  # of the template
    train_on: str = "assistant"
    split: int = 0  # cut texts into pieces of so many tokens; 0 = never
    sequence_length: int = 0  # 0 = unknown
    skip_bad: bool = False
    end_tokens: tuple[str, ...] = ()


@dataclass
class Document:
    tokens: list[int]
    mask: list[int]  # 1 = train on predicting this token; the first is never trained on
    weight: float = 1.0


@dataclass
class Statistics:
    documents: int = 0
    tokens: int = 0
    targets: int = 0
    dropped_empty: int = 0
    dropped_without_targets: int = 0
    longer_than_sequence: int = 0
    double_bos: int = 0  # documents that begin with two
    double_bos_prevented: int = 0
    turns: int = 0  # trained turns of conversations
    missing_end: int = 0  # of them, those that do not end with an end token
    split_conversations: int = 0  # written once per turn, because the template rewrites earlier turns
    bad_lines: int = 0
    invalid_utf8: int = 0
    longest: int = 0
    examples: dict[str, list[str]] = field(default_factory=lambda: {"bad_lines": [], "missing_end": []})

    def add(self, other: "Statistics") -> None:
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if item.name == "examples":
                for name, examples in theirs.items():
                    for example in examples:
                        self.note(name, example)
            else:
                setattr(self, item.name, max(mine, theirs) if item.name == "longest" else mine + theirs)

    def note(self, name: str, example: str) -> None:
        if len(self.examples[name]) < _EXAMPLES and example not in self.examples[name]:
            self.examples[name].append(example)


class Encoder:
    """One tokenizer, one template, one way to choose what is trained on. Counts into `statistics`."""

    def __init__(self, tokenizer: Tokenizer, options: EncodeOptions, now: datetime.datetime):
        self.tokenizer = tokenizer
        self.options = options
        for text in options.end_tokens:
            tokenizer.add_end_token(text)
        self.template = ChatTemplate(tokenizer, options.templates, options.variables, now)
        self.statistics = Statistics()

    # ---- kinds of samples --------------------------------------------------------------------------------------------

    def text(self, text: str) -> list[Document]:
        """[BOS] text END, cut into pieces where asked to; every token but a piece's first is trained on."""
        tokens = self._begin(text) + self.tokenizer.encode(text)
        if text.strip() and tokens[-1:] != [self.tokenizer.eos]:
            tokens.append(self.tokenizer.eos)
        size = self.options.split or max(len(tokens), 1)
        pieces = [tokens[begin : begin + size] for begin in range(0, len(tokens), size)] or [[]]
        return [Document(piece, [1] * len(piece)) for piece in pieces]

    def pair(self, prompt: str, completion: str) -> list[Document]:
        """[BOS] prompt completion END. The two are encoded apart, as they are at generation time."""
        head = self._begin(prompt or completion) + self.tokenizer.encode(prompt)
        tail = self.tokenizer.encode(completion)
        if tail[-1:] != [self.tokenizer.eos]:
            tail.append(self.tokenizer.eos)
        return [Document(head + tail, [int(self.options.train_on == "all")] * len(head) + [1] * len(tail))]

    def chat(self, messages: list[dict], extra: dict, first_trained: int = 0) -> list[Document]:
        """A conversation as the template renders it; nothing is added. Turns before message `first_trained` are not trained on.
        Where the template renders earlier turns differently from the last, the conversation is written once per turn, each
        time up to that turn and trained on it alone: every turn is then learned as it will be asked for."""
        if self.options.train_on == "all":
            text = self.template.render(messages, extra).text
            return [self._tokenize(text, [(0, len(text))])]
        indices = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= first_trained]
        if self.options.train_on == "last":
            indices = indices[-1:]
        if self.template.marks_generation(extra):
            return [self._marked_chat(messages, extra, indices)]
        try:
            rendering = self.template.turns(messages, indices, extra)
        except UnstableTurns:
            self.statistics.split_conversations += int(len(indices) > 1)
            return [self._turn(*self.template.turn(messages, index, extra)) for index in indices]
        for span in rendering.spans:
            self._check_end(rendering.text, span)
        return [self._tokenize(rendering.text, rendering.spans)]

    def _turn(self, text: str, span: Span) -> Document:
        self._check_end(text, span)
        return self._tokenize(text, [span])

    def _marked_chat(self, messages: list[dict], extra: dict, indices: list[int]) -> Document:
        rendering = self.template.render(messages, extra)
        spans = rendering.spans
        everything = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if indices != everything:
            if len(spans) != len(everything):
                raise DataError(f"the chat template marks {len(spans)} {{% generation %}} blocks for {len(everything)} assistant "
                                "messages, so single turns cannot be told apart: use --train-on assistant and whole conversations")
            spans = [spans[everything.index(i)] for i in indices]
        for span in spans:
            self._check_end(rendering.text, span)
        return self._tokenize(rendering.text, spans)

    # ---- parts -------------------------------------------------------------------------------------------------------

    def _begin(self, text: str) -> list[int]:
        if not self.tokenizer.add_bos:
            return []
        if text.startswith(self.tokenizer.named_tokens["bos_token"]):
            self.statistics.double_bos_prevented += 1
            return []
        return [self.tokenizer.bos]

    def _check_end(self, text: str, span: Span) -> None:
        turn = text[span[0] : span[1]].rstrip()
        self.statistics.turns += 1
        if not turn.endswith(self.tokenizer.end_texts):
            self.statistics.missing_end += 1
            # The last letters of the turn and what follows it.
            self.statistics.note("missing_end", (turn + text[span[1] :])[max(0, len(turn) - 12) :][:32])

    def _tokenize(self, text: str, spans: list[Span]) -> Document:
        """A token is trained on when it overlaps a span."""
        encoding = self.tokenizer.encoding(text)
        tokens = encoding.ids
        mask = [0] * len(tokens)
        for begin, end in spans:
            # Searched, because a list of all offsets would cost more than the mask.
            first = bisect.bisect_right(range(len(tokens)), begin, key=lambda i: encoding.token_to_chars(i)[1])
            last = bisect.bisect_left(range(len(tokens)), end, lo=first, key=lambda i: encoding.token_to_chars(i)[0])
            mask[first:last] = [1] * (last - first)
        return Document(tokens, mask)

    # ---- a line of JSON ----------------------------------------------------------------------------------------------

    def line(self, line: str) -> list[Document]:
        """The documents of one sample. Throws DataError."""
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON ({error})") from None
        if not isinstance(sample, dict):
            raise DataError(f"wants {_KINDS}, not a {type(sample).__name__}")
        documents = self._sample(sample)
        weight = sample.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not (0 <= weight < math.inf):
            raise DataError(f'"weight": {weight!r}: wants a finite number that is not negative')
        for document in documents:
            document.weight = float(weight)
        return documents

    def _sample(self, sample: dict) -> list[Document]:
        if "messages" in sample:
            return self.chat(_messages(sample["messages"], "messages"), _extra(sample))
        prompt, completion = sample.get("prompt"), sample.get("completion")
        if isinstance(prompt, str) and isinstance(completion, str):
            return self.pair(prompt, completion)
        if isinstance(prompt, list) and isinstance(completion, list):
            before = _messages(prompt, "prompt")
            return self.chat(before + _messages(completion, "completion"), _extra(sample), first_trained=len(before))
        if isinstance(sample.get("text"), str):
            return self.text(sample["text"])
        raise DataError(f"wants {_KINDS}; it has {', '.join(map(repr, sample)) or 'nothing'}")

    def keep(self, document: Document) -> bool:
        """Counts a finished document; False where it is dropped."""
        tokens, mask, statistics = document.tokens, document.mask, self.statistics
        if len(tokens) < 2:
            statistics.dropped_empty += 1
            return False
        mask[0] = 0
        targets = sum(mask)
        if targets == 0:
            statistics.dropped_without_targets += 1
            return False
        bos, limit = self.tokenizer.bos, self.options.sequence_length
        statistics.double_bos += int(bos is not None and tokens[0] == tokens[1] == bos)
        statistics.longer_than_sequence += int(bool(limit) and len(tokens) > limit + 1)
        statistics.documents += 1
        statistics.tokens += len(tokens)
        statistics.targets += targets
        statistics.longest = max(statistics.longest, len(tokens))
        return True


def _messages(value: object, name: str) -> list[dict]:
    if not isinstance(value, list) or not value:
        raise DataError(f'"{name}" wants a list of messages that is not empty')
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f'"{name}"[{i}] wants {{"role": "...", "content": "..."}}')
    return value


def _extra(sample: dict) -> dict:
    """What a sample gives its template beside the messages. Tools may be JSON in a text, as table formats keep them."""
    variables = sample.get("chat_template_kwargs") or {}
    if not isinstance(variables, dict):
        raise DataError('"chat_template_kwargs" wants an object')
    extra = dict(variables)
    for name in ("tools", "documents"):
        value = sample.get(name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise DataError(f'"{name}" is not JSON ({error})') from None
        if value is None:
            continue
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise DataError(f'"{name}" wants a list of objects')
        extra[name] = value
    return extra
