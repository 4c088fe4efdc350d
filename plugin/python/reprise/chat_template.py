"""Chat templates, rendered as transformers renders them, and what of a rendering the assistant has said.

A template is a sandboxed Jinja program over messages, tools, documents and the special tokens. Where it marks the assistant's
words with {% generation %} ... {% endgeneration %}, those marks count. Elsewhere an assistant turn is what lies between the
rendering of the messages before it, generation prompt included, and the rendering up to it: what the model will be asked to
write at that place.
"""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .errors import DataError
from .tokenizer import Tokenizer, read_json

# Unicode noncharacters, which no text holds: they stand around a generation block until the text is rendered.
_BEGIN, _END = "\ufdd0", "\ufdd1"
_REASONING = ("reasoning_content", "thinking", "reasoning")

Span = tuple[int, int]


class UnstableTurns(Exception):
    """The template renders an assistant turn differently once more messages follow."""


@dataclass(frozen=True)
class Rendering:
    text: str
    spans: list[Span]  # of characters the assistant has written


def find_templates(folder: Path) -> dict[str, str]:
    """The folder's templates by name: chat_template.jinja and additional_chat_templates/NAME.jinja, else those of
    tokenizer_config.json (one text, or a list of {"name", "template"}). A single one is called "default"."""
    found: dict[str, str] = {}
    file = folder / "chat_template.jinja"
    if file.is_file():
        found["default"] = file.read_text(encoding="utf-8")
    for more in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[more.stem] = more.read_text(encoding="utf-8")
    configured = read_json(folder / "tokenizer_config.json").get("chat_template")
    if found or configured is None:
        return found
    if isinstance(configured, str):
        return {"default": configured}
    try:
        return {entry["name"]: entry["template"] for entry in configured}
    except (TypeError, KeyError):
        raise DataError(f"{folder / 'tokenizer_config.json'}: chat_template is neither a text nor a list of "
                        '{"name", "template"}') from None


def choose_templates(folder: Path, wanted: str | Path | None) -> dict[str, str]:
    """The templates to render with: those of the folder, the one of them that has the name `wanted`, or that of a file."""
    found = find_templates(folder)
    if wanted is None:
        return found
    if str(wanted) in found:
        return {"default": found[str(wanted)]}
    if not Path(wanted).is_file():
        names = f"one of {', '.join(found)}" if found else "none of which the tokenizer has"
        raise DataError(f"--template {wanted}: neither a file nor a template's name ({names})")
    return {"default": Path(wanted).read_text(encoding="utf-8")}


@lru_cache(maxsize=None)
def _environment(now: datetime.datetime):
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller):
            return _BEGIN + caller() + _END

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson  # Jinja's own escapes HTML
    environment.globals.update(raise_exception=raise_exception, strftime_now=now.strftime)
    return environment


def _plain(message: dict) -> dict:
    """A message as templates expect it: no null fields, and the reasoning under each of its usual names."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[key] for key in _REASONING if key in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


class ChatTemplate:
    """`variables` are what the template sees beside the messages; `now` is the moment that strftime_now tells."""

    def __init__(self, tokenizer: Tokenizer, templates: dict[str, str], variables: dict, now: datetime.datetime):
        self.templates = templates
        self._variables = {**tokenizer.named_tokens, **variables}
        self._special_texts = tokenizer.special_texts
        self._environment = _environment(now)
        self._compiled: dict[str, object] = {}

    @staticmethod
    def tells_time(templates: dict[str, str]) -> bool:
        return any("strftime_now" in text for text in templates.values())

    def _name(self, extra: dict) -> str:
        if extra.get("tools") is not None and "tool_use" in self.templates:
            return "tool_use"
        if "default" in self.templates:
            return "default"
        if self.templates:
            raise DataError(f"the tokenizer has several chat templates ({', '.join(self.templates)}): choose one by --template NAME")
        raise DataError("the tokenizer has no chat template: give one with --template FILE")

    def marks_generation(self, extra: dict) -> bool:
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.templates[self._name(extra)]) is not None

    def render(self, messages: list[dict], extra: dict, generation_prompt: bool = False) -> Rendering:
        """extra: the sample's "tools", "documents" and other variables. Spans are those of {% generation %} blocks."""
        import jinja2

        name = self._name(extra)
        variables = {"tools": None, "documents": None, **self._variables, **extra}
        try:
            if name not in self._compiled:
                self._compiled[name] = self._environment.from_string(self.templates[name])
            marked = self._compiled[name].render(messages=list(map(_plain, messages)), add_generation_prompt=generation_prompt,
                                                 **variables)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"the chat template is not one: line {error.lineno}: {error.message}") from None
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template refuses the sample: {error.message}") from None
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, ArithmeticError) as error:
            raise DataError(f"the chat template fails on the sample: {error}") from None
        if _BEGIN not in marked and _END not in marked:
            return Rendering(marked, [])
        return _take_marks(marked)

    def turn(self, messages: list[dict], index: int, extra: dict) -> tuple[str, Span]:
        """The conversation up to and with assistant message `index`, as the model would have written it there: the text and
        the turn in it, end token included, blanks behind that not."""
        try:
            before = self.render(messages[:index], extra, generation_prompt=True).text
        except DataError:
            if index > 0:
                raise
            raise DataError("the conversation begins with an assistant message, which the chat template cannot ask for: put a "
                            "message before it, use a template with {% generation %} marks, or --train-on all") from None
        text = self.render(messages[: index + 1], extra).text
        if not text.startswith(before):
            raise DataError(f"the chat template's generation prompt (...{before[-40:]!r}) does not begin assistant message "
                            f"{index + 1} as it is rendered (...{text[max(0, len(before) - 40):][:80]!r}), so its turn cannot be "
                            "told apart: use a template with {% generation %} marks, or --train-on all")
        trimmed = text.rstrip()
        end = len(trimmed) if trimmed.endswith(self._special_texts) else len(text)
        return text, (len(before), max(end, len(before)))

    def turns(self, messages: list[dict], indices: list[int], extra: dict) -> Rendering:
        """The whole conversation with the turns `indices`. Throws UnstableTurns."""
        whole = self.render(messages, extra).text
        spans = []
        for index in indices:
            text, (begin, end) = self.turn(messages, index, extra)
            if not whole.startswith(text.rstrip()):
                raise UnstableTurns
            spans.append((begin, min(end, len(whole))))
        return Rendering(whole, spans)


def _take_marks(marked: str) -> Rendering:
    parts, spans, length = [], [], 0
    for part in re.split(f"({_BEGIN}[^{_BEGIN}{_END}]*{_END})", marked):
        inside = part.startswith(_BEGIN)
        text = part[1:-1] if inside else part
        if _BEGIN in text or _END in text:
            raise DataError("{% generation %} blocks are nested, or the text holds U+FDD0 or U+FDD1, which are no characters")
        if inside:
            spans.append((length, length + len(text)))
        parts.append(text)
        length += len(text)
    return Rendering("".join(parts), spans)
