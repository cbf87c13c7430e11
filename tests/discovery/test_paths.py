"""The path table against brute force: every path written out with the Hugging Face modules."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.discovery.paths.keyword import SUBLAYER_SETS, keyword_paths, keyword_rows
from circuitsearch.discovery.paths.neurons import neuron_map
from circuitsearch.discovery.paths.table import PathTable
from circuitsearch.discovery.paths.transforms import PathOptions
from circuitsearch.discovery.sample import Sample
from circuitsearch.teacher.decoders import Affine, Norm, Parts
from circuitsearch.teacher.loading import Teacher
from tests.discovery.literal import Exact

# float64 on both sides, the same operations in another order
CLOSE = {"rtol": 1e-8, "atol": 1e-9}
PAPER = SUBLAYER_SETS["paper"]


def keyword(example: Any) -> tuple[int, ...]:
    """Two tokens of the question, fewer calls than all of them."""
    return (4, example.prompt - 4)


class Literal:
    """One example, one keyword token: paths written out, module by module, in float64."""

    def __init__(self, exact: Exact, row: int, position: int, options: PathOptions) -> None:
        self.options, self.position = options, position
        self.model, self.stack = exact.model, exact.model.model.decoder
        example = exact.sample.rows[row]
        self.ids = torch.tensor([example.ids[:-1]])
        self.states = exact.sample.states[example.page][None]
        self.answer, self.label = example.prompt - 1, example.ids[example.prompt]
        self.reads = self._reads()

    def _reads(self) -> dict[str, Tensor]:
        """What each sub-layer reads [T, d], taken at its LayerNorm."""
        found: dict[str, Tensor] = {}
        hooks = []
        for i, layer in enumerate(self.stack.layers):
            for kind, norm in (
                ("S", layer.self_attn_layer_norm),
                ("C", layer.encoder_attn_layer_norm),
                ("M", layer.final_layer_norm),
            ):

                def keep(_m: Any, inputs: Any, name: str = f"{kind}{i}") -> None:
                    found[name] = inputs[0][0]

                hooks.append(norm.register_forward_pre_hook(keep))
        with torch.no_grad():
            self.clean_logits = self.model(
                input_ids=self.ids, encoder_hidden_states=self.states, use_cache=False
            ).logits[0]
        for hook in hooks:
            hook.remove()
        return found

    def norm(self, module: Any, x: Tensor, clean: Tensor) -> Tensor:
        if self.options.norm == "none":
            return x
        by = clean if self.options.norm == "frozen" else x
        scale = (((by - by.mean()) ** 2).mean() + 1e-5).sqrt()
        return (x - x.mean()) / scale * module.weight + module.bias

    def through(self, name: str, x: Tensor) -> Tensor:
        if self.options.biases:
            return self._through(name, x)
        return self._through(name, x) - self._through(name, torch.zeros_like(x))

    def _through(self, name: str, x: Tensor) -> Tensor:
        layer = self.stack.layers[int(name[1])]
        place = self.position if self.options.scale_at == "keyword" else self.answer
        clean = self.reads[name][place]
        if name[0] == "S":
            value = layer.self_attn.v_proj(self.norm(layer.self_attn_layer_norm, x, clean))
            if self.options.attention == "measured":
                value = value * self.weights(layer, name).repeat_interleave(8)
            return layer.self_attn.out_proj(value)
        before = layer.fc1(self.norm(layer.final_layer_norm, x, clean))
        gelu = torch.nn.functional.gelu
        if self.options.feed == "activation":
            before = gelu(before)
        if self.options.feed == "gate":
            at = layer.fc1(self.norm(layer.final_layer_norm, clean, clean))
            before = before * gelu(at) / at
        if self.options.feed == "jacobian":
            at = layer.fc1(self.norm(layer.final_layer_norm, clean, clean))
            normal = torch.distributions.Normal(0.0, 1.0)
            slope = normal.cdf(at) + at * normal.log_prob(at).exp()
            before = gelu(at) + slope * (before - at)
        return layer.fc2(before)

    def weights(self, layer: Any, name: str) -> Tensor:
        """Attention of `<s_answer>` to the keyword, per head [H]."""
        read = layer.self_attn_layer_norm(self.reads[name])
        query = layer.self_attn.q_proj(read)[self.answer].view(4, 8)
        keys = layer.self_attn.k_proj(read)[: self.answer + 1].view(-1, 4, 8)
        scores = torch.stack([keys[:, h] @ query[h] for h in range(4)]) / 8**0.5
        return scores.softmax(-1)[:, self.position]

    def vector(self, names: tuple[str, ...], first: str) -> Tensor:
        x = self.reads["S0"] if self.options.start == "embedding" else self.reads[first]
        x = x[self.position]
        for name in names:
            x = self.through(name, x)
        return x

    def query(self, x: Tensor, biases: bool) -> Tensor:
        layer = self.stack.layers[3]
        clean = self.reads["C3"][self.answer]

        def read(x: Tensor) -> Tensor:
            return layer.encoder_attn.q_proj(self.norm(layer.encoder_attn_layer_norm, x, clean))

        return (read(x) if biases else read(x) - read(torch.zeros_like(x))).view(4, 8)

    def cosines(self, x: Tensor) -> Tensor:
        biases = self.options.biases
        path, clean = self.query(x, biases), self.query(self.reads["C3"][self.answer], biases)
        return (path * clean).sum(-1) / path.norm(dim=-1) / clean.norm(dim=-1)

    def overlap(self, x: Tensor) -> tuple[float, float]:
        """Agreement of the attention maps, and of their most attended tokens."""
        keys = self.stack.layers[3].encoder_attn.k_proj(self.states[0]).view(-1, 4, 8)
        agreements, shared = [], []
        for h in range(4):
            p, q = (
                (keys[:, h] @ self.query(v, True)[h] / 8**0.5).softmax(-1)
                for v in (self.reads["C3"][self.answer], x)
            )
            m = (p + q) / 2
            js = 0.5 * (p * (p / m).log2()).sum() + 0.5 * (q * (q / m).log2()).sum()
            agreements.append(1 - float(js))
            tops = [set(sorted(range(len(w)), key=lambda i, w=w: -w[i])[:5]) for w in (p, q)]
            shared.append(len(tops[0] & tops[1]) / 5)
        return float(np.mean(agreements)), float(np.mean(shared))

    def loss(self, x: Tensor) -> float:
        """Let C3, and only C3, read the path's vector at `<s_answer>`."""

        def swap(_m: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
            read = inputs[0].clone()
            read[0, self.answer] = x
            return (read,)

        hook = self.stack.layers[3].encoder_attn_layer_norm.register_forward_pre_hook(swap)
        logits = self.model(
            input_ids=self.ids, encoder_hidden_states=self.states, use_cache=False
        ).logits
        hook.remove()
        return float(-logits[0, self.answer].log_softmax(-1)[self.label])


OPTIONS = [
    PathOptions(),
    PathOptions(biases=False),
    PathOptions(feed="activation", norm="recomputed", scale_at="answer"),
    PathOptions(feed="gate", attention="measured", start="stream"),
    PathOptions(norm="none", scale_at="answer"),
    PathOptions(feed="jacobian"),
    PathOptions(feed="jacobian", scale_at="answer", biases=False),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.feed}-{o.norm}-{o.scale_at}")
def test_table_equals_brute_force(
    exact: Exact, tiny_teacher: Teacher, options: PathOptions
) -> None:
    options = replace(options, top=5)
    table = keyword_paths(
        tiny_teacher, exact.sample, keyword, options=options, decoder=exact.decoder
    )
    spots = [
        Literal(exact, row, position, options)
        for row, example in enumerate(exact.sample.rows)
        for position in keyword(example)
    ]
    assert (table.examples, table.keywords) == (5, 10)
    assert [p.through for p in table.paths] == [
        tuple(name for name, bit in zip(PAPER, reversed(bits), strict=True) if bit)
        for bits in product((False, True), repeat=5)
    ]
    with torch.no_grad():
        for path in table.paths[::5]:
            vectors = [spot.vector(path.through, "S1") for spot in spots]
            cosines = torch.stack([s.cosines(v) for s, v in zip(spots, vectors, strict=True)])
            np.testing.assert_allclose(path.heads, cosines.mean(0), **CLOSE)
            np.testing.assert_allclose(path.effectiveness, cosines.mean(), **CLOSE)
            spread = cosines.mean(1).std(correction=0)
            np.testing.assert_allclose(path.effectiveness_sd, spread, **CLOSE)
            overlaps = [s.overlap(v) for s, v in zip(spots, vectors, strict=True)]
            found = (path.overlap, path.top_overlap)
            np.testing.assert_allclose(found, np.mean(overlaps, axis=0), **CLOSE)
            losses = [s.loss(v) for s, v in zip(spots, vectors, strict=True)]
            np.testing.assert_allclose(path.loss, np.mean(losses), **CLOSE)
    clean = [-s.clean_logits[s.answer].log_softmax(-1)[s.label] for s in spots]
    np.testing.assert_allclose(table.clean_loss, np.mean(clean), **CLOSE)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.feed}-{o.norm}-{o.scale_at}")
@pytest.mark.parametrize("names", ["paper", "literal", "full"])
def test_paths_sum_to_the_composition(
    exact: Exact, tiny_teacher: Teacher, options: PathOptions, names: str
) -> None:
    table = keyword_paths(
        tiny_teacher, exact.sample, keyword, sublayers=names, options=options, decoder=exact.decoder
    )
    assert len(table.paths) == 2 ** len(SUBLAYER_SETS[names])
    # float64 sums of at most 128 vectors
    assert table.identity_gap < 1e-12


def test_the_identity_check_can_fail() -> None:
    from circuitsearch.discovery.paths.transforms import identity_gap

    start = torch.ones(1, 3)
    assert identity_gap(start, [lambda x: 2 * x, lambda x: x.flip(-1)]) == 0
    assert identity_gap(start, [lambda x: 2 * x, lambda x: x + 1]) > 0.1  # not linear


def test_record_round_trip(tiny_teacher: Teacher, sample: Sample) -> None:
    table = keyword_paths(tiny_teacher, sample, keyword, sublayers=["S3", "M1"])
    assert table.sublayers == ("M1", "S3")
    assert [p.name for p in table.paths] == ["residual", "M1", "S3", "M1 S3"]
    assert table.best().effectiveness == max(p.effectiveness for p in table.paths)
    assert set(table.agreement) == {
        "effectiveness~overlap",
        "effectiveness~loss",
        "overlap~loss",
    }
    assert PathTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    with pytest.raises(DataError, match="target"):
        PathTable.from_json({k: v for k, v in table.to_json().items() if k != "target"})


def test_tables_without_top_overlap_still_load(tiny_teacher: Teacher, sample: Sample) -> None:
    data = keyword_paths(tiny_teacher, sample, keyword, sublayers=["S3"]).to_json()
    for path in data["paths"]:
        assert path.pop("top_overlap") is not None
    del data["options"]["top"]
    assert [path.top_overlap for path in PathTable.from_json(data).paths] == [None, None]


def test_all_tokens_in_common_where_there_are_few(tiny_teacher: Teacher, sample: Sample) -> None:
    # the tiny encoder gives 24 tokens, so the 100 most attended ones are all of them
    options = PathOptions(top=100)
    table = keyword_paths(tiny_teacher, sample, keyword, sublayers=["S3"], options=options)
    assert [path.top_overlap for path in table.paths] == [1.0, 1.0]


def test_the_tangent_is_best_near_the_clean_point(exact: Exact) -> None:
    """The tangent errs by the square of the step, the gate in proportion to it."""
    parts = exact.decoder.parts(SubLayer.parse("M1"))
    torch.manual_seed(0)
    clean, line = torch.randn(2, 3, 32, dtype=torch.float64)
    with torch.no_grad():
        errors = {
            feed: [
                float((neuron_map(parts, clean, feed)(x) - parts.neurons(x)).abs().max())
                for x in (clean, clean + 1e-3 * line, clean + 1e-2 * line)
            ]
            for feed in ("gate", "jacobian")
        }
    assert errors["jacobian"][0] < 1e-14
    assert errors["gate"][0] < 1e-7  # near zero the ratio is taken beside the point
    assert 50 < errors["jacobian"][2] / errors["jacobian"][1] < 200
    assert 5 < errors["gate"][2] / errors["gate"][1] < 20


@pytest.mark.parametrize("feed", ["linear", "gate", "jacobian"])
def test_gated_neurons(feed: str) -> None:
    """f(gate(x)) * up(x): affine maps against the function and its derivative."""
    torch.manual_seed(1)
    draw = partial(torch.randn, dtype=torch.float64)
    norm = Norm(torch.ones(6, dtype=torch.float64), None, 1e-5)
    up, gate = Affine(draw(8, 6), draw(8)), Affine(draw(8, 6), draw(8))
    parts = Parts(norm, Affine(draw(6, 8)), up=up, gate=gate, activation=torch.nn.functional.silu)
    clean, x, back = draw(4, 6), draw(4, 6), draw(4, 8)
    found = neuron_map(parts, clean, feed)
    if feed == "linear":
        torch.testing.assert_close(found(x), up(x))
    else:
        torch.testing.assert_close(found(clean), parts.neurons(clean))
    if feed == "gate":
        torch.testing.assert_close(found(x), torch.nn.functional.silu(gate(clean)) * up(x))
    if feed == "jacobian":
        _, slope = torch.autograd.functional.jvp(parts.neurons, clean, x)
        torch.testing.assert_close(found.linear(x), slope)
    torch.testing.assert_close(found.linear(x), found(x) - found(torch.zeros_like(x)))
    pulled = (found.pull_back(back) * x).sum()
    torch.testing.assert_close((found.linear(x) * back).sum(), pulled)


def test_an_attention_has_no_neurons(exact: Exact) -> None:
    parts = exact.decoder.parts(SubLayer.parse("S1"))
    with pytest.raises(ConfigError, match="choose a feed-forward"):
        neuron_map(parts, torch.zeros(32), "gate")
    feed = exact.decoder.parts(SubLayer.parse("M1"))
    with pytest.raises(ConfigError, match="did you mean 'jacobian'"):
        neuron_map(feed, torch.zeros(32), "jacobi")


def test_rows_are_what_the_table_averages(exact: Exact, tiny_teacher: Teacher) -> None:
    given = {"sublayers": ["M1", "S3"], "decoder": exact.decoder}
    table = keyword_paths(tiny_teacher, exact.sample, keyword, **given)
    rows = keyword_rows(tiny_teacher, exact.sample, keyword, **given)
    assert rows.paths == tuple(path.through for path in table.paths)
    assert rows.examples.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for i, path in enumerate(table.paths):
        assert rows.effectiveness[i].mean() == path.effectiveness
        assert rows.overlaps[i].mean() == path.overlap
        assert rows.losses is not None
        assert rows.losses[i].mean() == path.loss


def test_controls_compare_with_another_question(exact: Exact, tiny_teacher: Teacher) -> None:
    rows = keyword_rows(
        tiny_teacher,
        exact.sample,
        lambda example: (4,),
        sublayers=["M1", "S3"],
        decoder=exact.decoder,
    )
    spots = [Literal(exact, row, 4, PathOptions()) for row in range(5)]
    asked = [row.question.text for row in exact.sample.rows]
    for row, spot in enumerate(spots):
        batch = range(3) if row < 3 else range(3, 5)
        others = [*(o for o in batch if o > row), *(o for o in batch if o < row)]
        rival = next(other for other in others if asked[other] != asked[row])
        with torch.no_grad():
            for index, through in enumerate(rows.paths):
                path = spot.query(spot.vector(through, "M1"), True)
                clean = spots[rival].query(spots[rival].reads["C3"][spots[rival].answer], True)
                cosines = torch.nn.functional.cosine_similarity(path, clean, dim=-1)
                np.testing.assert_allclose(rows.controls[index, row], cosines.mean(), **CLOSE)


def test_controls_are_missing_where_nothing_else_is_asked(
    exact: Exact, tiny_teacher: Teacher
) -> None:
    same = [replace(row, question=exact.sample.rows[0].question) for row in exact.sample.rows]
    sample = replace(exact.sample, rows=tuple(same))
    rows = keyword_rows(tiny_teacher, sample, keyword, sublayers=["S3"], decoder=exact.decoder)
    assert np.isnan(rows.controls).all()
    assert np.isfinite(rows.effectiveness).all()


def test_default_keywords_are_the_words_of_the_question(
    tiny_teacher: Teacher, sample: Sample
) -> None:
    table = keyword_paths(tiny_teacher, sample, sublayers=["S3"])
    words = sum(len(f"Whatisthe{row.question.family}") for row in sample.rows)
    assert table.keywords == words
    # float32 on 18-character questions
    assert table.identity_gap < 1e-5


def test_earlier_target_has_no_first_token_loss(tiny_teacher: Teacher, sample: Sample) -> None:
    table = keyword_paths(tiny_teacher, sample, keyword, target="C2", sublayers=["S1", "M1"])
    assert all(path.loss is None for path in table.paths)
    assert PathTable.from_json(table.to_json()) == table


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sublayers": "papers"}, "did you mean 'paper'"),
        ({"sublayers": ["C1"]}, "image-free"),
        ({"sublayers": ["M3"]}, "behind the target"),
        ({"sublayers": ["S7"]}, "not in this decoder"),
        ({"sublayers": []}, "1 to 10"),
        ({"target": "S3"}, "allowed are C0, C1, C2, C3"),
        ({"keywords": lambda _: [200]}, "positions of the prompt"),
    ],
)
def test_bad_arguments(
    tiny_teacher: Teacher, sample: Sample, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        keyword_paths(tiny_teacher, sample, **arguments)


def test_no_keyword_anywhere(tiny_teacher: Teacher, sample: Sample) -> None:
    with pytest.raises(DataError, match="no example has a keyword"):
        keyword_paths(tiny_teacher, sample, lambda _: ())


def test_bad_options_are_named_together() -> None:
    with pytest.raises(ConfigError, match="3 problems") as caught:
        PathOptions(feed="gelu", norm="froze", top=0)  # type: ignore[arg-type]
    assert "did you mean 'frozen'" in str(caught.value)
