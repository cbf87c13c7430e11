"""Token reprojection against the Hugging Face model with its writes replaced."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import ConfigError
from circuitsearch.discovery.lens import embeddings
from circuitsearch.discovery.lens.case import case_rates
from circuitsearch.discovery.lens.records import Reading
from circuitsearch.discovery.lens.reprojection import (
    ReprojectionOptions,
    nearest_tokens,
    reprojection_effects,
)
from circuitsearch.discovery.lens.stream import StreamOptions, stream_lens
from circuitsearch.discovery.patching.components import sample_metric
from circuitsearch.teacher.decoders import Embedding, MBartResidualDecoder, residual_decoder
from circuitsearch.teacher.documents.collate import Example
from tests.discovery.lens_literal import PLACES, inputs_of, planted, streams
from tests.discovery.literal import Exact, replaced
from tests.tiny import tiny_tokenizer

# The lens stores float32 of values that agree in float64.
CLOSE = {"rtol": 2e-7, "atol": 2e-6}


class _Shown(MBartResidualDecoder):
    """A view that shows the pieces of its embedding."""

    @property
    def embedding(self) -> Embedding:
        stack = self.model.model.decoder
        return Embedding(stack.embed_tokens.weight, 32**0.5, stack.embed_positions.weight[2:])


class _Hidden:
    """A view that does not."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def __getattr__(self, name: str) -> Any:
        if name == "embedding":
            raise AttributeError(name)
        return getattr(self._decoder, name)


def form(model: Any, token: int | Tensor, position: int, name: str) -> Tensor:
    """One token's embedding [d], or those of several [n, d], written out."""
    stack = model.model.decoder
    row = stack.embed_tokens.weight[token]
    if name == "raw":
        return row
    row = row * 32**0.5
    if name == "scaled":
        return row
    row = row + stack.embed_positions.weight[position + 2]
    return row if name == "positioned" else stack.layernorm_embedding(row)


def compared(model: Any, x: Tensor, position: int, options: ReprojectionOptions) -> Tensor:
    """Similarity of x [d] with every token [V], token by token."""
    if options.norm == "final":
        x = model.model.decoder.layer_norm(x)
    if options.against == "unembedding":
        return model.lm_head(x)
    found = []
    for row in form(model, torch.arange(model.config.vocab_size), position, options.against):
        value = x @ row
        if options.similarity == "cosine":
            length = x.norm() * row.norm()
            value = value / length if length > 0 else value * 0
        elif options.similarity == "distance":
            value = -((x - row) ** 2).sum()
        found.append(value)
    return torch.stack(found)


OPTIONS = [
    ReprojectionOptions(),
    ReprojectionOptions(norm="none"),
    ReprojectionOptions(against="full", norm="none"),
    ReprojectionOptions(against="full", norm="none", similarity="cosine"),
    ReprojectionOptions(against="full", similarity="distance"),
    ReprojectionOptions(against="positioned", norm="none", similarity="cosine"),
    ReprojectionOptions(against="scaled", norm="none", similarity="distance"),
    ReprojectionOptions(against="raw", norm="none", similarity="cosine"),
    ReprojectionOptions(against="raw", norm="final"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.against}-{o.similarity}-{o.norm}")
def test_nearest_tokens_equal_loops(
    exact: Exact, options: ReprojectionOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    # embeddings of some forty tokens at a time
    monkeypatch.setattr(embeddings, "_MOST_NUMBERS", 40 * 32 * 20)
    places = ["embedding", "M0", "C3"]
    reading = nearest_tokens(_Shown(exact.model), exact.sample, options, places=places, top=2)
    assert reading.places == ("embedding", "M0", "C3")
    k = 0
    for example in exact.sample.rows:
        found, _, _ = streams(exact.model, exact.sample, example)
        for position in range(example.prompt):
            assert reading.inputs[k] == example.ids[position]
            if position % 6 == 0:
                for place, name in enumerate(places):
                    with torch.no_grad():
                        similar = compared(exact.model, found[name][position], position, options)
                    assert reading.top[place, k].tolist() == similar.topk(2).indices.tolist()
                    own = similar[example.ids[position]]
                    assert reading.ranks[place, k, 0] == int((similar > own).sum()) + 1
                    np.testing.assert_allclose(reading.logits[place, k, 0], own, **CLOSE)
            k += 1
    assert k == len(reading.positions)


def test_the_embedding_finds_itself(exact: Exact) -> None:
    options = ReprojectionOptions(against="full", norm="none", similarity="distance")
    curve = nearest_tokens(exact.decoder, exact.sample, options, positions="all").curve()
    assert curve["embedding"].top1 == 1
    assert curve["M3"].top1 < 1


def test_unembedding_is_the_stream_lens(exact: Exact) -> None:
    nearest = nearest_tokens(exact.decoder, exact.sample, ReprojectionOptions(norm="none"))
    lens = stream_lens(
        exact.decoder,
        exact.sample,
        positions="prompt",
        targets="input",
        options=StreamOptions(norm="none"),
        top=1,
    )
    np.testing.assert_array_equal(nearest.top, lens.top)
    np.testing.assert_array_equal(nearest.ranks, lens.ranks)


def literal_effect(
    exact: Exact, example: Example, place: str, options: ReprojectionOptions
) -> float:
    """Loss of one example with the stream behind `place` collapsed, less the clean loss.

    The Hugging Face model cannot have its stream set, but the last sub-layer's write can be made
    such that the sum is what it should be.
    """
    found, writes, logits = streams(exact.model, exact.sample, example)
    x, length = found[place].clone(), len(example.ids) - 1
    last = length if options.positions == "all" else example.prompt
    for position in range(last):
        token = int(compared(exact.model, found[place][position], position, options).argmax())
        x[position] = form(exact.model, token, position, options.into)
    forced = writes[place] + x - found[place]
    with ExitStack() as stack:
        if place == "embedding":
            norm = exact.model.model.decoder.layernorm_embedding
            stack.callback(norm.register_forward_hook(lambda *_: forced[None]).remove)
        else:
            stack.enter_context(
                replaced(exact.model, SubLayer.parse(place), lambda _: forced[None])
            )
        patched = exact.model(**inputs_of(exact.sample, example), use_cache=False).logits[0]
    answers = range(example.prompt - 1, length)
    losses = [
        [-float(l[p].log_softmax(-1)[example.ids[p + 1]]) for p in answers]
        for l in (patched, logits)  # noqa: E741
    ]
    return float(np.mean(losses[0]) - np.mean(losses[1]))


@pytest.mark.parametrize(
    "options",
    [
        ReprojectionOptions(),
        ReprojectionOptions(at="output", positions="prompt", norm="none"),
        ReprojectionOptions(into="scaled", against="full", norm="none", similarity="distance"),
        ReprojectionOptions(into="raw", positions="prompt"),
        ReprojectionOptions(into="positioned", at="output"),
    ],
    ids=lambda o: f"{o.against}-{o.into}-{o.at}-{o.positions}",
)
def test_effects_equal_replaced_writes(exact: Exact, options: ReprojectionOptions) -> None:
    names = ["S0", "M0", "S2", "M3"]
    found = reprojection_effects(_Shown(exact.model), exact.sample, options, sublayers=names)
    assert list(found) == names
    for name in names:
        place = name if options.at == "output" else PLACES[PLACES.index(name) - 1]
        with torch.no_grad():
            expected = [literal_effect(exact, e, place, options) for e in exact.sample.rows]
        # float64 sums in another order
        np.testing.assert_allclose(found[name], expected, rtol=1e-8, atol=1e-9, err_msg=name)


def test_a_layer_that_maps_tokens_to_tokens_costs_nothing(exact: Exact) -> None:
    """With S0 and C0 silent, the stream in front of M0 is the embedding itself."""
    model = planted(exact)
    layer = model.model.decoder.layers[0]
    with torch.no_grad():
        for attention in (layer.self_attn, layer.encoder_attn):
            attention.out_proj.weight.zero_()
            attention.out_proj.bias.zero_()
    options = ReprojectionOptions(against="full", norm="none", similarity="distance")
    found = reprojection_effects(residual_decoder(model), exact.sample, options)
    assert list(found) == list(PLACES[1:])
    np.testing.assert_array_equal(found["M0"], 0)
    assert np.abs(found["S1"]).max() > 0


def test_other_metrics(exact: Exact) -> None:
    options = ReprojectionOptions(at="output")
    found = reprojection_effects(
        exact.decoder, exact.sample, options, sublayers=["M3"], metric="error"
    )
    clean = sample_metric(exact.decoder, exact.sample, "error")
    collapsed = found["M3"] + clean
    assert ((collapsed >= 0) & (collapsed <= 1)).all()
    loss = reprojection_effects(exact.decoder, exact.sample, options, sublayers=["M3"])
    assert not np.allclose(loss["M3"], found["M3"])


def test_case_rates() -> None:
    tokenizer = tiny_tokenizer()
    inputs = [tokenizer.convert_tokens_to_ids(c) for c in ("A", "B", "c", "7", "<s_answer>")]
    before = inputs
    after = [tokenizer.convert_tokens_to_ids(c) for c in ("a", "B", "c", "x", "<s_answer>")]
    top = np.array([before, after])[:, :, None]
    blank = np.zeros((2, 5, 0))
    reading = Reading(
        sample="s",
        options={},
        places=("C0", "M0"),
        examples=np.arange(5),
        positions=np.arange(5),
        inputs=np.array(inputs),
        top=top,
        top_logits=blank,
        top_probabilities=blank,
        wanted=blank[0],
        ranks=blank,
        logits=blank,
        log_probabilities=blank,
        entropies=blank[:, :, 0:],
    )
    rates = case_rates(reading, tokenizer)
    assert rates["C0"] == {"lowered": 0.0, "kept": 1.0, "control": 1.0}
    assert rates["M0"] == {"lowered": 0.5, "kept": 0.5, "control": pytest.approx(2 / 3)}


def test_bad_arguments(exact: Exact) -> None:
    with pytest.raises(ConfigError, match="2 problems"):
        ReprojectionOptions(similarity="cosine", into="ful")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="allowed are S0, C0"):
        reprojection_effects(exact.decoder, exact.sample, sublayers=["S9"])
    with pytest.raises(ConfigError, match="integers from 1"):
        nearest_tokens(exact.decoder, exact.sample, top=0)
    hidden: Any = _Hidden(exact.decoder)
    options = ReprojectionOptions(against="raw", norm="none")
    with pytest.raises(ConfigError, match="does not show the pieces"):
        nearest_tokens(hidden, exact.sample, options)
    # without the pieces, what lies in the stream is still there
    assert nearest_tokens(hidden, exact.sample, places=["S0"]).places == ("S0",)
