"""python -m reprise choices: multiple-choice questions as texts to the token ids that `reprise eval --choices` scores.

One JSON object a line, either {"context": text, "choices": [texts], "answer": n} (n counts from 0; a list where several are
right; "context" may be a list of one text per choice, as in WinoGrande), or a line that lm-evaluation-harness wrote with
--log_samples. Texts become ids exactly as in lm-evaluation-harness: blanks at the end of the context move to the choice, both are
encoded together, and the choice is what follows the ids of the context alone.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

from .errors import DataError
from .tokenizer import Tokenizer

_KINDS = '{"context", "choices", "answer"}, or a line of lm_eval --log_samples'


@dataclass
class Item:
    """`contexts` holds one text, or one for each choice. The continuation of choice c is delimiter + choices[c]."""

    contexts: list[str]
    choices: list[str]
    answers: list[int]

    def measured(self) -> list[str]:
        """The texts whose lengths acc_norm and acc_bytes divide by."""
        return self.contexts if len(self.contexts) > 1 else self.choices


class PairEncoder:
    """Context and continuation as lm-evaluation-harness encodes them."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.prefix = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
        self._prefix_text = tokenizer.core.decode([self.prefix], skip_special_tokens=False)

    def _encode(self, text: str) -> list[int]:
        """With the special tokens that the tokenizer adds by itself, unless the text begins with the first of them."""
        if self._prefix_text and text.startswith(self._prefix_text):
            return self.tokenizer.encode(text)
        ids = self.tokenizer.core.encode(text, add_special_tokens=True).ids
        if self.tokenizer.add_bos and ids[:1] != [self.tokenizer.bos]:
            ids = [self.tokenizer.bos, *ids]
        return ids

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context == "":
            ids = self.tokenizer.encode(continuation)
            return (ids[:1], ids[1:]) if ids[:1] == [self.prefix] else ([self.prefix], ids)
        blanks = len(context) - len(context.rstrip())
        if blanks:
            continuation = context[-blanks:] + continuation
            context = context[:-blanks]
        first = self._encode(context)
        return first, self._encode(context + continuation)[len(first):]


def _texts(value: object, name: str) -> list[str]:
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(text, str) for text in value):
        raise DataError(f'"{name}" wants a list of at least two texts')
    return value


def _answers(value: object, count: int) -> list[int]:
    answers = value if isinstance(value, list) else [value]
    if not answers or not all(type(answer) is int and 0 <= answer < count for answer in answers):
        raise DataError(f'"answer" is {value!r}: wants the index of one of {count} choices, counted from 0')
    return answers


def _own_item(line: dict) -> Item:
    unknown = set(line) - {"context", "choices", "answer"}
    if unknown:
        raise DataError(f"unknown key {min(unknown)!r}; wants {_KINDS}")
    choices = _texts(line.get("choices"), "choices")
    context = line.get("context")
    contexts = [context] if isinstance(context, str) else _texts(context, "context")
    if len(contexts) not in (1, len(choices)):
        raise DataError(f"{len(contexts)} contexts for {len(choices)} choices")
    return Item(contexts, choices, _answers(line.get("answer"), len(choices)))


def _logged_item(line: dict, delimiter: str) -> Item:
    arguments = line["arguments"]
    pairs = list(arguments.values()) if isinstance(arguments, dict) else arguments
    pairs = [(pair["arg_0"], pair["arg_1"]) if isinstance(pair, dict) else tuple(pair[:2]) for pair in pairs]
    contexts, continuations = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    _texts(continuations, "arguments")
    choices = [text.removeprefix(delimiter) for text in continuations]
    target, one_context = line.get("target"), len(set(contexts)) == 1
    if not one_context and "" in contexts:
        raise DataError("requests without a context beside some with one (acc_mutual_info) are not read")
    if not one_context and len(set(continuations)) == 1:
        # Several inputs and one target: the target's text says nothing, the document's answer counts from 1.
        answer = str(line.get("doc", {}).get("answer", ""))
        target = int(answer) - 1 if answer.isdigit() else -1
    elif isinstance(target, str) and target in choices and choices.count(target) == 1 and not target.isdigit():
        target = choices.index(target)
    elif isinstance(target, str):
        try:
            target = json.loads(target)
        except ValueError:
            pass
    return Item(contexts[:1] if one_context else contexts, choices, _answers(target, len(choices)))


def read_items(path: Path, delimiter: str) -> Iterator[tuple[str, Item]]:
    """Every line that is not blank, with its "file:line"."""
    with open(path, encoding="utf-8", errors="strict") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            where = f"{path}:{number}"
            try:
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise DataError(f"wants {_KINDS}")
                yield where, _logged_item(line, delimiter) if "arguments" in line else _own_item(line)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            except (AttributeError, KeyError, IndexError, TypeError) as error:
                raise DataError(f"{where}: not a line of lm_eval --log_samples ({error!r})") from None
            except ValueError as error:
                raise DataError(f"{where}: not JSON ({error})") from None


def encode_item(item: Item, encoder: PairEncoder, delimiter: str) -> dict:
    """What `reprise eval --choices` reads."""
    contexts, choices = [], []
    for index, choice in enumerate(item.choices):
        context = item.contexts[index if len(item.contexts) > 1 else 0]
        context_ids, choice_ids = encoder.pair(context, delimiter + choice)
        if not context_ids:
            raise DataError(f"context {index} is blank")
        if not choice_ids:
            raise DataError(f"choice {index} ({choice!r}) has no token of its own behind the context")
        contexts.append(context_ids)
        choices.append(choice_ids)
    measured = item.measured()
    if not all(measured):
        raise DataError("an empty choice has no length to divide by")
    same = all(context == contexts[0] for context in contexts)
    return {"context": contexts[0] if same else contexts, "choices": choices,
            "answer": item.answers[0] if len(item.answers) == 1 else item.answers,
            "choice_chars": [len(text) for text in measured], "choice_bytes": [len(text.encode("utf-8")) for text in measured]}


def prepare_choices(files: list[Path], tokenizer: Tokenizer, out: Path, *, delimiter: str = " ") -> int:
    """Writes `out` when all lines are read; returns their number."""
    encoder, count = PairEncoder(tokenizer), 0
    part = out.with_name(out.name + ".part")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "w", encoding="utf-8") as output:
            for path in files:
                for where, item in read_items(path, delimiter):
                    try:
                        line = encode_item(item, encoder, delimiter)
                    except (DataError, UnicodeEncodeError) as error:
                        raise DataError(f"{where}: {error}") from None
                    output.write(json.dumps(line) + "\n")
                    count += 1
        if count == 0:
            raise DataError(f"{', '.join(map(str, files))}: no item in the file")
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return count


def run(options: argparse.Namespace) -> int:
    count = prepare_choices(options.files, Tokenizer(options.tokenizer), options.out, delimiter=options.delimiter)
    print(f"{options.out}: {count:,} items; score them with: reprise eval --model MODEL --choices {options.out}")
    return 0


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("choices", help="multiple-choice questions to token ids for reprise eval --choices", description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--tokenizer", required=True, type=Path, help="Hugging Face folder with tokenizer.json")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl")
    parser.add_argument("--delimiter", default=" ", metavar="TEXT",
                        help="between context and choice, and not part of a choice's length (default: one blank)")
    parser.set_defaults(run=run)
