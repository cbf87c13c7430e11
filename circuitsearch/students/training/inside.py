"""Losses that compare what happens inside student and teacher: streams and attention weights.

Logits of the teacher are cached, its insides are not: where a loss reads them, the teacher's
decoder runs on the same cached encoder states in the same step, without encoder and gradient.

Attention is compared head by head, over the self- or cross-attentions that both decoders have and
the heads that the student keeps: a mean over heads and answer tokens in each, and the mean of these
over the attentions. A student's head is compared with the teacher's head that it was sliced from,
which its plan names. An attention that the plan replaced is not compared, unless it is `alone`:
that one still looks with its own heads. Where nothing is left to compare, the loss is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError, raise_together
from circuitsearch.core.plan import WHOLE, Plan
from circuitsearch.students.losses import LOSSES, Reads
from circuitsearch.students.modeling import CircuitMBartConfig
from circuitsearch.students.student import plan_of
from circuitsearch.students.training.trace import Trace, parse_place
from circuitsearch.teacher.decoders import Memory, ResidualDecoder

__all__ = ["InsideLosses", "kept_heads"]

_KIND = {Reads.SELF: Kind.SELF, Reads.CROSS: Kind.CROSS}


def kept_heads(view: ResidualDecoder, sublayer: SubLayer) -> tuple[int, ...]:
    """Return the teacher's head that each head of an attention is; () where it has none of its own.

    Args:
        view: a student's decoder, a `PlanView`, or a whole decoder.
        sublayer: a self- or cross-attention.
    """
    if sublayer not in view.sublayers:
        return ()
    keep = (_plan_of(view) or Plan(((sublayer, WHOLE),))).keep(sublayer)
    if keep is None or keep.replacement not in (None, "alone"):
        return ()
    return tuple(range(view.shape.heads)) if keep.heads is None else keep.heads


def _plan_of(view: ResidualDecoder) -> Plan | None:
    """Return the plan that a view runs; None for a whole decoder."""
    plan: Plan | None = getattr(view, "plan", None)
    config: Any = getattr(getattr(view, "model", None), "config", None)
    if plan is None and isinstance(config, CircuitMBartConfig) and config.plan_text is not None:
        return plan_of(getattr(view, "model", None))
    return plan


class InsideLosses:
    """The losses of a recipe that need the teacher's decoder to run.

    Args:
        names: of losses; those that read labels or logits alone are left out.
        hidden_map: pairs of (student's place, teacher's place) where streams are compared.
        view: the decoder that trains.
        teacher: the teacher's decoder; None where no loss needs it.

    Attributes:
        names: the losses, in the recipe's order.

    Raises:
        ConfigError: a loss needs the teacher's decoder and it is not given, is the one that trains,
            or has other sizes; a place does not exist.
    """

    def __init__(
        self,
        names: Sequence[str],
        hidden_map: Sequence[tuple[str, str]],
        view: ResidualDecoder,
        teacher: ResidualDecoder | None,
    ) -> None:
        self.names = tuple(name for name in names if LOSSES[name].reads.inside)
        self._map = [(parse_place(ours), parse_place(theirs)) for ours, theirs in hidden_map]
        if self.names:
            problems = _problems(self.names, view, teacher)
            if any(LOSSES[name].reads is Reads.STREAM for name in self.names):
                problems += self._missing_places(view)
            raise_together(problems, ConfigError, "Distillation")
        self._teacher = teacher if self.names else None

    def _missing_places(self, view: ResidualDecoder) -> list[str]:
        layers = view.shape.layers
        return [
            f"hidden_map: got {place}, the decoder has layers 0 to {layers - 1}; choose one of them"
            for pair in self._map
            for place in pair
            if place is not None and place.layer >= layers
        ]

    def losses(
        self, student: Trace, ids: Tensor, states: Tensor, rows: Tensor, answers: Tensor
    ) -> dict[str, Tensor]:
        """Run the teacher's decoder once and return each loss.

        Args:
            student: the student's pass.
            ids: [B, T] the tokens.
            states: [P, N, E] encoder states.
            rows: [B] page of each row.
            answers: [B, T] whether a position predicts an answer token.
        """
        if self._teacher is None:
            return {}
        with torch.no_grad():
            memory: Memory = self._teacher.memory(states, rows)
            teacher = Trace.of(self._teacher, self._teacher.embed(ids), memory)
        found = {}
        for name in self.names:
            reads = LOSSES[name].reads
            if reads is Reads.STREAM:
                each = [
                    LOSSES[name](student.behind(ours)[answers], teacher.behind(theirs)[answers])
                    for ours, theirs in self._map
                ]
            else:
                each = [
                    LOSSES[name](
                        student.log_weights(one, answers), _log_weights(teacher, one, answers, kept)
                    )
                    for one, kept in _shared(student.view, self._teacher, _KIND[reads])
                ]
            found[name] = torch.stack(each).mean() if each else student.end.new_zeros(()).float()
        return found


def _shared(
    student: ResidualDecoder, teacher: ResidualDecoder, kind: Kind
) -> list[tuple[SubLayer, tuple[int, ...]]]:
    """Return the attentions that both have, with the heads that the student keeps."""
    both = [s for s in student.sublayers if s.kind is kind and kept_heads(teacher, s)]
    return [(one, kept) for one in both if (kept := kept_heads(student, one))]


@torch.no_grad()
def _log_weights(
    teacher: Trace, sublayer: SubLayer, answers: Tensor, kept: tuple[int, ...]
) -> Tensor:
    """Return the teacher's log-weights [n, H, K] of the heads that a student keeps."""
    weights = teacher.log_weights(sublayer, answers)
    return weights.index_select(1, torch.tensor(kept, device=weights.device))


def _problems(
    names: Sequence[str], view: ResidualDecoder, teacher: ResidualDecoder | None
) -> list[str]:
    """Say why these losses cannot read a teacher's decoder."""
    listed = ", ".join(names)
    if teacher is None:
        return [
            f"{listed}: reads the inside of the teacher's decoder, which is not given; pass "
            "teacher=, or choose losses that read labels and logits alone"
        ]
    sizes = [(s.layers, s.d_model, s.heads) for s in (view.shape, teacher.shape)]
    if sizes[0] != sizes[1]:
        return [
            f"{listed}: got a teacher of (layers, width, heads) {sizes[1]}, the student is one of "
            f"{sizes[0]}; pass the decoder that the student was built from"
        ]
    if getattr(teacher, "model", None) is getattr(view, "model", ()):
        return [f"{listed}: got the decoder that trains as its own teacher; pass the teacher's"]
    return []
