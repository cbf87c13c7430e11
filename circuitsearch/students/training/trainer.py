"""One training step on cached features: the part of distillation that touches gradients."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from circuitsearch.core.errors import ConfigError, TrainingError
from circuitsearch.core.files import content_hash
from circuitsearch.core.plan import Plan
from circuitsearch.processes import ALONE, Processes
from circuitsearch.students.features.reader import Features
from circuitsearch.students.losses import LOSSES, Targets
from circuitsearch.students.plan_view import NeuronOrder, PlanView, neuron_order
from circuitsearch.students.replacements import Replacements
from circuitsearch.students.training.inside import InsideLosses
from circuitsearch.students.training.order import DataOrder
from circuitsearch.students.training.recipe import DistillRecipe
from circuitsearch.students.training.trace import Trace
from circuitsearch.teacher.decoders import ResidualDecoder, continue_from
from circuitsearch.teacher.documents.collate import IGNORED

__all__ = ["PlanOfStep", "Trainer", "only_layers_train", "trainable", "weights_digest"]

PlanOfStep = Callable[[int], Plan]
"""The plan of a training step (from 0); a pure function, so that runs can be resumed."""

_BALANCE_BATCHES = 4
_LARGEST_WEIGHT = 100.0
"""Bound of a balanced weight: a student that begins as its teacher has no teacher loss at all."""
_PLANS_IN_IDENTITY = 16


def trainable(view: ResidualDecoder) -> dict[str, nn.Parameter]:
    """Return by name what the trainer trains: the parameters of the decoder layers."""
    model: Any = getattr(view, "model", None)
    parameters = () if model is None else model.named_parameters()
    return {name: one for name, one in parameters if ".layers." in name}


@contextmanager
def only_layers_train(view: ResidualDecoder) -> Iterator[dict[str, nn.Parameter]]:
    """Let gradients reach the decoder layers alone; yield their parameters by name.

    Raises:
        ConfigError: if the layers are frozen, as a teacher's are, or there are none.
    """
    model: Any = getattr(view, "model", None)
    named = {name: one for name, one in trainable(view).items() if one.requires_grad}
    if not named:
        raise ConfigError(
            "Distillation: the decoder has no layer that may be trained. Give the view of a "
            "student that build_student made (for an elastic teacher: of the full plan); a "
            "teacher's own decoder is frozen, and an empty plan leaves nothing to train"
        )
    others = [p for n, p in model.named_parameters() if n not in named and p.requires_grad]
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
        neurons: neurons by which widths of those plans are cut, for feed-forwards that it names;
            the others are ranked by the weights at the start.
        replacements: numbers for sub-layers that those plans replace by `mean` or `linear`; they
            do not train.
        teacher: the teacher's decoder, for losses that read its streams or attention.
        processes: those that train together. Each computes a part of every batch, losses and
            gradients are added up, and all take the same step.
    """

    def __init__(
        self,
        view: ResidualDecoder,
        features: Features,
        recipe: DistillRecipe,
        seed: int,
        plan_of_step: PlanOfStep | None,
        named: dict[str, nn.Parameter],
        neurons: NeuronOrder | None = None,
        replacements: Replacements | None = None,
        teacher: ResidualDecoder | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.named = named
        self._processes = processes
        self._inside = InsideLosses(recipe.names, recipe.hidden_map, view, teacher)
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
        self._neurons: NeuronOrder = {}
        self._replacements = replacements
        elastic: list[object] = []
        if plan_of_step is not None:
            # fixed here: ranks of weights that move would cut other neurons at every step
            self._neurons = {**neuron_order(view), **(neurons or {})}
            elastic = [
                str(plan_of_step(step)) for step in range(min(recipe.steps, _PLANS_IN_IDENTITY))
            ]
            elastic += [[str(s), *order] for s, order in sorted((neurons or {}).items())]
            elastic += [replacements.fingerprint] if replacements else []
        parts = [recipe.to_json(), features.key, seed, elastic, weights_digest(named)]
        if self._inside.names:  # cached logits are in the features' key, the rest is not
            model: Any = getattr(teacher, "model", None)
            parts.append(weights_digest(dict(model.named_parameters())))
        self.identity = content_hash(parts)

    def weights(self) -> dict[str, float]:
        """Return the weight of each loss as a number, measured where it is `balanced`."""
        recipe = self._recipe
        fixed = {name: float(w) for name, w in recipe.weights.items() if w != "balanced"}
        balanced = [name for name in recipe.names if name not in fixed and name != recipe.reference]
        if not balanced:
            return {name: fixed.get(name, 1.0) for name in recipe.names}
        names = (recipe.reference, *balanced)
        sums = _added(self._processes.gather(lambda: self._first_losses(names)))
        if not math.isfinite(sum(sums.values())):
            raise TrainingError("Distillation: the loss is not finite before the first step")
        aim = fixed.get(recipe.reference, 1.0) * sums[recipe.reference]
        for name in balanced:
            fixed[name] = min(aim / max(sums[name], 1e-12), _LARGEST_WEIGHT)
        return {name: fixed.get(name, 1.0) for name in recipe.names}

    @torch.no_grad()
    def _first_losses(self, names: Sequence[str]) -> dict[str, float]:
        """Return the sums of losses over the first batches, of this process's parts."""
        sums = dict.fromkeys(names, 0.0)
        for step in range(min(_BALANCE_BATCHES, self._recipe.steps)):
            for share, losses in self._losses(step):
                for name in sums:
                    sums[name] += share * float(losses[name])
        return sums

    def step(self, step: int, weights: Mapping[str, float]) -> dict[str, float]:
        """Take one optimiser step.

        Args:
            step: its number, from 0.
            weights: weight of each loss.

        Returns:
            Each loss by name, and their weighted sum as "loss".

        Raises:
            TrainingError: if loss or gradient are not finite, or nothing that trains enters the
                loss; nothing is updated then.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._recipe.rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        met = self._processes.gather(lambda: self._backward(step, weights))
        report = _added([one for one, _ in met])
        self._add_gradients([reached for _, reached in met])
        norm = nn.utils.clip_grad_norm_(list(self.named.values()), self._recipe.clip)
        if not math.isfinite(float(norm)):
            raise TrainingError(
                f"Distillation: the gradient's norm is {float(norm)} at step {step + 1} although "
                f"the loss is {report['loss']:.4g}; lower learning_rate or clip, or use float32"
            )
        self.optimizer.step()
        return report

    def _backward(
        self, step: int, weights: Mapping[str, float]
    ) -> tuple[dict[str, float], list[bool]]:
        """Leave the gradient of this process's part of a batch.

        Returns:
            The part's losses, and which parameters have a gradient.
        """
        report = dict.fromkeys((*self._recipe.names, "loss"), 0.0)
        for share, losses in self._losses(step):
            total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
            for name, loss in (*losses.items(), ("loss", total)):
                report[name] += share * float(loss.detach())
            if not math.isfinite(report["loss"]):
                raise TrainingError(f"Distillation: {_stopped(step, report)}")
            if not total.requires_grad:
                raise TrainingError(
                    f"Distillation: at step {step + 1} no loss depends on what trains; choose "
                    "places of hidden_map behind a sub-layer of the plan, or add a loss of logits"
                )
            (share * total).backward()  # type: ignore[no-untyped-call]
        return report, [parameter.grad is not None for parameter in self.named.values()]

    def _add_gradients(self, reached: Sequence[Sequence[bool]]) -> None:
        """Add up the gradients of all processes; one without questions has none, which counts 0.

        Args:
            reached: by process, which parameters have a gradient. One that no process has stays
                without: the optimiser passes over it.
        """
        for parameter, here in zip(self.named.values(), zip(*reached, strict=True), strict=True):
            if any(here) and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._processes.add_up([p.grad for p in self.named.values() if p.grad is not None])

    def _losses(self, step: int) -> Iterator[tuple[float, dict[str, Tensor]]]:
        """Yield (share of the answer tokens, each loss) of the parts of a step's batch.

        Losses are means over answer tokens, so with these shares they add up to the whole batch's,
        over parts and processes.
        """
        indices = self._order.indices(step)
        whole = self._answer_tokens(indices)
        mine = self._processes.part(indices)
        count = min(self._recipe.accumulate, len(mine))
        cuts = [len(mine) * part // count for part in range(count + 1)] if count else []
        for first, last in itertools.pairwise(cuts):
            share = self._answer_tokens(mine[first:last]) / whole
            # a plan's view keeps the slices that it made, and a backward pass frees their graph
            yield share, self._compared(self._running(step), mine[first:last])

    def _answer_tokens(self, indices: Sequence[int]) -> int:
        rows = self._features.examples
        return sum(len(rows[i].ids) - rows[i].prompt for i in indices)

    def _compared(self, view: ResidualDecoder, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return each loss of the recipe on some examples."""
        read = self._features.read(indices)
        device = self._device
        labels = read.batch.labels.to(device)
        answers = labels != IGNORED
        mixed = self._recipe.precision == "bfloat16"
        inside: dict[str, Tensor] = {}
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            states, rows = read.states.to(device), read.rows.to(device)
            memory = view.memory(states, rows)
            ids = read.batch.ids.to(device)
            stream = view.embed(ids)
            if self._inside.names:
                trace = Trace.of(view, stream, memory)
                inside = self._inside.losses(trace, ids, states, rows, answers)
                stream = trace.end
            else:
                stream = continue_from(view, stream, memory)
            logits = view.readout(stream[answers])
        targets = Targets(labels[answers], read.teacher.to(device), self._recipe.temperature)
        return {
            name: inside[name] if name in inside else LOSSES[name](logits, targets)
            for name in self._recipe.names
        }

    def _running(self, step: int) -> ResidualDecoder:
        """Return the view that runs in a step."""
        if self._plan_of_step is None:
            return self._view
        plan = self._plan_of_step(step)
        if not plan.kept:
            raise ConfigError(f"Distillation: plan_of_step({step}) keeps no sub-layer")
        return PlanView(self._view, plan, neurons=self._neurons, replacements=self._replacements)


def _added(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the sum of each loss over processes."""
    return {name: math.fsum(part[name] for part in parts) for name in parts[0]}


def _stopped(step: int, report: dict[str, float]) -> str:
    """Say at which step which loss stopped being a number."""
    values = ", ".join(f"{name} {value:.4g}" for name, value in report.items() if name != "loss")
    return (
        f"the loss is {report['loss']} at step {step + 1} ({values}); lower learning_rate, raise "
        "warmup, or use float32"
    )


def weights_digest(named: Mapping[str, nn.Parameter]) -> str:
    """Return the SHA-256 of names and bytes of parameters, in their order."""
    digest = hashlib.sha256()
    for name, parameter in named.items():
        digest.update(name.encode())
        raw = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
