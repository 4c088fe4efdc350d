"""What people use today, measured on the same GPU as device_bench: peers.py OUT.json [--tiny]. A peer that does not import
is a row that says so."""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import torch
import torch.nn.functional as F


def seconds(work, rounds: int = 7, least: float = 0.02) -> float:
    """Median over rounds of one call's time, by events around as many calls as fill `least` seconds."""

    def one(calls: int) -> float:
        if not torch.cuda.is_available():
            import time  # noqa: PLC0415
            begin = time.perf_counter()
            for _ in range(calls):
                work()
            return (time.perf_counter() - begin) / calls
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls):
            work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) * 1e-3 / calls

    one(2)
    calls = max(1, min(100, int(least / max(one(1), 1e-6))))
    return statistics.median(one(calls) for _ in range(rounds))


class Head:
    """Hidden states, head weight and gold of one micro-batch, bfloat16."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.vocab, self.depth, self.tokens, self.candidates = (512, 64, 24, 8) if tiny else (128256, 4096, 4096, 100)
        self.device = device
        torch.manual_seed(1)
        self.hidden = torch.randn(self.tokens, self.depth, device=device, dtype=torch.bfloat16).requires_grad_()
        self.weight = (0.02 * torch.randn(self.vocab, self.depth, device=device)).to(torch.bfloat16).requires_grad_()
        self.sets = torch.rand(self.tokens, self.vocab, device=device).topk(self.candidates).indices.sort(dim=1).values
        self.gold = self.sets[:, 0].contiguous()
        self.position = torch.zeros(self.tokens, dtype=torch.long, device=device)

    def run(self, loss) -> float:
        def step() -> None:
            self.hidden.grad = self.weight.grad = None
            loss().backward()

        return seconds(step)

    def full(self) -> torch.Tensor:
        return F.cross_entropy((self.hidden @ self.weight.T).float(), self.gold)

    def gathered(self) -> torch.Tensor:
        """Rows of each token's set, multiplied one token at a time: the plain restricted route."""
        parts = []
        for begin in range(0, self.tokens, 256):
            rows = F.embedding(self.sets[begin:begin + 256], self.weight)
            logits = torch.bmm(rows, self.hidden[begin:begin + 256].unsqueeze(2)).squeeze(2).float()
            parts.append(F.cross_entropy(logits, self.position[begin:begin + 256], reduction="sum"))
        return torch.stack(parts).sum() / self.tokens


def head_rows(device: str, tiny: bool) -> list[dict]:
    head = Head(device, tiny)
    peers = {"torch full: mm + cross_entropy": head.full, "torch restricted: embedding + bmm": head.gathered}
    rows = []
    try:
        compiled = torch.compile(head.full)
        peers["torch full, compiled"] = compiled
    except Exception as error:  # noqa: BLE001 a peer that fails is a result
        rows.append({"peer": "torch full, compiled", "not run": str(error)[:120]})
    try:
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss
        liger = LigerFusedLinearCrossEntropyLoss()
        peers["Liger fused linear cross-entropy"] = lambda: liger(head.weight, head.hidden, head.gold)
    except ImportError as error:
        rows.append({"peer": "Liger fused linear cross-entropy", "not run": str(error)})
    try:
        from cut_cross_entropy import linear_cross_entropy
        peers["Cut Cross-Entropy"] = lambda: linear_cross_entropy(head.hidden, head.weight, head.gold)
    except ImportError as error:
        rows.append({"peer": "Cut Cross-Entropy", "not run": str(error)})
    try:
        from quack.linear_cross_entropy import chunked_linear_cross_entropy
        peers["QuACK linear cross-entropy"] = lambda: chunked_linear_cross_entropy(head.hidden, head.weight, head.gold)
    except ImportError as error:
        rows.append({"peer": "QuACK linear cross-entropy", "not run": str(error)})
    for name, loss in peers.items():
        try:
            rows.append({"peer": name, "ms": 1e3 * head.run(loss)})
        except Exception as error:  # noqa: BLE001
            rows.append({"peer": name, "not run": f"{type(error).__name__}: {error}"[:160]})
    return rows


def top_k_rows(device: str, tiny: bool) -> list[dict]:
    tokens, vocab = (16, 512) if tiny else (2048, 128256)
    logits = torch.randn(tokens, vocab, device=device)
    rows = []
    for k in (100, 200, 1024) if not tiny else (8,):
        rows.append({"peer": "torch.topk + logsumexp", "tokens": tokens, "vocab": vocab, "k": k,
                     "ms": 1e3 * seconds(lambda k=k: (logits.topk(k), logits.logsumexp(1)))})
    return rows


def optimizer_rows(device: str, tiny: bool) -> list[dict]:
    rows = []
    for millions in (128, 1024):
        size = 1024 if tiny else millions << 20
        parameters = [torch.zeros(size // 16, device=device).requires_grad_() for _ in range(16)]
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
        adamw = torch.optim.AdamW(parameters, lr=1e-5, fused=device == "cuda")

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            adamw.step()

        rows.append({"peer": "torch fused AdamW with clip_grad_norm_, float32", "parameters": size, "ms": 1e3 * seconds(step)})
        del parameters, adamw
    return rows


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("out")
    options.add_argument("--tiny", action="store_true", help="small shapes, on the CPU where there is no GPU: a check of this script")
    arguments = options.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.tiny:
        print("peers.py: torch sees no GPU", file=sys.stderr)
        return 1
    results = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    for name, table in {"heads": head_rows, "top_k": top_k_rows, "optimizers": optimizer_rows}.items():
        results[name] = table(device, arguments.tiny)
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
