"""One training step on cached features: the part of distillation that touches gradients."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from circuitsearch.core.errors import ConfigError, TrainingError
from circuitsearch.core.files import content_hash
from circuitsearch.core.plan import Plan
from circuitsearch.teacher.decoders import ResidualDecoder, continue_from
from circuitsearch.teacher.documents.collate import IGNORED

from .feature_reader import Features
from .losses import LOSSES, Targets
from .order import DataOrder
from .plan_view import NeuronOrder, PlanView, neuron_order
from .recipe import DistillRecipe
from .replacements import Replacements

__all__ = ["PlanOfStep", "Trainer", "only_layers_train"]

PlanOfStep = Callable[[int], Plan]
"""The plan of a training step (from 0); a pure function, so that runs can be resumed."""

_BALANCE_BATCHES = 4
_LARGEST_WEIGHT = 100.0
"""Bound of a balanced weight: a student that begins as its teacher has no teacher loss at all."""
_PLANS_IN_IDENTITY = 16


@contextmanager
def only_layers_train(view: ResidualDecoder) -> Iterator[dict[str, nn.Parameter]]:
    """Let gradients reach the decoder layers alone; yield their parameters by name.

    Raises:
        ConfigError: if the layers are frozen, as a teacher's are, or there are none.
    """
    model: Any = getattr(view, "model", None)
    parameters = dict(model.named_parameters()) if model is not None else {}
    named = {n: p for n, p in parameters.items() if ".layers." in n and p.requires_grad}
    if not named:
        raise ConfigError(
            "Distillation: the decoder has no layer that may be trained. Give the view of a "
            "student that build_student made (for an elastic teacher: of the full plan); a "
            "teacher's own decoder is frozen, and an empty plan leaves nothing to train"
        )
    others = [p for n, p in parameters.items() if n not in named and p.requires_grad]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield named
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
        for parameter in named.values():
            parameter.grad = None


class Trainer:
    """Losses, optimiser and identity of one distillation.

    Args:
        view: residual view of the decoder that trains.
        features: cached states and teacher logits.
        recipe: how to train.
        seed: seed of the data order.
        plan_of_step: what runs in each step; None runs everything that is there.
        named: the parameters that train.
        ranking: neurons by which widths of those plans are cut, for feed-forwards that it names;
            the others are ranked by the weights at the start.
        replacements: numbers for sub-layers that those plans replace by `mean` or `linear`; they
            do not train.
    """

    def __init__(
        self,
        view: ResidualDecoder,
        features: Features,
        recipe: DistillRecipe,
        seed: int,
        plan_of_step: PlanOfStep | None,
        named: dict[str, nn.Parameter],
        ranking: NeuronOrder | None = None,
        replacements: Replacements | None = None,
    ) -> None:
        self.named = named
        self._view = view
        self._features = features
        self._recipe = recipe
        self._plan_of_step = plan_of_step
        rows = features.examples
        groups = [row.page for row in rows] if recipe.pages_together else range(len(rows))
        self._order = DataOrder([len(row.ids) for row in rows], groups, recipe.batch, seed)
        self._device = next(iter(named.values())).device
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in named.values() if p.ndim > 1],
                    "weight_decay": recipe.weight_decay,
                },
                {"params": [p for p in named.values() if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            fused=True,
        )
        self._ranking: NeuronOrder = {}
        self._replacements = replacements
        elastic: list[object] = []
        if plan_of_step is not None:
            # fixed here: ranks of weights that move would cut other neurons at every step
            self._ranking = {**neuron_order(view), **(ranking or {})}
            elastic = [
                str(plan_of_step(step)) for step in range(min(recipe.steps, _PLANS_IN_IDENTITY))
            ]
            elastic += [[str(s), *order] for s, order in sorted((ranking or {}).items())]
            elastic += [replacements.fingerprint] if replacements else []
        self.identity = content_hash(
            [asdict(recipe), features.key, seed, elastic, _weights_hash(named)]
        )

    def balanced_weight(self) -> float:
        """Return the recipe's `kd_weight` as a number, measured where it is `balanced`."""
        recipe = self._recipe
        if recipe.kd_weight != "balanced":
            return float(recipe.kd_weight)
        if not recipe.label_losses or not recipe.teacher_losses:
            return 1.0
        labels = teacher = 0.0
        with torch.no_grad():
            for step in range(min(_BALANCE_BATCHES, recipe.steps)):
                losses = self.losses(step)
                labels += sum(float(losses[name]) for name in recipe.label_losses)
                teacher += sum(float(losses[name]) for name in recipe.teacher_losses)
        if not math.isfinite(labels + teacher):
            raise TrainingError("Distillation: the loss is not finite before the first step")
        return min(labels / max(teacher, 1e-12), _LARGEST_WEIGHT)

    def step(self, step: int, kd_weight: float) -> dict[str, float]:
        """Take one optimiser step.

        Returns:
            Each loss by name, and their weighted sum as "loss".

        Raises:
            TrainingError: if loss or gradient are not finite; nothing is updated then.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._recipe.rate(step)
        losses = self.losses(step)
        weights = {name: kd_weight for name in self._recipe.teacher_losses}
        total = torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
        report = {name: float(loss.detach()) for name, loss in losses.items()}
        report["loss"] = float(total.detach())
        if not math.isfinite(report["loss"]):
            raise TrainingError(f"Distillation: {_stopped(step, report)}")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(list(self.named.values()), self._recipe.clip)
        if not math.isfinite(float(norm)):
            raise TrainingError(
                f"Distillation: the gradient's norm is {float(norm)} at step {step + 1} although "
                f"the loss is {report['loss']:.4g}; lower learning_rate or clip, or use float32"
            )
        self.optimizer.step()
        return report

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return each loss of the recipe on the batch of a step, under its plan."""
        read = self._features.read(self._order.indices(step))
        device, view = self._device, self._running(step)
        labels = read.batch.labels.to(device)
        answers = labels != IGNORED
        mixed = self._recipe.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            memory = view.memory(read.states.to(device), read.rows.to(device))
            stream = view.embed(read.batch.ids.to(device))
            stream = continue_from(view, stream, memory)
            logits = view.readout(stream[answers])
        teacher = read.teacher.to(device)
        targets = Targets(labels[answers], teacher, self._recipe.temperature)
        return {name: LOSSES[name](logits, targets) for name in self._recipe.losses}

    def _running(self, step: int) -> ResidualDecoder:
        """Return the view that runs in a step."""
        if self._plan_of_step is None:
            return self._view
        plan = self._plan_of_step(step)
        if not plan.kept:
            raise ConfigError(f"Distillation: plan_of_step({step}) keeps no sub-layer")
        return PlanView(self._view, plan, ranking=self._ranking, replacements=self._replacements)


def _stopped(step: int, report: dict[str, float]) -> str:
    """Say at which step which loss stopped being a number."""
    values = ", ".join(f"{name} {value:.4g}" for name, value in report.items() if name != "loss")
    return (
        f"the loss is {report['loss']} at step {step + 1} ({values}); lower learning_rate, raise "
        "warmup, or use float32"
    )


def _weights_hash(named: dict[str, nn.Parameter]) -> str:
    """Return the SHA-256 of names and bytes of parameters."""
    digest = hashlib.sha256()
    for name, parameter in named.items():
        digest.update(name.encode())
        raw = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
