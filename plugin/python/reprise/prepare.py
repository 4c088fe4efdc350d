"""python -m reprise prepare: text or JSONL to Megatron's indexed format, with a mask of the tokens to train on.

Plain text: one document a file (or pieces of --split tokens), every token but the first is trained on.
JSONL: one sample a line,
  {"messages": [{"role", "content"}, ...]}    rendered by the tokenizer's chat template; the assistant's turns are trained on.
                                              Beside it: "tools", "documents", "chat_template_kwargs"
  {"prompt": "...", "completion": "..."}      trained on the completion (both may be lists of messages)
  {"text": "..."}                             trained on every token but the first
and with "weight": 2.0 in any of them, the weight of its tokens in the loss. Texts and completions are closed by the end token of
tokenizer_config.json, which is trained on; conversations are what the template renders. Files may be gzipped (.gz).

The same inputs are not encoded twice: <prefix>.json says what a prefix was made from.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import time
from pathlib import Path

from . import facts
from .chat_template import ChatTemplate, choose_templates
from .encode import TRAIN_ON, EncodeOptions, Statistics
from .errors import DataError
from .indexed_dataset import IndexedDatasetWriter
from .progress import Progress, format_time
from .sources import check_sources, units
from .tokenizer import Tokenizer
from .workers import Block, blocks

__all__ = ["DataError", "Tokenizer", "prepare"]

_BYTES_PER_WORKER = 2 << 20  # with less, starting a process costs more than it saves


def _show(tokenizer: Tokenizer, block: Block) -> None:
    """The first document, decoded: what is trained on stands in brackets (bold on a terminal)."""
    begin, end = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("[[", "]]")
    tokens, mask = block.tokens[: block.lengths[0]].tolist(), block.mask[: block.lengths[0]].tolist()
    print("first sample (marked: trained on):")
    position = 0
    while position < min(len(tokens), 400):
        stop = position
        while stop < len(tokens) and mask[stop] == mask[position]:
            stop += 1
        text = tokenizer.core.decode(tokens[position:stop], skip_special_tokens=False)
        print(begin + text + end if mask[position] else text, end="")
        position = stop
    print(flush=True)


def _encode(files: list[Path], tokenizer: Tokenizer, prefix: Path, options: EncodeOptions, workers: int, total_bytes: int,
            quiet: bool) -> Statistics:
    statistics, done = Statistics(), 0
    progress = Progress(total_bytes, quiet=quiet)
    now = datetime.datetime.now()  # one moment for all workers
    with IndexedDatasetWriter(prefix, tokenizer.id_bound) as writer:
        for block, size in blocks(units(files), workers, tokenizer.folder, options, now):
            if block.error:
                progress.finish()
                raise DataError(block.error)
            if len(block.lengths):
                if statistics.documents == 0 and not quiet:
                    _show(tokenizer, block)
                writer.add_many(block.tokens, block.lengths, block.mask, block.weights)
            statistics.add(block.statistics)
            done += size
            progress.update(done, statistics.tokens)
        progress.finish()
        if statistics.documents == 0:
            raise DataError(f"no sample with anything to train on was found{_why_empty(statistics)}")
        facts.path_of(prefix).unlink(missing_ok=True)  # until the new files are whole, nothing vouches for the prefix
    return statistics


def _why_empty(statistics: Statistics) -> str:
    found = [f"{count:,} {what}" for count, what in ((statistics.dropped_empty, "with fewer than two tokens"),
                                                     (statistics.dropped_without_targets, "without a trained token"),
                                                     (statistics.bad_lines, "bad lines")) if count]
    return f" ({', '.join(found)})" if found else ""


def prepare(files: list[Path], tokenizer_folder: Path, prefix: Path, *, split: int = 0, sequence_length: int = 0,
            template: str | Path | None = None, variables: dict[str, object] | None = None, train_on: str = "assistant",
            end_tokens: tuple[str, ...] = (), skip_bad: bool = False, workers: int = 1, force: bool = False,
            quiet: bool = False) -> Statistics:
    """Encodes `files` in the given order into `prefix`; returns what was written, dropped and noticed. The output does not
    depend on `workers`; more than one start new processes, so a script that asks for them needs `if __name__ == "__main__"`. Does
    nothing when the prefix has been made from the same inputs, unless `force`."""
    files, tokenizer_folder, prefix = list(map(Path, files)), Path(tokenizer_folder), Path(prefix)
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on = {train_on!r}: one of {', '.join(TRAIN_ON)}")
    begin = time.monotonic()
    check_sources(files)
    options = EncodeOptions(choose_templates(tokenizer_folder, template), variables or {}, train_on, split, sequence_length, skip_bad,
                            tuple(end_tokens))
    earlier = facts.read(prefix)
    sources = facts.Sources(files, earlier)
    wanted = facts.inputs(sources, tokenizer_folder, options)
    if not force and facts.still_holds(prefix, earlier, wanted):
        if not quiet:
            print(f"{prefix}: made from the same inputs before, nothing to do (--force encodes again)")
        return Statistics(**earlier["statistics"])
    tokenizer = Tokenizer(tokenizer_folder)
    workers = max(1, min(workers, sources.bytes // _BYTES_PER_WORKER))
    statistics = _encode(files, tokenizer, prefix, options, workers, sources.bytes, quiet)
    facts.write(prefix, sources, wanted, options, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos,
                tokenizer_sha256=tokenizer.sha256, statistics=statistics)
    if not quiet:
        seconds = time.monotonic() - begin
        print(f"{sources.bytes / 1e6:,.1f} MB in {format_time(seconds)} with {workers} worker{'s'[: workers > 1]}: "
              f"{sources.bytes / 1e6 / seconds:.2f} MB/s, {statistics.tokens / 1e3 / seconds:,.0f} K tokens/s")
        if ChatTemplate.tells_time(options.templates) and statistics.turns:
            print("the chat template writes today's date where it is given none: --set date_string=\"26 Jul 2024\" or the like fixes it")
    return statistics


def _variable(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: wants NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: wants a whole number that is not negative")
    return int(text)


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("prepare", help="text or JSONL to .bin/.idx/.mask.bin", description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--tokenizer", required=True, type=Path, help="Hugging Face folder with tokenizer.json")
    parser.add_argument("--out", required=True, type=Path, metavar="PREFIX")
    parser.add_argument("--train-on", choices=TRAIN_ON, default="assistant",
                        help="assistant turns and completions (default), the last turn alone, or every token")
    parser.add_argument("--template", metavar="NAME|FILE", help="chat template: one of the tokenizer's by name, or a Jinja file")
    parser.add_argument("--set", dest="variables", type=_variable, action="append", default=[], metavar="NAME=VALUE",
                        help="variable of the chat template, such as enable_thinking=false")
    parser.add_argument("--end-token", action="append", default=[], metavar="TOKEN",
                        help="counts as an end of a turn, beside the model's end tokens")
    parser.add_argument("--split", type=_count, default=0, metavar="N", help="cut texts into pieces of N tokens")
    parser.add_argument("--sequence-length", type=_count, default=0, metavar="N",
                        help="count the samples that training with this length will truncate")
    parser.add_argument("--skip-bad", action="store_true", help="count lines that cannot be used instead of stopping")
    parser.add_argument("--workers", type=_count, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="processes (default: the cores, %(default)s); the output is the same for any number")
    parser.add_argument("--force", action="store_true", help="encode even when the inputs are those of last time")
    parser.add_argument("--quiet", action="store_true")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the writer's clean-up, as Ctrl-C goes
    statistics = prepare(options.files, options.tokenizer, options.out, split=options.split, sequence_length=options.sequence_length,
                         template=options.template, variables=dict(options.variables), train_on=options.train_on,
                         end_tokens=tuple(options.end_token), skip_bad=options.skip_bad, workers=options.workers,
                         force=options.force, quiet=options.quiet)
    print(summary(options.out, statistics, options.sequence_length))
    return 0


def summary(prefix: Path, statistics: Statistics, sequence_length: int) -> str:
    share = 100.0 * statistics.targets / statistics.tokens
    lines = [f"{prefix}: {statistics.documents:,} documents, {statistics.tokens:,} tokens, "
             f"{statistics.targets:,} trained on ({share:.1f} %), longest {statistics.longest:,}"]
    ends = ", ".join(map(repr, statistics.examples["missing_end"]))
    for count, what in (
            (statistics.dropped_empty, "dropped: fewer than two tokens"),
            (statistics.dropped_without_targets, "dropped: nothing to train on"),
            (statistics.longer_than_sequence, f"longer than {sequence_length} + 1 tokens: training truncates them"),
            (statistics.split_conversations, "conversations written once per turn: the chat template renders earlier turns differently"),
            (statistics.double_bos_prevented, "texts begin with the BOS token themselves: no second one was put before it"),
            (statistics.double_bos, "begin with two BOS tokens: look at the chat template and the messages"),
            (statistics.missing_end, f"of {statistics.turns:,} trained turns do not end with an end token of the model (text around the "
                                     f"end: {ends}): it may not learn to stop; --end-token names another one"),
            (statistics.invalid_utf8, "lines or files with invalid UTF-8"),
            (statistics.bad_lines, "bad lines skipped")):
        if count:
            lines.append(f"  {count:,} {what}")
    lines += [f"    {example}" for example in statistics.examples["bad_lines"]]
    return "\n".join(lines)
