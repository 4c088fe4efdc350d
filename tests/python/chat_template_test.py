import datetime
import json
import tempfile
import unittest
from pathlib import Path

import chat_templates
from support import make_tokenizer

from reprise.chat_template import choose_templates, find_templates
from reprise.encode import EncodeOptions, Encoder
from reprise.errors import DataError
from reprise.tokenizer import Tokenizer

NOW = datetime.datetime(2025, 3, 4)


class ChatTemplateTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.tokenizer_folder = make_tokenizer(self.folder / "tokenizer", special_tokens=tuple(chat_templates.SPECIAL_TOKENS[1:]),
                                               bos_token="<s>", eos_token="</s>")

    def tearDown(self) -> None:
        self._folder.cleanup()

    def encoder(self, template: str, end: str = "</s>", **options: object) -> Encoder:
        options.setdefault("end_tokens", (end,))
        return Encoder(Tokenizer(self.tokenizer_folder), EncodeOptions(templates={"default": template}, **options), NOW)

    def encode(self, encoder: Encoder, sample: dict) -> list[tuple[str, str]]:
        """Of each document the whole text, and the text that is trained on, pieces parted by |."""
        result = []
        for document in encoder.line(json.dumps(sample)):
            trained, last = "", 0
            for token, on in zip(document.tokens, document.mask):
                if on:
                    trained += ("" if last or not trained else "|") + encoder.tokenizer.core.id_to_token(token)
                last = on
            text = encoder.tokenizer.core.decode(document.tokens, skip_special_tokens=False)
            result.append((text, trained.replace("Ġ", " ").replace("Ċ", "\n")))
        return result

    def test_turns_found_by_rendering_are_those_that_marks_name(self) -> None:
        for name, (template, end) in chat_templates.FAMILIES.items():
            for sample in chat_templates.conversations():
                if name in ("thinking", "inst") and len(sample["messages"]) > 2:
                    continue  # they rewrite earlier turns, so these are written once per turn; see below
                found = self.encoder(chat_templates.plain(template), end)
                told = self.encoder(chat_templates.marked(template), end)
                self.assertEqual(self.encode(found, sample), self.encode(told, sample), name)
                self.assertEqual(found.statistics, told.statistics)
                self.assertEqual(found.statistics.missing_end, 0)

    def test_every_turn_is_trained_on_with_its_end_and_without_the_blank_behind(self) -> None:
        encoder = self.encoder(chat_templates.plain(chat_templates.CHATML), "<|im_end|>")
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "xy"}, {"role": "user", "content": "r"},
                    {"role": "assistant", "content": "z"}]
        [(text, trained)] = self.encode(encoder, {"messages": messages})
        self.assertEqual(trained, "xy<|im_end|>|z<|im_end|>")
        self.assertTrue(text.endswith("z<|im_end|>\n"))
        self.assertEqual(encoder.statistics.turns, 2)

    def test_train_on_last_and_all(self) -> None:
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "xy"}, {"role": "user", "content": "r"},
                    {"role": "assistant", "content": "z"}]
        for variant in (chat_templates.plain, chat_templates.marked):
            template = variant(chat_templates.CHATML)
            [(_, trained)] = self.encode(self.encoder(template, train_on="last"), {"messages": messages})
            self.assertEqual(trained, "z<|im_end|>")
            [(text, trained)] = self.encode(self.encoder(template, train_on="all"), {"messages": messages})
            self.assertEqual(text, trained)

    def test_rewritten_turns_are_written_once_each_as_they_will_be_asked_for(self) -> None:
        sample = chat_templates.conversations()[2]
        encoder = self.encoder(chat_templates.plain(chat_templates.THINKING), "<|im_end|>")
        documents = self.encode(encoder, sample)
        self.assertEqual([trained for _, trained in documents],
                         ["<think>\nfirst a,\nthen b\n</think>\n\nb<|im_end|>", "<think>\nafter c\n</think>\n\nd<|im_end|>",
                          "<think>\n\n</think>\n\nf<|im_end|>"])
        self.assertNotIn("first a", documents[1][0])
        self.assertEqual(encoder.statistics.split_conversations, 1)
        [(_, trained)] = self.encode(self.encoder(chat_templates.plain(chat_templates.THINKING), train_on="last"), sample)
        self.assertEqual(trained, "<think>\n\n</think>\n\nf<|im_end|>")

        sample = chat_templates.conversations()[1]
        first, second = self.encode(self.encoder(chat_templates.plain(chat_templates.INST)), sample)
        self.assertIn("[INST] Be kind.\n\n  Grüße", first[0])
        self.assertIn("[INST] Be kind.\n\nGut.[/INST]", second[0])
        self.assertNotIn("Be kind.\n\n  Grüße", second[0])

    def test_a_variable_changes_what_the_prompt_holds(self) -> None:
        sample = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
        template = chat_templates.plain(chat_templates.THINKING)
        [(_, trained)] = self.encode(self.encoder(template, variables={"enable_thinking": False}), sample)
        self.assertEqual(trained, "a<|im_end|>")
        [(_, trained)] = self.encode(self.encoder(template), sample | {"chat_template_kwargs": {"enable_thinking": False}})
        self.assertEqual(trained, "a<|im_end|>")

    def test_a_prompt_and_completion_of_messages_train_on_the_completion(self) -> None:
        before = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "r"}]
        sample = {"prompt": before, "completion": [{"role": "assistant", "content": "z"}]}
        for variant in (chat_templates.plain, chat_templates.marked):
            [(_, trained)] = self.encode(self.encoder(variant(chat_templates.CHATML)), sample)
            self.assertEqual(trained, "z<|im_end|>")

    def test_turns_without_an_end_token_are_counted_and_shown(self) -> None:
        template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
        encoder = self.encoder(template)
        self.encode(encoder, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "abc"}]})
        self.assertEqual((encoder.statistics.turns, encoder.statistics.missing_end), (1, 1))
        self.assertEqual(encoder.statistics.examples["missing_end"], ["abc"])
        encoder = self.encoder(chat_templates.plain(chat_templates.CHATML), end_tokens=())
        self.encode(encoder, chat_templates.conversations()[0])
        self.assertEqual(encoder.statistics.missing_end, 1)  # <|im_end|> is no end token of this tokenizer
        template = chat_templates.marked(chat_templates.CHATML.replace('{{- "<|im_end|>" }}>>', '>>{{- "<|im_end|>" }}'))
        encoder = self.encoder(template, "<|im_end|>")
        self.encode(encoder, chat_templates.conversations()[0])
        self.assertEqual(encoder.statistics.examples["missing_end"], ["4.<|im_end|>\n"])  # the marks leave it out

    def test_what_a_template_cannot_do_is_said(self) -> None:
        q, a = {"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}
        thinks = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant><think>{% endif %}"
        for template, messages, part in (
                ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", [q, a], "generation prompt"),
                (thinks, [q, a], "does not begin assistant message 2"),
                (chat_templates.plain(chat_templates.INST), [q, q, a], "refuses the sample: user and assistant must take turns"),
                (chat_templates.plain(chat_templates.CHATML), [a], "begins with an assistant message"),
                ("{% for %}", [q, a], "not one: line 1"),
                ("{{ messages[0].content + 1 }}", [q, a], "fails on the sample"),
                ("{{ messages.__class__.__mro__ }}", [q, a], "refuses the sample"),
                ("{% generation %}{% generation %}x{% endgeneration %}{% endgeneration %}", [q, a], "nested")):
            with self.assertRaises(DataError, msg=template) as caught:
                self.encode(self.encoder(template), {"messages": messages})
            self.assertIn(part, str(caught.exception))

    def test_the_date_is_that_of_the_run(self) -> None:
        sample = chat_templates.conversations()[0]
        [(text, _)] = self.encode(self.encoder(chat_templates.plain(chat_templates.LLAMA)), sample)
        self.assertIn("Date: 04 Mar 2025", text)
        [(text, _)] = self.encode(self.encoder(chat_templates.plain(chat_templates.LLAMA), variables={"date_string": "1 May"}), sample)
        self.assertIn("Date: 1 May", text)

    def test_templates_are_found_where_models_keep_them(self) -> None:
        several = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
        folder = make_tokenizer(self.folder / "several", chat_template=several)
        tokenizer = Tokenizer(folder)
        self.assertEqual(find_templates(tokenizer.folder), {"default": "D", "tool_use": "T"})
        self.assertEqual(choose_templates(tokenizer.folder, "tool_use"), {"default": "T"})
        (self.folder / "own.jinja").write_text("F")
        self.assertEqual(choose_templates(tokenizer.folder, self.folder / "own.jinja"), {"default": "F"})
        with self.assertRaisesRegex(DataError, "neither a file nor a template's name"):
            choose_templates(tokenizer.folder, "rag")
        encoder = Encoder(tokenizer, EncodeOptions(templates=find_templates(tokenizer.folder), train_on="all"), NOW)
        q = [{"role": "user", "content": "q"}]
        self.assertEqual(self.encode(encoder, {"messages": q})[0][0], "D")
        self.assertEqual(self.encode(encoder, {"messages": q, "tools": [{"type": "function"}]})[0][0], "T")

        (folder / "chat_template.jinja").write_text("J")
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "rag.jinja").write_text("R")
        self.assertEqual(find_templates(tokenizer.folder), {"default": "J", "rag": "R"})
        with self.assertRaisesRegex(DataError, "no chat template"):
            self.encode(Encoder(tokenizer, EncodeOptions(), NOW), {"messages": q})
        with self.assertRaisesRegex(DataError, "choose one"):
            self.encode(Encoder(tokenizer, EncodeOptions(templates={"a": "", "b": ""}), NOW), {"messages": q})


if __name__ == "__main__":
    unittest.main()
