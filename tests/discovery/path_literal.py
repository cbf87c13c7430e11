"""Frozen sub-layers and path scores written out with the Hugging Face modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from circuitsearch.discovery.paths.linear import LinearRun, linearise
from tests.discovery.literal import Exact

__all__ = ["CLOSE", "GATED", "Literal", "first_run"]

# float64 on both sides, the same operations in another order
CLOSE = {"rtol": 1e-8, "atol": 1e-9}
# `gate` takes f(a) / a beside a = 0: where |a| < 1e-4 a neuron is off by up to 1e-8
GATED = {"rtol": 1e-6, "atol": 1e-6}


def first_run(exact: Exact, feed: str = "gate") -> LinearRun:
    batch, states = exact.sample.batches[0]
    with torch.no_grad():
        return linearise(exact.decoder, batch, exact.decoder.memory(states, batch.pages), feed)


class Literal:
    """One example: frozen sub-layers written out, module by module, in float64."""

    def __init__(self, exact: Exact, row: int, feed: str, other: Tensor | None = None) -> None:
        self.feed, self.model, self.stack = feed, exact.model, exact.model.model.decoder
        example = exact.sample.rows[row]
        self.ids = torch.tensor([example.ids[:-1]])
        self.states = exact.sample.states[example.page]
        self.other = other
        self.scored = range(example.prompt - 1, len(example.ids) - 1)
        self.labels = [example.ids[t + 1] for t in self.scored]
        self.reads: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for i, layer in enumerate(self.stack.layers):
                for kind in "SCM":
                    keep = partial(self._keep, f"{kind}{i}")
                    norm = self.norm_of(layer, kind)
                    hooks.callback(norm.register_forward_pre_hook(keep).remove)
            keep = partial(self._keep, "logits")
            hooks.callback(self.stack.layer_norm.register_forward_pre_hook(keep).remove)
            self.logits = self.run(self.states)

    def _keep(self, name: str, _module: Any, inputs: Any) -> None:
        self.reads[name] = inputs[0][0].detach()

    def run(self, states: Tensor) -> Tensor:
        logits: Tensor = self.model(
            input_ids=self.ids, encoder_hidden_states=states[None], use_cache=False
        ).logits[0]
        return logits

    @staticmethod
    def norm_of(layer: Any, kind: str) -> Any:
        names = {"S": "self_attn_layer_norm", "C": "encoder_attn_layer_norm"}
        return getattr(layer, names.get(kind, "final_layer_norm"))

    def normed(self, module: Any, x: Tensor, clean: Tensor, *, bias: bool = False) -> Tensor:
        """LayerNorm of a change of the stream, divided by the clean run's deviation."""
        deviation = (clean.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        found = (x - x.mean(-1, keepdim=True)) / deviation * module.weight
        return found + module.bias if bias else found

    def weights(self, attention: Any, query: Tensor, key: Tensor, *, causal: bool) -> list[Tensor]:
        """Attention weights per head, [T, N]."""
        query, key = attention.q_proj(query), attention.k_proj(key)
        found = []
        for h in range(4):
            part = slice(8 * h, 8 * h + 8)
            scores = query[:, part] @ key[:, part].T / math.sqrt(8)
            if causal:
                for t in range(len(scores)):
                    scores[t, t + 1 :] = -math.inf
            found.append(scores.softmax(-1))
        return found

    def through(self, name: str, x: Tensor) -> Tensor:
        """What a change x [T, d] adds behind a sub-layer; for C, a change of the states [N, d]."""
        layer = self.stack.layers[int(name[1])]
        norm, clean = self.norm_of(layer, name[0]), self.reads[name]
        if name[0] == "M":
            return self.fed(layer, self.normed(norm, x, clean), norm(clean))
        attention = layer.self_attn if name[0] == "S" else layer.encoder_attn
        if name[0] == "S":
            weights = self.weights(attention, norm(clean), norm(clean), causal=True)
            x = self.normed(norm, x, clean)
        else:
            weights = self.weights(attention, norm(clean), self.states, causal=False)
        value = x @ attention.v_proj.weight.T
        heads = [weights[h] @ value[:, 8 * h : 8 * h + 8] for h in range(4)]
        return torch.cat(heads, dim=1) @ attention.out_proj.weight.T

    def fed(self, layer: Any, x: Tensor, clean: Tensor) -> Tensor:
        gelu = torch.nn.functional.gelu
        if self.feed == "jacobian":
            _, slope = torch.autograd.functional.jvp(
                lambda n: layer.fc2(gelu(layer.fc1(n))), clean, x
            )
            return slope
        before = layer.fc1(clean)
        return (x @ layer.fc1.weight.T * gelu(before) / before) @ layer.fc2.weight.T

    def vector(self, source: str, through: tuple[str, ...]) -> Tensor:
        """The end of a path [T, d]: replaced minus clean source, sub-layer by sub-layer."""
        if source == "embedding":
            x = -self.reads["S0"]
        elif self.other is None:
            x = -self.states
        else:
            x = self.other - self.states
        for name in through:
            x = self.through(name, x)
        return x

    def metric(self, logits: Tensor) -> Tensor:
        """Mean logit minus the right one, averaged over answer tokens."""
        rows = [logits[t] for t in self.scored]
        parts = [row.mean() - row[y] for row, y in zip(rows, self.labels, strict=True)]
        return torch.stack(parts).mean()

    def logits_slope(self) -> Callable[[Tensor], Tensor]:
        """The change of the metric along a change of the last stream; it is linear in logits."""

        def slope(x: Tensor) -> Tensor:
            normed = self.normed(self.stack.layer_norm, x, self.reads["logits"])
            return self.metric(normed @ self.model.lm_head.weight.T)

        return slope

    def query_slope(self, heads: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        """The metric's derivative along the change that a change of the stream makes to queries."""
        layer = self.stack.layers[3]

        def slope(x: Tensor) -> Tensor:
            clean = self.reads["C3"]
            change = self.normed(layer.encoder_attn_layer_norm, x, clean)
            change = change @ layer.encoder_attn.q_proj.weight.T
            kept = torch.zeros_like(change)
            for h in heads:
                kept[:, 8 * h : 8 * h + 8] = change[:, 8 * h : 8 * h + 8]

            def run(step: Tensor) -> Tensor:
                moved = layer.encoder_attn.q_proj.register_forward_hook(
                    lambda _m, _i, out: out + step * kept
                )
                value = self.metric(self.run(self.states))
                moved.remove()
                return value

            zero = torch.zeros((), dtype=torch.float64)
            return torch.autograd.functional.jacobian(run, zero)

        return slope
