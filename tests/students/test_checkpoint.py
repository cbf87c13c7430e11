"""Students on disk: the round trip is exact, and damaged folders are refused."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    MBartForCausalLM,
    VisionEncoderDecoderModel,
)

from circuitsearch.core.errors import ConfigError, DataError, PlanError, StorageError
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.students import CardFacts, build_student, load_student, plan_of, save_student
from circuitsearch.students.saving.stock import stock_problems, stock_student
from circuitsearch.teacher.decoders import residual_decoder, run
from circuitsearch.teacher.loading import Teacher, load_teacher
from tests.student_fixtures import any_replacements
from tests.tiny import tiny_checkpoint, tiny_pages

PLAN = Plan.parse("M0:9 C2 S3[0-1] C3[1,3]")


@pytest.fixture
def folder(tiny_teacher: Teacher, tmp_path: Path) -> Path:
    return save_student(build_student(tiny_teacher, PLAN), tiny_teacher, tmp_path / "student")


@pytest.mark.parametrize(
    "text",
    [
        str(PLAN),
        "C0 M0",
        "S1",
        "",
        "S0=linear M0=mean C1=linear C3=alone",
        "M2=mean",
        "M0=token S1 C3",
    ],
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


def test_all_files_are_as_readable_as_an_ordinary_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    ordinary = stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {ordinary}


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


def test_a_save_that_breaks_off_leaves_no_mixture(
    tiny_teacher: Teacher, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = build_student(tiny_teacher, Plan.parse("C0 C1"))
    moved = Path.replace

    def breaks(file: Path, target: Path) -> Path:
        if file.name == "model.safetensors":
            raise OSError("pulled out")
        return moved(file, target)

    monkeypatch.setattr(Path, "replace", breaks)
    with pytest.raises(StorageError, match="pulled out"):
        save_student(student, tiny_teacher, folder)
    with pytest.raises(ConfigError, match=r"there is no config\.json"):
        load_student(folder)


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
    with pytest.raises(ConfigError, match=rf"{tiny_folder.name}.*carries no plan; give a student"):
        load_student(tiny_folder)


def test_a_plan_that_is_no_plan_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["decoder"]["plan"] = ["S0", "C0", "M0", "C3"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="layer 0: got 'S0', allowed is what it keeps by part"):
        load_student(folder)


def test_a_damaged_table_of_tokens_is_refused(tiny_teacher: Teacher, tmp_path: Path) -> None:
    fitted = any_replacements(tiny_teacher.shape.decoder)
    student = build_student(tiny_teacher, Plan.parse("C0=token C3"), replacements=fitted)
    student.decoder.model.decoder.token_map[7] = 106  # one beyond the vocabulary
    with pytest.raises(DataError, match="table of tokens is damaged"):
        load_student(save_student(student, tiny_teacher, tmp_path / "s"))


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


# What a user without circuitsearch would run: one line of JSON per folder.
ELSEWHERE = """
import json, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "circuitsearch":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Block())
try:
    import circuitsearch
except ModuleNotFoundError:
    pass
else:
    sys.exit("circuitsearch can be imported")
import torch
from transformers import AutoModelForImageTextToText, DonutProcessor
pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(5)) * 2 - 1
for folder in sys.argv[1:]:
    processor = DonutProcessor.from_pretrained(folder)
    prompt = "<s_docvqa><s_question>What?</s_question><s_answer>"
    ids = processor.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    trusted = "stock" not in folder
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=trusted)
    def ask(rows, **given):
        start = ids.expand(len(rows), -1)
        return model.generate(rows, decoder_input_ids=start, max_new_tokens=30, **given).tolist()
    written = {
        "greedy": ask(pixels, min_new_tokens=20),
        "uncached": ask(pixels, min_new_tokens=20, use_cache=False),
        "single": [ask(pixels[i : i + 1], min_new_tokens=20)[0] for i in range(2)],
        "beam": ask(pixels, min_new_tokens=20, num_beams=3),
        "beam uncached": ask(pixels, min_new_tokens=20, num_beams=3, use_cache=False),
        "beam single": [ask(one[None], min_new_tokens=20, num_beams=3)[0] for one in pixels],
    }
    print(json.dumps({"module": type(model.decoder).__module__, "written": written}))
assert not [name for name in sys.modules if name.split(".")[0] == "circuitsearch"]
"""

TRAVELLING = [
    str(PLAN),
    "C0 M0 S1 C1 M1 S2 C2 M2 S3 C3 M3",  # S0 removed
    "C0 M0 C1 C3 M3",  # no self-attention left
    "S2[3] C1[0]",  # one head left of each
    "S0=linear M0=mean C1=linear S2 C3=alone",
    "M0=token S1 C3 M3",
]


STOCK = {
    "S0 C0 M0 S1 C1 M1 S2 C2 M2 S3 C3 M3": 4,
    "S1 C1 M1 S2 C2 M2": 2,  # first and last layer removed
    "S0 C0 M0:9 S3 C3 M3:9": 2,
}


@pytest.fixture(scope="module")
def elsewhere(
    tiny_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Students by plan: their moved folder, and what a Python without circuitsearch says of it."""
    fitted = any_replacements(tiny_teacher.shape.decoder)
    place, moved = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("moved")
    copies = {}
    for index, text in enumerate([*TRAVELLING, *STOCK]):
        student = build_student(tiny_teacher, Plan.parse(text), replacements=fitted)
        # what an older checkpoint left there must not mislead
        saved = save_student(student, tiny_teacher, place / "student")
        if text in STOCK:
            save_student(student, tiny_teacher, saved, stock="auto")
        name = f"{'stock' if text in STOCK else 'student'}-{index}"
        copies[text] = shutil.copytree(saved, moved / name)
        shutil.rmtree(saved)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, *map(str, copies.values())],
        env=os.environ | {"HF_MODULES_CACHE": str(moved / "modules"), "HF_HUB_OFFLINE": "1"},
        cwd=moved,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {text: (copy, line) for (text, copy), line in zip(copies.items(), lines, strict=True)}


def _written(model: Any, teacher: Teacher) -> dict[str, list[list[int]]]:
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(5)) * 2 - 1
    ids = torch.tensor([teacher.tokens.prompt_ids("What?")] * 2)

    def ask(**given: Any) -> list[list[int]]:
        made = model.generate(
            pixels, decoder_input_ids=ids, max_new_tokens=30, min_new_tokens=20, **given
        )
        written: list[list[int]] = made.tolist()
        return written

    return {"greedy": ask(), "beam": ask(num_beams=3)}


@pytest.mark.parametrize("text", TRAVELLING)
def test_answers_the_same_where_circuitsearch_is_not_installed(
    tiny_teacher: Teacher, elsewhere: dict[str, tuple[Path, dict[str, Any]]], text: str
) -> None:
    _, answer = elsewhere[text]
    assert answer["module"].startswith("transformers_modules.")
    written = answer["written"]
    assert written["greedy"] == written["uncached"] == written["single"]
    assert written["beam"] == written["beam uncached"] == written["beam single"]
    fitted = any_replacements(tiny_teacher.shape.decoder)
    expected = _written(
        build_student(tiny_teacher, Plan.parse(text), replacements=fitted), tiny_teacher
    )
    assert {name: written[name] for name in expected} == expected


def test_remote_code_leaves_the_installed_classes_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a session that has circuitsearch, somebody trusts a folder's own code all the same."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    # first: a cache that another test has put there would be looked into instead
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in [one for one in sys.modules if one.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    assert type(model.decoder).__module__.startswith("transformers_modules.")
    assert plan_of(load_student(folder)) == PLAN
    assert AutoModelForImageTextToText.from_pretrained(folder).decoder.config.plan_text == str(PLAN)


@pytest.mark.parametrize("text", STOCK)
def test_a_uniform_plan_becomes_a_stock_model(
    tiny_teacher: Teacher, elsewhere: dict[str, tuple[Path, dict[str, Any]]], text: str
) -> None:
    folder, answer = elsewhere[text]
    assert not list(folder.glob("*.py"))
    config = json.loads((folder / "config.json").read_text())
    assert config["decoder"]["model_type"] == "mbart"
    assert config["decoder"]["plan_text"] == text
    assert "auto_map" not in config
    assert answer["module"] == "transformers.models.mbart.modeling_mbart"
    expected = _written(build_student(tiny_teacher, Plan.parse(text)), tiny_teacher)
    assert {name: answer["written"][name] for name in expected} == expected
    loaded = load_teacher(str(folder))  # and circuitsearch can ask it too
    assert loaded.shape.decoder.layers == STOCK[text]
    with pytest.raises(ConfigError, match=r"stock model.*load_teacher"):
        load_student(folder)
    stock = load_student(folder, stock=True)
    assert type(stock.decoder) is MBartForCausalLM
    assert plan_of(stock) == Plan.parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("S0 C0 M0 C1 M1", "layer 1 self_heads is 0, the stock class has 4"),
        ("S0 C0[1] M0", "layer 0 cross_heads is 1, the stock class has 4"),
        ("S0 C0 M0:9 S1 C1 M1", "widths differ (9 in layer 0, 64 in layer 1)"),
        ("S0 C0=alone M0", "layer 0 cross_heads is alone"),
        ("S0 C0 M0=mean", "layer 0 ffn is mean"),
        ("S0 C0", "layer 0 ffn is 0"),
        ("", "no layer is left"),
    ],
)
def test_other_plans_say_why_they_are_no_stock_model(
    tiny_teacher: Teacher, tmp_path: Path, text: str, reason: str
) -> None:
    fitted = any_replacements(tiny_teacher.shape.decoder)
    student = build_student(tiny_teacher, Plan.parse(text), replacements=fitted)
    assert any(reason in problem for problem in stock_problems(student.decoder.config))
    with pytest.raises(PlanError, match="as a stock model"):
        stock_student(student)
    target = save_student(student, tiny_teacher, tmp_path / "s", stock="auto")
    assert plan_of(load_student(target)) == Plan.parse(text)
    card = (target / "README.md").read_text().replace("\\", "")
    assert "The stock class cannot express this plan" in card
    assert reason in card


def test_the_card_says_what_is_known(tiny_teacher: Teacher, tmp_path: Path) -> None:
    student = build_student(tiny_teacher, PLAN)
    evil = "<script>|`[a](http://b)`\n# x"
    facts = CardFacts(
        measurement=Measurement(
            plan=str(PLAN),
            plan_hash=PLAN.hash,
            phase="full",
            loss=0.25,
            quality=0.8125,
            quality_low=0.75,
            quality_high=0.875,
            exact=0.5,
            examples=41,
            seed=3,
            steps=300,
            source="user",
            families={evil: 0.5},
        ),
        scored_on="final",
        data={"source": evil},
        training={"steps": 300, "losses": (("kl", 1.0), ("ce", "balanced"))},
        seeds=[3],
        command="circuitsearch run ```x.yaml",
    )
    saved = save_student(student, tiny_teacher, tmp_path / "s", facts=facts)
    card = (saved / "README.md").read_text()
    for wanted in ("0.812 (95 % interval 0.750 to 0.875)", "| seeds | 3 |", "| questions | 41 |"):
        assert wanted in card
    for wanted in ("| steps | 300 |", "| losses | kl 1.0, ce balanced |"):
        assert wanted in card
    assert f"`{PLAN}`" in card
    assert tiny_teacher.fingerprint in card
    assert "````\ncircuitsearch run ```x.yaml\n````" in card
    assert "<script>" not in card
    assert "http://b" not in card
    for accounting in ("paper", "cached"):
        from circuitsearch.core.cost import cost

        made = cost(PLAN, tiny_teacher.shape, accounting).scopes["decoder"]
        assert f"| {accounting} | decoder | {made.parameters:,} | {made.macs:,} |" in card
    # a table row is one line, whatever is in it
    rows = [line for line in card.splitlines() if "&lt;script" in line]
    assert len(rows) == 2
    assert all(line.startswith("| ") and line.endswith(" |") for line in rows)


def test_the_cards_own_example_runs(tiny_teacher: Teacher, folder: Path, tmp_path: Path) -> None:
    card = (folder / "README.md").read_text()
    blocks = [block.split("```")[0] for block in card.split("```python\n")[1:]]
    plain = next(block for block in blocks if "AutoModel" in block and "remote" not in block)
    tiny_pages(1)[0].image().save(tmp_path / "page.png")
    code = plain.replace('"STUDENT"', repr(str(folder)))
    code = code.replace('"page.png"', repr(str(tmp_path / "page.png")))
    names: dict[str, Any] = {}
    exec(code, names)
    pixels = tiny_teacher.pixel_values([tiny_pages(1)[0].image()])
    ids = torch.tensor([tiny_teacher.tokens.prompt_ids("What is the total?")])
    expected = load_student(folder).generate(pixels, decoder_input_ids=ids)
    assert torch.equal(names["ids"], expected)


def test_the_working_folder_is_a_folder_like_others(
    tiny_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_student(build_student(tiny_teacher, PLAN), tiny_teacher, ".")
    assert plan_of(load_student(tmp_path)) == PLAN
