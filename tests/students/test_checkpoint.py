"""Students on disk: the round trip is exact, and damaged folders are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, VisionEncoderDecoderModel

from circuitsearch.core.errors import ConfigError, DataError, StorageError
from circuitsearch.core.plan import Plan
from circuitsearch.students import build_student, load_student, plan_of, save_student
from circuitsearch.teacher.decoders import residual_decoder, run
from circuitsearch.teacher.loading import Teacher, load_teacher
from tests.student_fixtures import any_replacements
from tests.tiny import tiny_checkpoint

PLAN = Plan.parse("M0:9 C2 S3[0-1] C3[1,3]")


@pytest.fixture
def folder(tiny_teacher: Teacher, tmp_path: Path) -> Path:
    return save_student(build_student(tiny_teacher, PLAN), tiny_teacher, tmp_path / "student")


@pytest.mark.parametrize(
    "text", [str(PLAN), "C0 M0", "S1", "", "S0=linear M0=mean C1=linear C3=alone", "M2=mean"]
)
def test_round_trip_is_exact(tiny_teacher: Teacher, tmp_path: Path, text: str) -> None:
    fitted = any_replacements(tiny_teacher.shape.decoder)
    student = build_student(tiny_teacher, Plan.parse(text), replacements=fitted)
    loaded = load_student(save_student(student, tiny_teacher, tmp_path / "s"))
    assert plan_of(loaded) == Plan.parse(text)
    assert not loaded.training
    assert loaded.generation_config.to_diff_dict() == student.generation_config.to_diff_dict()
    ours, theirs = student.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([tiny_teacher.tokens.prompt_ids("Which?")])
    with torch.no_grad():
        one = student(pixel_values=pixels, decoder_input_ids=ids).logits
        other = loaded(pixel_values=pixels, decoder_input_ids=ids).logits
    assert float((one - other).abs().max()) == 0.0  # same numbers, same operations


def test_an_encoder_of_another_width_keeps_its_projection(tmp_path: Path) -> None:
    teacher = load_teacher(str(tiny_checkpoint(tmp_path / "t", encoder_embed=24)))
    student = build_student(teacher, PLAN)
    assert student.enc_to_dec_proj is teacher.model.enc_to_dec_proj
    loaded = load_student(save_student(student, teacher, tmp_path / "s"))
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([teacher.tokens.prompt_ids("Which?")])
    view = residual_decoder(student)
    with torch.no_grad():
        one = student(pixel_values=pixels, decoder_input_ids=ids).logits
        other = loaded(pixel_values=pixels, decoder_input_ids=ids).logits
        viewed = run(view, ids, view.memory(teacher.encode(pixels)))
    assert torch.equal(one, other)
    # the view sums in another order
    torch.testing.assert_close(viewed, one, atol=1e-5, rtol=1e-5)


def test_folder_holds_what_a_checkpoint_needs(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json", "circuitsearch.json"} <= names
    config = json.loads((folder / "config.json").read_text())
    assert config["decoder"]["model_type"] == "circuit_mbart"
    assert config["decoder"]["plan_text"] == str(PLAN)
    assert not list(folder.parent.glob(".*.tmp"))
    assert not list(folder.rglob("*.bin"))


def test_auto_classes_load_the_folder(tiny_teacher: Teacher, folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert isinstance(model, VisionEncoderDecoderModel)
    assert plan_of(model) == PLAN
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a").input_ids == tiny_teacher.tokens.tokenizer("a").input_ids


def test_loads_as_a_teacher_with_its_prompt(tiny_teacher: Teacher, folder: Path) -> None:
    teacher = load_teacher(str(folder))
    assert teacher.prompt == tiny_teacher.prompt
    assert teacher.max_length == tiny_teacher.max_length
    assert teacher.decoder.sublayers == PLAN.sublayers


def test_saving_again_replaces_the_student(tiny_teacher: Teacher, folder: Path) -> None:
    other = Plan.parse("C0")
    save_student(build_student(tiny_teacher, other), tiny_teacher, folder)
    assert plan_of(load_student(folder)) == other


def test_saves_students_only(tiny_teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="carries no plan"):
        save_student(tiny_teacher.model, tiny_teacher, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_an_unwritable_folder_is_a_storage_error(tiny_teacher: Teacher, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write the student"):
        save_student(build_student(tiny_teacher, PLAN), tiny_teacher, tmp_path / "file" / "s")


def test_missing_and_foreign_folders_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_student(tmp_path)
    with pytest.raises(ConfigError, match="carries no plan"):
        load_student(tiny_folder)


def test_damaged_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be loaded"):
        load_student(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ffn": 8}, "cannot be loaded|disagree"),
        ({"self_heads": 1}, "disagree on 10 tensors"),  # weights of a new S0 are missing
        ({"ffn": 0}, "disagree on 6 tensors"),  # weights of M0 are left over
        ({"ffn": 999}, "allowed are 0 to 64"),
        ({"ffn": "mean"}, "disagree on 7 tensors"),  # six of M0 left over, its constant missing
        ({"ffn": "alone"}, "allowed are 0 to 64 and mean, linear"),
    ],
)
def test_weights_of_another_plan_are_refused(
    folder: Path, changes: dict[str, int | str], message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["decoder"]["plan"][0].update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=message):
        load_student(folder)
