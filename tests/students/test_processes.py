"""Several processes train what one trains, up to rounding, and fail together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.processes import ALONE, Processes
from tests.student_processes import (
    CASES,
    LEARNING_RATE,
    fail,
    launch,
    resume,
    train,
    trained,
)

LAUNCHED = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
LIGHT = """
import sys
from circuitsearch.processes import here
alone = here()
assert alone.gather(lambda: 5) == [5]
assert alone.together(lambda: alone.on_main(lambda: alone.main_first(lambda: 7))) == 7
alone.add_up([])
print(*[name for name in ("torch", "accelerate") if name in sys.modules])
"""


def test_one_process_is_alone_and_imports_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert ALONE.is_main
    assert ALONE.count == 1
    tensor = torch.ones(3)
    ALONE.add_up([tensor])
    assert tensor.tolist() == [1, 1, 1]
    with pytest.raises(DataError):
        ALONE.on_main(lambda: (_ for _ in ()).throw(DataError("it stays what it is")))


def test_a_launcher_says_who_is_who() -> None:
    third = Processes.of(LAUNCHED)
    assert (third.count, third.is_main) == (4, False)
    assert Processes.of(LAUNCHED | {"RANK": "0"}).is_main
    # what some clusters set for a whole machine, or a launcher of one process
    for changed in ({"RANK": ""}, {"LOCAL_RANK": "x"}, {"WORLD_SIZE": "1", "RANK": "0"}):
        assert Processes.of(LAUNCHED | changed).count == 1
    assert Processes.of({"WORLD_SIZE": "4"}).count == 1


def test_several_are_refused_where_one_must_work() -> None:
    ALONE.refuse("circuitsearch run")
    with pytest.raises(ConfigError, match=r"circuitsearch run: started as 4 processes .*worker"):
        Processes.of(LAUNCHED).refuse("circuitsearch run")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Processes.of(LAUNCHED)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [ALONE.device(asked) for asked in ("auto", "cpu", "cuda:1")] == ["cuda", "cpu", "cuda:1"]
    assert [second.device(asked) for asked in ("auto", "cuda", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cpu",
    ]
    with pytest.raises(ConfigError, match="device: got 'cuda:0' for 4 processes"):
        second.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU of its own"):
        second.device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert second.device("auto") == ALONE.device("auto") == "cpu"


@given(st.integers(0, 40), st.integers(1, 9))
def test_parts_are_the_whole_in_order(size: int, count: int) -> None:
    parts = [Processes(index, count).part(range(size)) for index in range(count)]
    assert [one for part in parts for one in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.fixture(scope="module")
def together(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders in which two and three processes trained every case."""
    folders = {}
    for count in (2, 3):
        folders[count] = tmp_path_factory.mktemp(f"of{count}")
        codes, _ = launch(count, train, tiny_folder, folders[count])
        assert codes == [0] * count
    return folders


def _left(path: Path) -> tuple[dict[str, Tensor], list[Any]]:
    """Return the weights that a process left, and what it was told of the losses."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(  # noqa: SIM118
            file.metadata()["told"]
        )


@pytest.mark.parametrize("case", CASES)
def test_several_processes_train_what_one_trains(
    together: dict[int, Path], tiny_folder: Path, tmp_path: Path, case: str
) -> None:
    """With 3 processes and batches of 5, 7, 2 and 1: uneven parts, and processes without any."""
    alone, result = trained(tiny_folder, tmp_path, case, ALONE)
    for count, folder in together.items():
        weights, (loss, told) = _left(folder / f"{case}-0.safetensors")
        assert loss == pytest.approx(result.loss, rel=1e-6)
        assert told == pytest.approx(dict(result.weights), rel=1e-6)
        for index in range(1, count):  # bit for bit: they never drift apart
            other, said = _left(folder / f"{case}-{index}.safetensors")
            assert all(torch.equal(weights[name], other[name]) for name in weights)
            assert said == [loss, told]
        _equal_up_to_rounding(alone, weights)


def _equal_up_to_rounding(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        # a bias of keys shifts all scores of a query alike: its gradient is rounding, and
        # AdamW makes steps of full size of whatever is left
        bound = 8 * LEARNING_RATE if name.endswith("k_proj.bias") else LEARNING_RATE / 100
        assert (tensor - other[name]).abs().max() < bound, name


def test_the_comparison_would_notice_other_batches(tiny_folder: Path, tmp_path: Path) -> None:
    one, _ = trained(tiny_folder, tmp_path, "balanced", ALONE)
    other, _ = trained(tiny_folder, tmp_path, "balanced", ALONE, seed=2)
    gaps = {name: float((one[name] - other[name]).abs().max()) for name in one}
    assert min(gaps.values()) > LEARNING_RATE / 100


def test_resumed_together_bit_for_bit(
    together: dict[int, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    codes, _ = launch(2, resume, tiny_folder, tmp_path, 5)
    assert codes == [0, 0]
    whole, _ = _left(together[2] / "balanced-0.safetensors")
    for index in range(2):
        with safe_open(tmp_path / f"resumed-{index}.safetensors", framework="pt") as file:
            assert all(torch.equal(file.get_tensor(name), whole[name]) for name in whole)
    # the number of processes is no part of what a training is: one goes on with what two began
    steps: list[int] = []
    goes_on, _ = trained(
        tiny_folder,
        tmp_path / "features",
        "balanced",
        ALONE,
        state_file=tmp_path / "half.safetensors",
        on_step=lambda report: steps.append(report.step),
    )
    assert steps == [5, 6, 7, 8]
    _equal_up_to_rounding(goes_on, whole)


def test_they_fail_together_and_at_once(tiny_folder: Path, tmp_path: Path) -> None:
    codes, seconds = launch(3, fail, tiny_folder, tmp_path)
    assert codes == [0, 9, 0]
    assert seconds < 50

    def said(way: str, index: int) -> dict[str, Any]:
        return dict(json.loads((tmp_path / f"{way}-{index}.json").read_text()))

    divided = [said("in a step", index) for index in range(3)]
    assert [one["kind"] for one in divided] == [
        "CircuitSearchError", "ZeroDivisionError", "CircuitSearchError"
    ]  # fmt: skip
    assert divided[0]["text"].startswith("process 1: ZeroDivisionError: ")
    assert divided[2]["text"] == divided[0]["text"]
    for way in ("on the main process", "of a reader", "between meetings", "of all"):
        for index in range(3):
            one = said(way, index)
            assert (one["kind"], one["text"]) == ("DataError", "the disk is full"), way
    for index in range(3):
        one = said("other seeds", index)
        assert one["kind"] == "ConfigError"
        assert "do not train the same" in one["text"]
        one = said("other states", index)
        assert one["kind"] == "DataError"
        assert "the processes read different states there" in one["text"]
    for index in (0, 2):
        one = said("not a word", index)
        assert one["kind"] == "CircuitSearchError"
        assert "one of 3 ended without a word" in one["text"]
        assert one["seconds"] < 30
    assert not (tmp_path / "not a word-1.json").exists()
