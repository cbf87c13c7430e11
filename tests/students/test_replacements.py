"""Replacements: fitted as numpy's least squares fits them, run, kept on disk and trained."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import ConfigError, DataError, PlanError
from circuitsearch.core.plan import Plan
from circuitsearch.discovery.lens.reprojection import nearest_tokens as lens_tokens
from circuitsearch.discovery.sample import make_sample
from circuitsearch.students import (
    DistillRecipe,
    Features,
    Replacements,
    build_student,
    distill,
    examine,
    fit_replacements,
    replaced,
)
from circuitsearch.teacher.decoders import (
    ResidualDecoder,
    nearest_tokens,
    residual_decoder,
    run,
    write,
)
from circuitsearch.teacher.loading import Teacher
from tests.student_fixtures import any_replacements
from tests.tiny import tiny_pages

CHOSEN = tuple(SubLayer.parse(name) for name in ("S0", "C1", "M1", "M3"))


@pytest.fixture(scope="module")
def fitted(tiny_teacher: Teacher, tiny_features: Features) -> Replacements:
    return fit_replacements(tiny_teacher.decoder, tiny_features, CHOSEN, ridge=1e-2)


def _activations(view: ResidualDecoder, features: Features) -> Mapping[SubLayer, dict[str, list]]:
    """What sub-layers read and write, example by example without padding, and where answers are."""
    found: dict[SubLayer, dict[str, list]] = {
        one: {"reads": [], "writes": [], "answers": []} for one in view.sublayers
    }
    for row in features.examples:
        ids = torch.tensor([row.ids[:-1]])
        memory = view.memory(features.states([row.page]))
        x = view.embed(ids)
        for sublayer in view.sublayers:
            written = write(view, sublayer, x, memory)
            for place in range(ids.shape[1]):
                kept = found[sublayer]
                kept["reads"].append(view.parts(sublayer).norm(x)[0, place].numpy())
                kept["writes"].append(written[0, place].numpy())
                kept["answers"].append(place >= row.prompt - 1)  # predicts an answer token
            x = x + written
    return found


def _lstsq(reads: np.ndarray, writes: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression as ordinary least squares with d more rows; the bias is not penalised."""
    d = reads.shape[1]
    scatter = ((reads - reads.mean(0)) ** 2).sum()
    penalty = np.sqrt(ridge * scatter / d)
    rows = np.vstack(
        [
            np.hstack([reads, np.ones((len(reads), 1))]),
            np.hstack([penalty * np.eye(d), np.zeros((d, 1))]),
        ]
    )
    solution = np.linalg.lstsq(rows, np.vstack([writes, np.zeros((d, d))]), rcond=None)[0]
    return solution[:-1].T, solution[-1]


@pytest.mark.parametrize("ridge", [1e-3, 1e-1])
def test_fits_are_numpys_least_squares(
    tiny_teacher: Teacher, tiny_features: Features, ridge: float
) -> None:
    view = tiny_teacher.decoder
    fit = fit_replacements(view, tiny_features, CHOSEN, ridge=ridge)
    assert set(fit.means) == set(fit.maps) == set(CHOSEN)
    with torch.no_grad():
        found = _activations(view, tiny_features)
    for sublayer in CHOSEN:
        reads = np.array(found[sublayer]["reads"], dtype=np.float64)
        writes = np.array(found[sublayer]["writes"], dtype=np.float64)
        mean = writes[found[sublayer]["answers"]].mean(axis=0)
        np.testing.assert_allclose(fit.means[sublayer], mean, atol=1e-6)
        weight, bias = _lstsq(reads, writes, ridge)
        # activations of padded batches differ in the last bits of float32
        np.testing.assert_allclose(fit.maps[sublayer].weight, weight, atol=2e-5)
        np.testing.assert_allclose(fit.maps[sublayer].bias, bias, atol=2e-5)


def test_batches_do_not_matter_and_runs_agree_bit_for_bit(
    tiny_teacher: Teacher, tiny_features: Features, fitted: Replacements
) -> None:
    view = tiny_teacher.decoder
    again = fit_replacements(view, tiny_features, CHOSEN, ridge=1e-2)
    assert again.fingerprint == fitted.fingerprint
    small = fit_replacements(view, tiny_features, CHOSEN, ridge=1e-2, batch_size=3)
    for sublayer in CHOSEN:
        torch.testing.assert_close(small.means[sublayer], fitted.means[sublayer], atol=1e-6, rtol=0)
        one, other = small.maps[sublayer], fitted.maps[sublayer]
        torch.testing.assert_close(one.weight, other.weight, atol=1e-5, rtol=0)


def test_fits_what_is_asked_for_on_the_chosen_examples(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    view, m1 = tiny_teacher.decoder, SubLayer.parse("M1")
    few = fit_replacements(view, tiny_features, [m1], names=["mean"], examples=[2])
    assert list(few.means) == [m1]
    assert not few.maps
    row = tiny_features.examples[2]
    memory = view.memory(tiny_features.states([row.page]))
    with torch.no_grad():
        x = view.embed(torch.tensor([row.ids[:-1]]))
        for sublayer in view.sublayers:
            written = write(view, sublayer, x, memory)
            if sublayer == m1:
                mean = written[0, row.prompt - 1 :].mean(dim=0)
            x = x + written
    torch.testing.assert_close(few.means[m1], mean, atol=1e-6, rtol=1e-5)


def test_reads_that_never_vary_give_the_mean(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    decoder = copy.deepcopy(tiny_teacher.model.decoder)
    with torch.no_grad():
        decoder.model.decoder.layers[1].final_layer_norm.weight.zero_()
    m1 = SubLayer.parse("M1")
    fit = fit_replacements(residual_decoder(decoder), tiny_features, [m1])
    assert float(fit.maps[m1].weight.abs().max()) < 1e-4
    torch.testing.assert_close(fit.maps[m1].bias, fit.means[m1], atol=1e-6, rtol=1e-5)


def _nearest(view: ResidualDecoder, features: Features) -> dict[SubLayer, dict[int, Counter]]:
    """How often each nearest token stands behind each sub-layer, by input token (the oracle).

    One example at a time, without padding; the norm and the output projection are the model's own.
    """
    model = view.model  # type: ignore[attr-defined]
    found: dict[SubLayer, dict[int, Counter]] = {s: defaultdict(Counter) for s in view.sublayers}
    for row in features.examples:
        ids = torch.tensor([row.ids[:-1]])
        memory = view.memory(features.states([row.page]))
        x = view.embed(ids)
        for sublayer in view.sublayers:
            x = x + write(view, sublayer, x, memory)
            best = model.lm_head(model.model.decoder.layer_norm(x))[0].argmax(dim=-1)
            for token, nearest in zip(ids[0].tolist(), best.tolist(), strict=True):
                found[sublayer][token][nearest] += 1
    return found


def test_tables_hold_the_most_frequent_nearest_token(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    view = tiny_teacher.decoder
    fit = fit_replacements(view, tiny_features, view.sublayers, names=["token"], batch_size=7)
    assert set(fit.tokens) == set(view.sublayers)
    assert not fit.means
    assert not fit.maps
    with torch.no_grad():
        found = _nearest(view, tiny_features)
    ties = 0
    for sublayer, table in fit.tokens.items():
        expected = list(range(view.shape.vocabulary))  # a token never met stands for itself
        for token, counts in found[sublayer].items():
            most = max(counts.values())
            best = [nearest for nearest, count in counts.items() if count == most]
            ties += len(best) > 1
            expected[token] = min(best)
        assert table.tolist() == expected, sublayer
        assert table.dtype == torch.int64
        assert len(found[sublayer]) < view.shape.vocabulary
    assert ties > 0
    assert any(table.tolist() != sorted(table.tolist()) for table in fit.tokens.values())


def test_tables_are_read_as_the_lens_reads(tiny_teacher: Teacher, tiny_features: Features) -> None:
    """The nearest token behind a sub-layer is that of the reprojection lens."""
    view, page = tiny_teacher.decoder, tiny_pages(1)
    sample = make_sample(tiny_teacher, page)
    lens = lens_tokens(view, sample, positions="all", places=["C0", "M2"])
    said = {place: lens.top[at, :, 0].tolist() for at, place in enumerate(lens.places)}
    for batch, states in sample.batches:
        memory = view.memory(states, batch.pages)
        with torch.no_grad():
            for name in ("C0", "M2"):
                x = view.embed(batch.ids)
                for sublayer in view.sublayers[: SubLayer.parse(name).position + 1]:
                    x = x + write(view, sublayer, x, memory)
                got = nearest_tokens(view, x)
                assert got.shape == batch.ids.shape
                rows = [
                    int(token)
                    for row, example in zip(got, batch.examples, strict=True)
                    for token in row[: len(example.ids) - 1]
                ]
                assert rows == said[name][: len(rows)]
                said[name] = said[name][len(rows) :]
    assert said == {"C0": [], "M2": []}


def test_faults_are_named_together(tiny_teacher: Teacher, tiny_features: Features) -> None:
    view = tiny_teacher.decoder
    with pytest.raises(ConfigError) as caught:
        fit_replacements(
            view, tiny_features, [SubLayer.parse("M7")], names=["maen", "alone"], ridge=0.0
        )
    text = str(caught.value)
    for fault in ("4 problems", "did you mean 'mean'", "got 'alone'", "ridge: got 0.0", "got M7"):
        assert fault in text
    with pytest.raises(DataError, match="no examples"):
        fit_replacements(view, tiny_features, CHOSEN, examples=[])


def test_replaced_is_one_step_of_the_student(
    tiny_teacher: Teacher, tiny_features: Features, fitted: Replacements
) -> None:
    view = tiny_teacher.decoder
    read = tiny_features.read([0, 3, 4])
    for text in ("S0=linear", "C1=mean", "C1=linear", "C3=alone", "M3=mean", "M1=token"):
        ((sublayer, keep),) = Plan.parse(text).kept
        own = residual_decoder(build_student(tiny_teacher, Plan.parse(text), replacements=fitted))
        with torch.no_grad():
            memory = view.memory(read.states, read.rows)
            x = view.embed(read.batch.ids)
            behind = replaced(
                view, sublayer, str(keep.replacement), fitted, x, memory, read.batch.ids
            )
            expected = run(own, read.batch.ids, own.memory(read.states, read.rows))
            torch.testing.assert_close(view.readout(behind), expected, atol=1e-5, rtol=1e-5)
            if keep.replacement == "alone":
                torch.testing.assert_close(behind, write(view, sublayer, x, memory))


def test_replaced_refuses_what_is_not_fitted_or_not_legal(
    tiny_teacher: Teacher, tiny_features: Features, fitted: Replacements
) -> None:
    view, x = tiny_teacher.decoder, torch.zeros(1, 2, 32)
    memory = view.memory(tiny_features.states([0]))
    with pytest.raises(ConfigError, match=r"nothing is fitted for M0=mean.*fit_replacements"):
        replaced(view, SubLayer.parse("M0"), "mean", fitted, x, memory)
    with pytest.raises(PlanError, match="for C only"):
        replaced(view, SubLayer.parse("M1"), "alone", fitted, x, memory)
    with pytest.raises(ConfigError, match=r"M1=token: .* pass ids"):
        replaced(view, SubLayer.parse("M1"), "token", fitted, x, memory)
    with pytest.raises(PlanError, match="did you mean 'linear'"):
        replaced(view, SubLayer.parse("M1"), "liner", fitted, x, memory)


def test_file_round_trip(fitted: Replacements, tmp_path: Path) -> None:
    path = tmp_path / "kept" / "replacements.safetensors"
    fitted.save(path)
    loaded = Replacements.load(path)
    assert loaded.fingerprint == fitted.fingerprint
    for sublayer in CHOSEN:
        assert torch.equal(loaded.means[sublayer], fitted.means[sublayer])
        assert torch.equal(loaded.maps[sublayer].weight, fitted.maps[sublayer].weight)
        assert torch.equal(loaded.tokens[sublayer], fitted.tokens[sublayer])
        assert loaded.tokens[sublayer].dtype == torch.int64
    only = Replacements(means={CHOSEN[0]: fitted.means[CHOSEN[0]]})
    only.save(path)
    assert Replacements.load(path).fingerprint == only.fingerprint != fitted.fingerprint


def test_damaged_and_foreign_files_are_refused(fitted: Replacements, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    with pytest.raises(DataError, match="cannot be read"):
        Replacements.load(path)
    fitted.save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="cannot be read"):
        Replacements.load(path)
    save_file({"S0.mean": torch.zeros(3)}, path)
    with pytest.raises(DataError, match="not written by"):
        Replacements.load(path)
    metadata = {"format": "circuitsearch replacements 1"}
    for tensors in ({"S0.weight": torch.zeros(3, 3)}, {"X0.mean": torch.zeros(3)}):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(DataError, match="damaged"):
            Replacements.load(path)
    for table in (torch.tensor([0, 2]), torch.tensor([0, -1]), torch.zeros(2), torch.zeros(1, 1)):
        save_file({"C0.map": table}, path, metadata=metadata)
        with pytest.raises(DataError, match="a table of tokens is damaged"):
            Replacements.load(path)


def test_a_fit_loses_less_than_skipping(tiny_teacher: Teacher, tiny_features: Features) -> None:
    """Each map comes closer to the write that it replaces than its mean, and that than nothing."""
    view = tiny_teacher.decoder
    fit = fit_replacements(view, tiny_features, view.sublayers)
    with torch.no_grad():
        found = _activations(view, tiny_features)
    for sublayer in view.sublayers:
        reads, writes = (
            torch.tensor(np.array(found[sublayer][name])) for name in ("reads", "writes")
        )
        left = (writes - fit.maps[sublayer](reads)).square().sum()
        assert left < (writes - writes.mean(dim=0)).square().sum() < writes.square().sum()


def test_a_student_with_a_table_trains_behind_it(
    tiny_teacher: Teacher, tiny_features: Features, fitted: Replacements
) -> None:
    plan = Plan.parse("S0=token C0 M0:9 C3")
    student = build_student(tiny_teacher, plan, replacements=fitted)
    recipe = DistillRecipe(
        steps=12, batch=8, learning_rate=1e-2, warmup=1, temperature=2.0, kd_weight=1.0
    )
    before, _ = examine(
        student, tiny_teacher, tiny_features, plan, phase="untrained", source="test", answers=False
    )
    distill(residual_decoder(student), tiny_features, recipe, seed=0)
    after, _ = examine(
        student, tiny_teacher, tiny_features, plan, phase="short", source="test", answers=False
    )
    assert after.loss < before.loss
    assert torch.equal(student.decoder.model.decoder.token_map, fitted.tokens[plan.sublayers[0]])


@pytest.fixture
def student(tiny_teacher: Teacher) -> Teacher:
    plan = Plan.parse("S0=linear C0 M0 C1=mean M1=linear S2 M2=mean C3=alone")
    numbers = any_replacements(tiny_teacher.shape.decoder)
    return build_student(tiny_teacher, plan, replacements=numbers)


def _layers(model: object) -> dict[str, Tensor]:
    parameters = model.decoder.named_parameters()  # type: ignore[attr-defined]
    return {name: tensor.detach().clone() for name, tensor in parameters}


def test_the_shared_trainer_trains_replacements(student, tiny_features: Features) -> None:
    before = _layers(student)
    recipe = DistillRecipe(
        steps=12, batch=8, learning_rate=1e-2, warmup=1, temperature=2.0, kd_weight=1.0
    )
    reports: list[float] = []
    distill(
        residual_decoder(student), tiny_features, recipe, seed=0,
        on_step=lambda report: reports.append(report.loss),
    )  # fmt: skip
    moved = {
        name for name, tensor in _layers(student).items() if not torch.equal(tensor, before[name])
    }
    stand_ins = {name for name in before if "_replacement." in name}
    assert len(stand_ins) == 6
    assert stand_ins <= moved
    assert all(".layers." in name for name in moved)
    assert min(reports[-3:]) < reports[0]


def test_measured_like_any_student(student, tiny_teacher: Teacher, tiny_features: Features) -> None:
    plan = Plan.parse("S0=linear C0 M0 C1=mean M1=linear S2 M2=mean C3=alone")
    made, _ = examine(
        student, tiny_teacher, tiny_features, plan, phase="untrained", source="test", answers=False
    )
    assert made.plan == str(plan)
    labels = []
    for row in tiny_features.examples:
        ids = torch.tensor([row.ids])
        states = tiny_features.states([row.page])
        with torch.no_grad():
            logits = student.decoder(input_ids=ids[:, :-1], encoder_hidden_states=states).logits
        losses = -logits[0].log_softmax(-1).gather(1, ids[0, 1:, None])[row.prompt - 1 :]
        labels.append(float(losses.mean()))
    assert made.loss == pytest.approx(sum(labels) / len(labels), abs=1e-5)
    cost = made.cost["cached"]["scopes"]["decoder"]["parameters"]
    assert cost == sum(p.numel() for n, p in student.decoder.named_parameters() if ".layers." in n)


def test_all_numbers_move_to_a_device(fitted: Replacements) -> None:
    moved = fitted.to(torch.device("meta"))
    found = [*moved.means.values(), *moved.tokens.values()]
    found += [part for one in moved.maps.values() for part in (one.weight, one.bias)]
    assert len(found) == 4 * len(CHOSEN)
    assert {one.device.type for one in found if one is not None} == {"meta"}
