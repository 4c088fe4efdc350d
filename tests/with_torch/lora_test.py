"""Adapters beside peft: folders both ways, log-probabilities, gradients and AdamW's steps, and what is refused by name."""

import json
import tempfile
import unittest
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from models import TOKENS, load_weights, log_probs, make_model, random_documents, run_reprise, write_dataset
from safetensors.torch import load_file

LLAMA = {"attention_bias": True, "mlp_bias": True, "head_dim": 10, "hidden_size": 28, "intermediate_size": 36}


class LoraTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.documents = random_documents([9, 30, 2, 17], TOKENS)
        self.data = write_dataset(self.folder / "data", self.documents)

    def tearDown(self) -> None:
        self._folder.cleanup()

    def base(self, family: str, **options: object) -> Path:
        make_model(self.folder / family, family, **options)
        return self.folder / family

    def load_base(self, folder: Path) -> torch.nn.Module:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()

    def make_adapter(self, base: Path, name: str, **options: object) -> Path:
        """As peft writes it, with values of which none is zero."""
        torch.manual_seed(3)
        options = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
        model = peft.get_peft_model(self.load_base(base), peft.LoraConfig(**options))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0.0, 0.1)
        model.save_pretrained(self.folder / name)
        return self.folder / name

    def log_probs_of(self, model: torch.nn.Module) -> np.ndarray:
        with torch.no_grad():
            return torch.cat([log_probs(model, document, TOKENS) for document in self.documents]).numpy()

    def log_probs_of_reprise(self, model: Path, *options: object, tensor: int = 1) -> np.ndarray:
        out = self.folder / "log_probs.npy"
        run_reprise("eval", "--model", model, "--data", self.data, "--per-token", out, "--ranks", tensor, "--tensor", tensor,
                    "--threads", 1, *options)
        return np.load(out)

    def train(self, base: Path, *overrides: str, ranks: int = 1) -> Path:
        run = self.folder / "run"
        run_reprise("init", self.folder / "run.toml", f"model.path={base}", f"data.train={self.data}", f"run.folder={run}",
                    "replay.store=", "replay.normalization=full", "train.global_batch=4", "data.sequence_length=64",
                    f"parallel.tensor={ranks}", "optimizer.name=adamw", "schedule.decay=constant", *overrides)
        run_reprise("train", self.folder / "run.toml", "--ranks", ranks, "--threads", 1)
        return run

    def test_an_adapter_of_reprise_is_loaded_by_peft_and_merged_alike(self) -> None:
        for family, options in (("llama", LLAMA), ("qwen3", {"tie_word_embeddings": True})):
            with self.subTest(family=family):
                base = self.base(family, **options)
                run = self.train(base, "lora.rank=4", "lora.alpha=6", "train.steps=3", "optimizer.lr=0.05", ranks=2)
                adapter, merged = self.folder / f"{family}-adapter", self.folder / f"{family}-merged"
                run_reprise("export", "--run", run, "--out", adapter)
                run_reprise("export", "--run", run, "--out", merged, "--merge")
                model = peft.PeftModel.from_pretrained(self.load_base(base), adapter).eval()
                want = self.log_probs_of(model)
                self.assertGreater(np.abs(want - self.log_probs_of(self.load_base(base))).max(), 0.05, "nothing was trained")
                for tensor in (1, 2, 4):
                    got = self.log_probs_of_reprise(base, "--adapter", adapter, tensor=tensor)
                    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
                np.testing.assert_allclose(self.log_probs_of(self.load_base(merged)), want, rtol=2e-5, atol=2e-5)
                got, ours = model.merge_and_unload().state_dict(), load_weights(merged)
                for name, tensor in ours.items():
                    torch.testing.assert_close(tensor, got[name], rtol=1e-6, atol=1e-6, msg=name)
                for file in self.folder.glob("run*"):
                    file.rename(self.folder / f"{family}-{file.name}")

    def test_an_adapter_of_peft_is_read(self) -> None:
        base = self.base("qwen2")
        for name, options in (("plain", {}), ("rs", {"use_rslora": True, "r": 5}),
                              ("some", {"target_modules": ["q_proj", "v_proj", "down_proj"], "lora_dropout": 0.1}),
                              ("half", {"target_modules": ".*k_proj"})):
            with self.subTest(name):
                adapter = self.make_adapter(base, name, **options)
                want = self.log_probs_of(peft.PeftModel.from_pretrained(self.load_base(base), adapter).eval())
                for tensor in (1, 4):
                    got = self.log_probs_of_reprise(base, "--adapter", adapter, tensor=tensor)
                    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)

    def test_gradients_and_steps_are_those_of_peft_and_torch(self) -> None:
        base = self.base("llama", **LLAMA)
        start = self.make_adapter(base, "start")
        model = peft.PeftModel.from_pretrained(self.load_base(base), start, is_trainable=True)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(trained.values(), lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        gradients, steps = {}, 3
        for step in range(steps):
            optimizer.zero_grad()
            (-torch.cat([log_probs(model, document, TOKENS) for document in self.documents]).mean()).backward()
            if step == 0:
                gradients = {name: p.grad.clone() for name, p in trained.items()}
            optimizer.step()

        run = self.train(base, f"lora.adapter={start}", f"train.steps={steps}", "train.checkpoint_every=1", "optimizer.lr=0.01",
                         "optimizer.weight_decay=0.1", "optimizer.clip_norm=0")
        first = load_file(run / "checkpoints" / "step-00000001" / "rank-00000.safetensors")
        self.assertEqual(len(first), 3 * len(trained))
        run_reprise("export", "--run", run, "--out", self.folder / "ours")
        ours = load_file(self.folder / "ours" / "adapter_model.safetensors")
        self.assertEqual(len(ours), len(trained))
        for name, parameter in trained.items():
            stored = name.replace(".default.", ".")
            moment = first[stored.removeprefix("base_model.model.") + "/exp_avg/0"].reshape(parameter.shape)
            torch.testing.assert_close(moment, 0.1 * gradients[name], rtol=1e-3, atol=1e-5 * gradients[name].abs().max().item(),
                                       msg=name)
            torch.testing.assert_close(ours[stored], parameter.detach(), rtol=1e-4, atol=1e-5, msg=name)

    def test_what_is_not_computed_is_refused_by_name(self) -> None:
        base = self.base("llama")
        for name, options in (("use_dora", {"use_dora": True}), ("modules_to_save", {"modules_to_save": ["lm_head"]}),
                              ("bias", {"bias": "lora_only"}), ("rank_pattern", {"rank_pattern": {"q_proj": 2}}),
                              ("alpha_pattern", {"alpha_pattern": {"q_proj": 2}}), ("lora_bias", {"lora_bias": True}),
                              ("trainable_token_indices", {"trainable_token_indices": [1, 2]}),
                              ("layers.1.self_attn.q_proj", {"target_modules": ["q_proj"], "layers_to_transform": [0]}),
                              ("lm_head.lora_A", {"target_modules": ["q_proj", "lm_head"]})):
            with self.subTest(name):
                adapter = self.make_adapter(base, name, **options)
                self.assertIn(name, run_reprise("eval", "--model", base, "--adapter", adapter, "--data", self.data, fails=True))
        adapter = self.make_adapter(base, "changed")
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"a_method_of_2027": True}))
        self.assertIn("a_method_of_2027 = true", run_reprise("eval", "--model", base, "--adapter", adapter, "--data", self.data,
                                                             fails=True))


if __name__ == "__main__":
    unittest.main()
