"""Scores of paths against brute force over the Hugging Face modules, and their record."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.discovery.paths import scored
from circuitsearch.discovery.paths.scored import ScoreOptions, path_scores
from circuitsearch.discovery.paths.scores import PathScores, ScoredPath
from circuitsearch.discovery.sample import Sample
from circuitsearch.teacher.loading import Teacher
from tests.discovery.literal import Exact, reference_loss
from tests.discovery.path_literal import CLOSE, Literal


@pytest.mark.parametrize("target", ["logits", "C3<q>"])
@pytest.mark.parametrize("feed", ["gate", "jacobian"])
def test_scores_equal_brute_force(exact: Exact, target: str, feed: str) -> None:
    heads = None if target == "logits" else (0, 3)
    options = ScoreOptions(target, heads, feed=feed, ablation="resample")
    others = [exact.sample.states[(r.page + 1) % 2] for r in exact.sample.rows]
    found = path_scores(exact.decoder, exact.sample, options)
    zero = path_scores(exact.decoder, exact.sample, replace(options, ablation="zero"))
    assert found.paths[0] == ScoredPath("embedding", (), 0.0, 0.0, 0.0)  # the tokens stay
    literals = [Literal(exact, i, feed, other) for i, other in enumerate(others)]
    slopes = [x.logits_slope() if heads is None else x.query_slope(heads) for x in literals]
    cases = [p for p in zero.paths if p.source == "embedding"][:: 37 if heads is None else 31]
    cases += [p for p in found.paths if p.source == "encoder"][:: 29 if heads is None else 17]
    assert len(cases) > 8
    for path in cases:
        with torch.no_grad():
            ends = [literal.vector(path.source, path.through) for literal in literals]
        scores = np.array([float(f(x)) for f, x in zip(slopes, ends, strict=True)])
        np.testing.assert_allclose(path.score, scores.mean(), **CLOSE)
        np.testing.assert_allclose(path.score_sd, scores.std(), **CLOSE)
        np.testing.assert_allclose(path.magnitude, np.abs(scores).mean(), **CLOSE)


@pytest.mark.parametrize("target", ["logits", "C3<q>"])
def test_every_path_is_there_once(tiny_teacher: Teacher, sample: Sample, target: str) -> None:
    """Donut's counts: 256, 170 and 425 paths to the logits, 128, 84 and 211 to C3's queries."""
    sources = ("embedding", "encoder", "constant")
    scores = path_scores(tiny_teacher.decoder, sample, ScoreOptions(target, sources=sources))
    order = [s.name for s in tiny_teacher.decoder.sublayers]
    order = order if target == "logits" else order[: order.index("C3")]

    def behind(start: int) -> list[tuple[str, ...]]:
        names = [name for name in order[start:] if name[0] != "C"]
        return [c for n in range(len(names) + 1) for c in combinations(names, n)]

    expected = [("embedding", path) for path in behind(0)]
    for i, name in enumerate(order):
        starts = ("encoder", "constant") if name[0] == "C" else ("constant",)
        expected += [(s, (name, *path)) for s in starts for path in behind(i + 1)]
    found = [(path.source, path.through) for path in scores.paths]
    assert sorted(found) == sorted(expected)
    counts = [sum(path.source == source for path in scores.paths) for source in sources]
    assert counts == ([256, 170, 425] if target == "logits" else [128, 84, 211])


def test_all_sources_account_for_the_metric(exact: Exact) -> None:
    """A metric linear in logits is the sum of all paths and what the final norm's bias gives."""
    sources = ("embedding", "encoder", "constant")
    options = ScoreOptions(sources=sources, feed="jacobian")
    scores = path_scores(exact.decoder, exact.sample, options)
    literals = [Literal(exact, i, "gate") for i in range(len(exact.sample.rows))]
    with torch.no_grad():
        clean = np.mean([float(x.metric(x.logits)) for x in literals])
        bare = [
            x.stack.layer_norm.bias.expand(len(x.logits), -1) @ x.model.lm_head.weight.T
            for x in literals
        ]
        rest = np.mean([float(x.metric(logits)) for x, logits in zip(literals, bare, strict=True)])
    # removing every source lowers the metric by what they give: the score is minus that
    np.testing.assert_allclose(scores.total, rest - clean, **CLOSE)
    assert scores.effect is None


@pytest.mark.parametrize("heads", [(1,), (0, 1, 2, 3)])
def test_effect_at_the_queries_is_measured(exact: Exact, heads: tuple[int, ...]) -> None:
    options = ScoreOptions("C3<q>", heads, sources=("encoder",), ablation="resample")
    scores = path_scores(exact.decoder, exact.sample, options)
    if len(heads) == 4:
        assert path_scores(exact.decoder, exact.sample, replace(options, heads=None)).effect == (
            scores.effect
        )
    effects = []
    for row in range(len(exact.sample.rows)):
        literal = Literal(exact, row, "gate")
        other = exact.sample.states[(exact.sample.rows[row].page + 1) % 2]
        query = literal.stack.layers[3].encoder_attn.q_proj
        seen: list[Tensor] = []
        keep = query.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        with torch.no_grad():
            literal.run(other)
            keep.remove()

            def swap(_m: Any, _i: Any, out: Tensor, given: Tensor = seen[0]) -> Tensor:
                out = out.clone()
                for h in heads:
                    out[..., 8 * h : 8 * h + 8] = given[..., 8 * h : 8 * h + 8]
                return out

            hook = query.register_forward_hook(swap)
            patched = literal.metric(literal.run(literal.states))
            hook.remove()
            effects.append(float(patched - literal.metric(literal.logits)))
    np.testing.assert_allclose(scores.effect, np.mean(effects), **CLOSE)


def test_effect_at_the_logits_is_measured(exact: Exact) -> None:
    options = ScoreOptions(metric="answer_loss", ablation="resample", sources=("encoder",))
    found = path_scores(exact.decoder, exact.sample, options).effect
    effects = []
    for (batch, states), other in zip(exact.sample.batches, exact.sample.swapped, strict=True):
        changed = reference_loss(exact.model, batch, other[batch.pages])
        effects.append(changed - reference_loss(exact.model, batch, states[batch.pages]))
    np.testing.assert_allclose(found, torch.cat(effects).mean(), **CLOSE)
    both = path_scores(exact.decoder, exact.sample, replace(options, sources=("embedding",)))
    assert both.effect == 0  # the tokens stay, and the encoder is not asked for


@pytest.mark.parametrize("tabulated", [0, 2, 8, 20])
def test_sharing_changes_no_score(exact: Exact, tabulated: int) -> None:
    options = ScoreOptions(sources=("embedding", "encoder", "constant"))
    base = path_scores(exact.decoder, exact.sample, options)
    other = path_scores(exact.decoder, exact.sample, replace(options, tabulated=tabulated))
    assert [p.name for p in base.paths] == [p.name for p in other.paths]
    for a, b in zip(base.paths, other.paths, strict=True):
        np.testing.assert_allclose((a.score, a.score_sd), (b.score, b.score_sd), **CLOSE)
    behind = [8, 7, 5, 3, 1, 7, 7, 6, 5, 5, 4, 3, 3, 2, 1, 1, 0]  # sub-layers behind each start
    separate = sum(k * 2 ** (k - 1) if k else 0 for k in behind)
    assert base.applications < other.applications < base.separate_applications == separate


def test_record(tiny_teacher: Teacher, sample: Sample) -> None:
    told: list[tuple[str, int, int]] = []
    scores = path_scores(
        tiny_teacher.decoder,
        sample,
        ScoreOptions("C2<q>", (1, 2), metric="margin", ablation="mean"),
        progress=lambda *what: told.append(what),
    )
    assert told == [("path scores", i, 3) for i in (1, 2, 3)]
    assert PathScores.from_json(json.loads(json.dumps(scores.to_json()))) == scores
    assert (scores.examples, scores.heads, scores.target) == (9, (1, 2), "C2<q>")
    with pytest.raises(DataError, match="unknown field 'path'"):
        PathScores.from_json({**scores.to_json(), "path": 1})
    names = [path.name for path in scores.paths]
    assert names[:3] == ["embedding", "embedding > S0", "embedding > M0"]
    assert names[-1] == "encoder > C1 > M1 > S2"


def test_top_residue_and_share() -> None:
    values = [("embedding", (), 1.0), ("embedding", ("S0",), -3.0), ("encoder", ("C0",), 0.5)]
    paths = tuple(ScoredPath(source, through, score, 0.0, 1.0) for source, through, score in values)
    scores = PathScores("s", "logits", None, "logit", "zero", "gate", 2, paths, 0.1, 1)
    assert scores.total == -1.5
    assert [path.score for path in scores.top(2)] == [-3.0, 1.0]
    assert scores.residue(1) == 1.5
    assert scores.residue(3) == scores.residue(9) == 0
    assert scores.share(1) == 3 / 4.5
    assert scores.separate_applications == 1
    with pytest.raises(ConfigError, match="count: got 0"):
        scores.top(0)
    assert PathScores("s", "logits", None, "", "", "", 0, (), None, 0).share(1) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sources": ("embeding",)}, "did you mean 'embedding'"),
        ({"sources": ()}, "sources: got none"),
        ({"feed": "activation"}, "allowed are linear, gate, jacobian"),
        ({"sources": ("constant",), "ablation": "mean"}, "allowed is 'zero'"),
        ({"tabulated": -1}, "tabulated: got -1"),
        ({"target": "S3"}, "allowed are logits, C0<q>, C1<q>, C2<q>, C3<q>"),
        ({"heads": (0,)}, "heads: got 0, allowed are None for the logits"),
        ({"target": "C3<q>", "heads": (1, 4)}, "heads: got 4, allowed are heads of C3<q>, 0 to 3"),
        ({"target": "C3<q>", "heads": ()}, "heads: got none"),
        ({"metric": "los"}, "metric: got 'los'"),
        ({"ablation": "noise"}, "ablation: got 'noise'"),
    ],
)
def test_bad_options(
    tiny_teacher: Teacher, sample: Sample, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        path_scores(tiny_teacher.decoder, sample, ScoreOptions(**arguments))


def test_too_many_paths_to_list(
    tiny_teacher: Teacher, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scored, "_MOST", 7)
    with pytest.raises(ConfigError, match=r"make 2\^8 paths.*best_paths"):
        path_scores(tiny_teacher.decoder, sample)


def test_logit_difference_needs_counterfactuals(tiny_teacher: Teacher, sample: Sample) -> None:
    with pytest.raises(DataError, match="make_pair_sample"):
        path_scores(tiny_teacher.decoder, sample, ScoreOptions(metric="logit_difference"))
