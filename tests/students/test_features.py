"""Cached features equal what the models say, are computed once, and refuse damaged files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuitsearch.core.errors import ConfigError, DataError, StorageError
from circuitsearch.students.features import Features, prepare_features
from circuitsearch.students.losses import answer_rows
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.loading import Teacher
from tests.student_fixtures import noise_pages

PAGES = noise_pages(7, seed=1)


def _by_hand(teacher: Teacher, pages: list[Page], features: Features, index: int) -> Tensor:
    """The oracle: one example through the Hugging Face model, pixels to logits."""
    example = features.examples[index]
    pixels = teacher.pixel_values([pages[example.page].image()])
    ids = torch.tensor([example.ids])
    labels = ids[:, 1:].clone()
    labels[:, : example.prompt - 1] = -100
    with torch.no_grad():
        logits = teacher.model(pixel_values=pixels, decoder_input_ids=ids[:, :-1]).logits
    rows, kept = answer_rows(logits, labels)
    assert kept.tolist() == list(example.ids[example.prompt :])
    return rows


@pytest.mark.parametrize("shard_bytes", [1, 20_000, 2**26])
def test_logits_and_states_are_the_models(
    tiny_teacher: Teacher, tmp_path: Path, shard_bytes: int
) -> None:
    features = prepare_features(
        tiny_teacher, PAGES, tmp_path, batch_size=3, shard_bytes=shard_bytes
    )
    assert len(features.examples) == sum(len(page.questions) for page in PAGES)
    order = torch.randperm(len(features.examples), generator=torch.Generator().manual_seed(0))
    expected = [_by_hand(tiny_teacher, PAGES, features, int(index)) for index in order]
    got = features.teacher_logits(order)
    # batches of other shapes sum in another order
    torch.testing.assert_close(got.logits, torch.cat(expected), atol=2e-5, rtol=1e-5)
    for index in (6, 0, 3):
        states = tiny_teacher.encode(tiny_teacher.pixel_values([PAGES[index].image()]))
        torch.testing.assert_close(features.states([index]), states, atol=1e-5, rtol=1e-5)


def test_read_gives_each_row_its_page_and_its_logits(tiny_features: Features) -> None:
    chosen = [5, 0, 5, 9, 1]
    read = tiny_features.read(chosen)
    assert len(read.states) == len({tiny_features.examples[i].page for i in chosen})
    for row, index in enumerate(chosen):
        example = tiny_features.examples[index]
        page = tiny_features.states([example.page])[0]
        assert torch.equal(read.states[read.rows[row]], page)
        assert read.batch.examples[row] == example
    labels = read.batch.labels[read.batch.labels != -100]
    assert len(read.teacher.logits) == len(labels)
    counts = [len(e.ids) - e.prompt for e in read.batch.examples]
    last = read.teacher.logits.split(counts)[-1]
    assert torch.equal(last, tiny_features.teacher_logits([chosen[-1]]).logits)


def test_computed_once_per_page_and_never_again(tiny_teacher: Teacher, tmp_path: Path) -> None:
    encoded: list[int] = []
    watched = _watched(tiny_teacher, encoded)
    reports: list[tuple[int, int]] = []
    first = prepare_features(
        watched, PAGES, tmp_path, batch_size=2, progress=lambda *done: reports.append(done)
    )
    assert sum(encoded) == len(PAGES)  # pages, not questions
    assert reports[-1] == (len(PAGES), len(PAGES))
    again = prepare_features(watched, PAGES, tmp_path, batch_size=5)
    assert sum(encoded) == len(PAGES)
    assert again.key == first.key
    everything = range(len(first.examples))
    assert torch.equal(
        first.teacher_logits(everything).logits, again.teacher_logits(everything).logits
    )


def _watched(teacher: Teacher, encoded: list[int], fail_at: int = 10**9) -> Teacher:
    """The same teacher, counting encoded pages; it fails once `fail_at` pages are reached."""

    class Watched(Teacher):
        def encode(self, pixel_values: Tensor) -> Tensor:
            encoded.append(len(pixel_values))
            if sum(encoded) > fail_at:
                raise KeyboardInterrupt
            return super().encode(pixel_values)

    return Watched(**vars(teacher))


def test_an_interrupted_run_continues_at_its_shard(tiny_teacher: Teacher, tmp_path: Path) -> None:
    options = {"batch_size": 1, "shard_bytes": 1}  # one page per shard
    with pytest.raises(KeyboardInterrupt):
        prepare_features(_watched(tiny_teacher, [], fail_at=4), PAGES, tmp_path, **options)
    encoded: list[int] = []
    resumed = prepare_features(_watched(tiny_teacher, encoded), PAGES, tmp_path, **options)
    assert sum(encoded) == len(PAGES) - 4
    whole = prepare_features(tiny_teacher, PAGES, tmp_path / "other", **options)
    assert torch.equal(resumed.states(range(7)), whole.states(range(7)))
    assert not list(tmp_path.rglob("*.tmp"))


def test_key_follows_everything_that_decides_the_numbers(
    tiny_teacher: Teacher, tmp_path: Path
) -> None:
    pages = PAGES[:2]

    def key(teacher: Teacher = tiny_teacher, pages: list[Page] = pages, **options: object) -> str:
        return prepare_features(teacher, pages, tmp_path, **options).key  # type: ignore[arg-type]

    question = replace(pages[0].questions[0], text="Other?")
    asked = replace(pages[0], questions=(question, *pages[0].questions[1:]))
    lower = replace(
        tiny_teacher.tokens, prompt=replace(tiny_teacher.prompt, lowercase_question=True)
    )
    keys = [
        key(),
        key(pages=pages[::-1]),
        key(pages=[asked, pages[1]]),
        key(replace(tiny_teacher, fingerprint="another")),
        key(replace(tiny_teacher, tokens=lower)),
        key(precision="bfloat16"),
        key(best_tokens=5),
        key(best_tokens=5, temperatures=(3.0,)),
    ]
    assert len(set(keys)) == len(keys)
    assert key(temperatures=(3.0,)) == keys[0]  # of no consequence for a whole vocabulary
    assert key(batch_size=1) == keys[0]


def test_bfloat16_halves_the_disk_and_rounds(tiny_teacher: Teacher, tmp_path: Path) -> None:
    exact = prepare_features(tiny_teacher, PAGES, tmp_path)
    rounded = prepare_features(tiny_teacher, PAGES, tmp_path, precision="bfloat16")
    states = rounded.states(range(7))
    assert states.dtype == torch.float32
    assert torch.equal(states, exact.states(range(7)).bfloat16().float())
    large, small = (
        sum(file.stat().st_size for file in (tmp_path / one.key).glob("*.safetensors"))
        for one in (exact, rounded)
    )
    assert small == pytest.approx(large / 2, rel=0.02)  # headers do not shrink


def test_best_tokens_keep_the_largest_logits_and_the_tail(
    tiny_teacher: Teacher, tmp_path: Path
) -> None:
    whole = prepare_features(tiny_teacher, PAGES, tmp_path).teacher_logits([4, 2])
    best = prepare_features(
        tiny_teacher, PAGES, tmp_path, best_tokens=5, temperatures=(2.0, 1.0)
    ).teacher_logits([4, 2])
    assert best.ids is not None
    assert torch.equal(best.logits, whole.logits.topk(5).values)
    assert torch.equal(whole.logits.gather(1, best.ids), best.logits)
    p = whole.log_probabilities(2.0).exp()
    grouped = best.log_probabilities(2.0).exp()
    torch.testing.assert_close(grouped[:, :5], p.gather(1, best.ids))


def test_too_large_features_are_refused_before_anything_is_computed(
    tiny_teacher: Teacher, tmp_path: Path
) -> None:
    encoded: list[int] = []
    # states alone: 7 pages x 24 tokens x 32 numbers x 4 bytes
    told = r"Features would take 0\.\d MiB for 7 pages.*cache_gigabytes"
    with pytest.raises(ConfigError, match=told):
        prepare_features(_watched(tiny_teacher, encoded), PAGES, tmp_path, max_bytes=7 * 24 * 128)
    assert encoded == []
    assert not list(tmp_path.rglob("*shard*"))


def test_the_bound_counts_what_other_pages_take(tiny_teacher: Teacher, tmp_path: Path) -> None:
    prepare_features(tiny_teacher, PAGES, tmp_path)
    taken = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    with pytest.raises(ConfigError, match="can be deleted, by folder"):
        prepare_features(tiny_teacher, PAGES[:5], tmp_path, max_bytes=taken + 1000)
    for lock in tmp_path.glob("*.lock"):
        lock.unlink()
    prepare_features(tiny_teacher, PAGES, tmp_path, max_bytes=1)  # are there: only read
    assert not list(tmp_path.glob("*.lock"))
    prepare_features(tiny_teacher, PAGES[:5], tmp_path, max_bytes=2 * taken)


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}, {"best_tokens": 5}])
def test_estimate_is_the_size_on_disk(
    tiny_teacher: Teacher, tmp_path: Path, options: dict[str, Any]
) -> None:
    features = prepare_features(tiny_teacher, PAGES, tmp_path / "first", **options)
    (file,) = (tmp_path / "first" / features.key).glob("*.safetensors")
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    size = file.stat().st_size - header
    with pytest.raises(ConfigError, match="cache_gigabytes"):
        prepare_features(tiny_teacher, PAGES, tmp_path, max_bytes=size - 1, **options)
    prepare_features(tiny_teacher, PAGES, tmp_path, max_bytes=size, **options)


def test_a_full_disk_is_noticed_first(
    tiny_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"0\.0 MiB free"):
        prepare_features(tiny_teacher, PAGES, tmp_path)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(bytes(data))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip, "SHA-256"),
        (_cut, "SHA-256"),
        (Path.unlink, "cannot be read"),
        (lambda path: path.with_suffix(".json").write_text("{}"), "cannot be read"),
        (lambda path: path.with_suffix(".json").write_text("{"), "not valid JSON.*delete the"),
    ],
)
def test_damage_is_found_on_open(
    tiny_teacher: Teacher, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    features = prepare_features(tiny_teacher, PAGES, tmp_path)
    damage(tmp_path / features.key / "shard-00000.safetensors")
    with pytest.raises(DataError, match=message):
        prepare_features(tiny_teacher, PAGES, tmp_path)


def test_records_are_readable_json(tiny_teacher: Teacher, tmp_path: Path) -> None:
    features = prepare_features(tiny_teacher, PAGES, tmp_path)
    file = tmp_path / features.key / "shard-00000.safetensors"
    record = json.loads(file.with_suffix(".json").read_text())
    assert record["bytes"] == file.stat().st_size


def test_pages_without_questions(tiny_teacher: Teacher, tmp_path: Path) -> None:
    silent = replace(PAGES[0], questions=())
    with pytest.raises(DataError, match="no question"):
        prepare_features(tiny_teacher, [silent], tmp_path)
    # one among others keeps its place
    mixed = [PAGES[1], silent, PAGES[2]]
    features = prepare_features(tiny_teacher, mixed, tmp_path, shard_bytes=1)
    assert {example.page for example in features.examples} == {0, 2}
    assert len(features.states([1])) == 1


def test_unknown_options_are_refused(tiny_teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision: got 'float16'"):
        prepare_features(tiny_teacher, PAGES, tmp_path, precision="float16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="best_tokens: got 0"):
        prepare_features(tiny_teacher, PAGES, tmp_path, best_tokens=0)
