"""What is done with every key of config.json that transformers knows or reads for the four families: the tables below name them all,
so that a new one of a newer transformers fails here until somebody has decided."""

import dataclasses
import inspect
import json
import re
import tempfile
import unittest
from pathlib import Path

import transformers
from models import FAMILIES, dump_gradients, make_config, write_old_spelling

# What the decoder is made of: another value gives another configuration, the one that transformers has.
READ = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 1, "head_dim": 6, "max_position_embeddings": 64, "rms_norm_eps": 1e-3, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 123.0}}
READ_BY = {"llama": {"attention_bias": True, "mlp_bias": True}, "mistral": {}, "qwen2": {}, "qwen3": {"attention_bias": True}}

# Without effect on what the model computes in evaluation mode.
INERT = {"initializer_range": 0.5, "use_cache": False, "pad_token_id": 3, "bos_token_id": 4, "eos_token_id": [5, 6],
         "pretraining_tp": 2, "transformers_version": "4.0.0", "output_hidden_states": True, "return_dict": False,
         "dtype": "bfloat16", "chunk_size_feed_forward": 2, "id2label": {"0": "a"}, "label2id": {"a": 0}, "problem_type": "regression",
         "max_window_layers": 1, "_attn_implementation": "sdpa"}

# A value that the decoder does not compute; the message names the key.
REFUSED = {"hidden_act": "gelu", "attention_dropout": 0.1, "is_encoder_decoder": True, "architectures": ["LlamaModel"],
           "sliding_window": 128, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"],
           # read by transformers' own code for every model, or by other families
           "is_causal": False, "per_layer_config": {"1": {"intermediate_size": 8}}, "partial_rotary_factor": 0.5,
           "quantization_config": {"quant_method": "gptq"}, "use_bidirectional_attention": True, "attention_chunk_size": 64,
           "auto_map": {"AutoConfig": "a.B"}, "num_experts": 4, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 30.0,
           "embedding_multiplier": 2.0, "logits_scaling": 2.0, "original_max_position_embeddings": 16}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 0, "layer_types": None}
REFUSED_ROPE = [{"rope_type": name, "factor": 2.0} for name in transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS
                if name not in ("default", "llama3")]


class ConfigKeysTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)

    def tearDown(self) -> None:
        self._folder.cleanup()

    def write(self, family: str, **changes: object) -> Path:
        make_config(family, architectures=[f"{family.capitalize()}ForCausalLM"]).save_pretrained(self.folder)
        path = self.folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return self.folder

    def read(self) -> dict:
        return json.loads(dump_gradients(self.folder))

    def known_to_transformers(self, family: str) -> set[str]:
        config = make_config(family)
        module = inspect.getmodule(transformers.AutoModelForCausalLM._model_mapping[type(config)])
        code = re.sub(r'rope_parameters\["\w+"\]', "rope_parameters", inspect.getsource(module))
        read = set(re.findall(r"\bconfig\.([a-z_]+)\b(?!\()", code)) | set(re.findall(r'getattr\((?:self\.)?config, "(\w+)"', code))
        return read | {field.name for field in dataclasses.fields(config)}

    def test_every_key_that_transformers_knows_is_decided(self) -> None:
        for family in FAMILIES:
            decided = READ.keys() | READ_BY[family].keys() | INERT.keys() | REFUSED.keys()
            self.assertEqual(self.known_to_transformers(family) - decided, set(), family)

    def assert_as_transformers(self, family: str) -> None:
        got, want = self.read(), transformers.AutoConfig.from_pretrained(self.folder)
        for key in READ.keys() - {"rope_parameters", "head_dim"}:
            self.assertAlmostEqual(got[key], getattr(want, key), places=9, msg=key)
        head_dim = getattr(want, "head_dim", None) or want.hidden_size // want.num_attention_heads
        rope = dict(want.rope_parameters)
        self.assertEqual(got["head_dim"], head_dim)
        self.assertEqual(got["rope_theta"], rope["rope_theta"])
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            if rope["rope_type"] == "llama3":
                self.assertEqual(got[key], rope[key])
        self.assertEqual(got["qkv_bias"], family == "qwen2" or getattr(want, "attention_bias", False))
        self.assertEqual(got["attention_out_bias"], getattr(want, "attention_bias", False))
        self.assertEqual(got["mlp_bias"], getattr(want, "mlp_bias", False))
        self.assertEqual(got["qk_norm"], family == "qwen3")

    def test_what_is_read_is_as_transformers_reads_it(self) -> None:
        llama3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 32}
        for family in FAMILIES:
            self.write(family)
            usual = self.read()
            # Named layer types would say how many layers there are a second time.
            changes = [{key: value} | ({"layer_types": None} if key == "num_hidden_layers" else {})
                       for key, value in (READ | READ_BY[family]).items()]
            for change in [{}, *changes, {"rope_parameters": llama3}, {"num_key_value_heads": None}]:
                if family == "mistral" and change == {"num_key_value_heads": None}:
                    continue  # transformers 5 itself refuses it
                for old in (False, True):
                    with self.subTest(family=family, old=old, **change):
                        self.write(family, **change)
                        if old:
                            write_old_spelling(self.folder)
                        self.assert_as_transformers(family)
                        self.assertEqual(self.read() != usual, bool(change))

    def test_what_is_inert_changes_nothing(self) -> None:
        for family in FAMILIES:
            self.write(family)
            usual = self.read()
            self.write(family, **INERT)
            self.assertEqual(self.read(), usual, family)

    def test_what_is_not_supported_is_refused_by_its_name(self) -> None:
        for family in FAMILIES:
            for key, value in REFUSED.items():
                with self.subTest(family=family, key=key):
                    named, change = key, {key: value}
                    if "sliding_window" in key and family in ("qwen2", "qwen3"):  # one switches the other on
                        named, change = "use_sliding_window", QWEN_WINDOW
                    elif key == "use_sliding_window":
                        continue  # of llama and mistral only sliding_window is a key
                    self.write(family, **change)
                    self.assertRegex(dump_gradients(self.folder, fails=True), rf"config\.json: {named} = ")

    def test_other_rotations_are_refused_by_their_name(self) -> None:
        self.assertGreater(len(REFUSED_ROPE), 3)
        for rope in [*REFUSED_ROPE, {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}]:
            self.write("qwen3", rope_parameters=rope)
            named = "full_attention" if "full_attention" in rope else f'rope_type = "{rope["rope_type"]}"'
            self.assertIn(f"rope_parameters.{named}", dump_gradients(self.folder, fails=True))

    def test_windows_that_no_layer_has_are_no_windows(self) -> None:
        for change in ({"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 128, "layer_types": None},
                       {"use_sliding_window": True, "sliding_window": 128, "layer_types": ["full_attention", "full_attention"]},
                       {"use_sliding_window": True, "sliding_window": 512, "layer_types": None},
                       {"use_sliding_window": True, "sliding_window": None, "layer_types": None}):
            self.write("qwen2", **change)
            self.assertEqual(self.read()["model_type"], "qwen2")


if __name__ == "__main__":
    unittest.main()
