"""prepare's chats beside transformers' own apply_chat_template: token by token and mask by mask, on the same templates."""

import datetime
import json
import sys
import tempfile
import unittest
from pathlib import Path

from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

import chat_templates  # noqa: E402
from support import make_tokenizer  # noqa: E402

from reprise.encode import EncodeOptions, Encoder  # noqa: E402
from reprise.tokenizer import Tokenizer  # noqa: E402

TEXT = json.dumps(chat_templates.conversations()) + Path(__file__).read_text()


class ChatTemplateTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.tokenizer_folder = make_tokenizer(
            Path(self._folder.name), special_tokens=tuple(chat_templates.SPECIAL_TOKENS[1:]), text_to_merge=TEXT, bos_token="<s>",
            eos_token="</s>", tokenizer_class="PreTrainedTokenizerFast",
            pad_token={"__type": "AddedToken", "content": "<|end|>", "lstrip": False, "normalized": False, "rstrip": False,
                       "single_word": False})
        self.theirs = AutoTokenizer.from_pretrained(str(self.tokenizer_folder))

    def tearDown(self) -> None:
        self._folder.cleanup()

    def encode(self, template: str, sample: dict, **options: object) -> list[tuple[list[int], list[int]]]:
        encoder = Encoder(Tokenizer(self.tokenizer_folder), EncodeOptions(templates={"default": template}, **options),
                          datetime.datetime.now())
        return [(document.tokens, document.mask) for document in encoder.line(json.dumps(sample))]

    def expected(self, template: str, sample: dict, messages: list[dict]) -> tuple[list[int], list[int]]:
        extra = {name: sample[name] for name in ("tools", "documents") if name in sample}
        result = self.theirs.apply_chat_template(messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True,
                                                 **extra, **sample.get("chat_template_kwargs", {}))
        return result["input_ids"], result["assistant_masks"]

    def test_marked_templates_give_transformers_tokens_and_masks(self) -> None:
        compared = 0
        for template, _ in chat_templates.FAMILIES.values():
            for sample in chat_templates.conversations():
                expected = self.expected(chat_templates.marked(template), sample, sample["messages"])
                self.assertEqual(self.encode(chat_templates.marked(template), sample), [expected])
                self.assertGreater(sum(expected[1]), 0)
                compared += len(expected[0])
        self.assertGreater(compared, 1000)

    def test_unmarked_templates_give_the_same_where_turns_stay_as_they_are(self) -> None:
        for name in ("llama", "chatml"):
            template, _ = chat_templates.FAMILIES[name]
            for sample in chat_templates.conversations():
                expected = self.expected(chat_templates.marked(template), sample, sample["messages"])
                self.assertEqual(self.encode(chat_templates.plain(template), sample), [expected], name)

    def test_rewritten_turns_give_each_turn_as_the_last_one_has_it(self) -> None:
        for name in ("thinking", "inst"):
            template, _ = chat_templates.FAMILIES[name]
            for sample in chat_templates.conversations():
                messages = sample["messages"]
                if name == "inst" and messages[0]["role"] != "system":
                    continue  # nothing moves without a system prompt
                turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
                documents = self.encode(chat_templates.plain(template), sample)
                self.assertEqual(len(documents), len(turns))
                for (tokens, mask), turn in zip(documents, turns, strict=True):
                    expected, marks = self.expected(chat_templates.marked(template), sample, messages[: turn + 1])
                    self.assertEqual(tokens, expected)
                    prompt = self.theirs.apply_chat_template(messages[:turn], chat_template=chat_templates.plain(template), return_dict=False,
                                                             add_generation_prompt=True, tools=sample.get("tools"))
                    self.assertEqual(mask, [0] * len(prompt) + marks[len(prompt) :])
                    self.assertEqual(tokens[: len(prompt)], prompt, "what is learned is what generation asks for")

    def test_everything_is_trained_on_when_asked_for(self) -> None:
        for template, _ in chat_templates.FAMILIES.values():
            for sample in chat_templates.conversations():
                [(tokens, mask)] = self.encode(chat_templates.plain(template), sample, train_on="all")
                self.assertEqual(tokens, self.expected(chat_templates.marked(template), sample, sample["messages"])[0])
                self.assertEqual(mask, [1] * len(tokens))

    def test_named_templates_and_special_tokens_are_transformers(self) -> None:
        config = json.loads((self.tokenizer_folder / "tokenizer_config.json").read_text())
        config["chat_template"] = [{"name": "default", "template": "{{ bos_token }}{{ pad_token }}{{ sep_token }}x"},
                                   {"name": "tool_use", "template": "{{ tools | tojson }}{{ eos_token }}"}]
        (self.tokenizer_folder / "tokenizer_config.json").write_text(json.dumps(config))
        theirs = AutoTokenizer.from_pretrained(str(self.tokenizer_folder))
        from reprise.chat_template import find_templates

        tokenizer = Tokenizer(self.tokenizer_folder)
        encoder = Encoder(tokenizer, EncodeOptions(templates=find_templates(tokenizer.folder), train_on="all"), datetime.datetime.now())
        messages, tools = [{"role": "user", "content": "q"}], chat_templates.conversations()[3]["tools"]
        for sample in ({"messages": messages}, {"messages": messages, "tools": tools}):
            self.assertEqual(encoder.line(json.dumps(sample))[0].tokens,
                             theirs.apply_chat_template(messages, tools=sample.get("tools"), return_dict=False))


if __name__ == "__main__":
    unittest.main()
