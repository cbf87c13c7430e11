"""ONNX files answer as the model does, also where nothing but onnxruntime and tokenizers is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from circuitsearch.answer import read_page
from circuitsearch.cli.main import app
from circuitsearch.core.components import Kind
from circuitsearch.core.cost import Generation
from circuitsearch.core.errors import ConfigError, DataError, StorageError
from circuitsearch.core.plan import Plan
from circuitsearch.students import build_student, save_student
from circuitsearch.students.decoding import Limits, greedy_ids
from circuitsearch.students.export import files as onnx_export
from circuitsearch.students.export.answers import FORMAT, OnnxStudent
from circuitsearch.students.export.check import TOLERANCE, compare_onnx
from circuitsearch.students.export.files import export_onnx
from circuitsearch.students.export.graphs import DecoderGraph, EncoderGraph, remembering
from circuitsearch.students.export.timing import onnx_memory, onnx_speed
from circuitsearch.teacher.answering import generate_answers
from circuitsearch.teacher.loading import Teacher, load_teacher
from circuitsearch.teacher.tokens import PromptFormat
from tests.student_fixtures import any_replacements
from tests.tiny import tiny_checkpoint, tiny_pages

# S0 removed, heads that differ by layer, a narrow width, every replacement that has numbers
PLAN = "M0:9 C1=linear S1[0-1] C2 M2=mean S3 C3[1,3]"

PLANS = [
    "S0 C0 M0 S1 C1 M1 S2 C2 M2 S3 C3 M3",
    PLAN,
    "C0 M0 C1 C3 M3",  # no self-attention left: no past at all
    "S2[3] C1[0]",  # one head left of each
    "S0 M3:1",  # nothing reads the page
    "S0=mean C0=alone M1=linear S2=linear",
    "C0=token S1 C3 M3",
    "",
]


def _student(teacher: Teacher, text: str) -> object:
    fitted = any_replacements(teacher.shape.decoder)
    return build_student(teacher, Plan.parse(text), replacements=fitted)


@pytest.fixture(scope="module")
def folders(tiny_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student's folder and its export; treat as read-only."""
    folder = tmp_path_factory.mktemp("export")
    save_student(_student(tiny_teacher, PLAN), tiny_teacher, folder / "student")
    exported = export_onnx(load_teacher(str(folder / "student")), folder / "onnx")
    return folder / "student", exported


@pytest.fixture(scope="module")
def asked() -> tuple[list[Image.Image], list[tuple[int, str]]]:
    """Pages, and questions of unequal length about them."""
    pages = tiny_pages(3)
    questions = [(i, one.text) for i, page in enumerate(pages) for one in page.questions]
    return [page.image() for page in pages], [*questions, (0, "?")]


@pytest.mark.parametrize("text", PLANS)
def test_graphs_equal_one_forward_at_any_cut(tiny_teacher: Teacher, text: str) -> None:
    """The oracle is the model without a cache; the graphs see the tokens in three pieces."""
    model = _student(tiny_teacher, text)
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ids = torch.randint(4, 100, (2, 9), generator=torch.Generator().manual_seed(2))
    decoder = DecoderGraph(model.decoder)
    with torch.no_grad():
        whole = model(pixel_values=pixels, decoder_input_ids=ids, use_cache=False).logits
        states, *page = EncoderGraph(model)(pixels)
        heads = remembering(model.decoder, Kind.SELF).values()
        own = [torch.zeros(2, count, 0, width) for count, width in heads for _ in range(2)]
        for first, last in ((0, 4), (4, 5), (5, 9)):
            logits, *own = decoder(ids[:, first:last], torch.arange(first, last), own, page)
            # sums in another order; a wrong position or mask is off by more than 1e-2
            torch.testing.assert_close(logits, whole[:, last - 1], atol=2e-5, rtol=1e-5)
    kept = [(one, keep.replacement) for one, keep in Plan.parse(text).kept]
    assert len(own) == 2 * sum(one.kind is Kind.SELF and name is None for one, name in kept)
    reading = [one for one, name in kept if one.kind is Kind.CROSS and name in (None, "alone")]
    assert len(page) == 2 * len(reading)
    assert all(tensor.shape[2] == 9 for tensor in own)
    assert torch.equal(states, tiny_teacher.encode(pixels))


def test_files_answer_as_pytorch_does(
    folders: tuple[Path, Path], asked: tuple[list[Image.Image], list[tuple[int, str]]]
) -> None:
    teacher = load_teacher(str(folders[0]))
    rows = compare_onnx(teacher, folders[1], *asked)
    assert [row.question for row in rows] == [question for _, question in asked[1]]
    assert all(row.equal for row in rows), rows
    assert max(row.difference for row in rows) > 0  # two programs: something was compared


def test_long_texts_batches_and_single_rows_choose_the_same_tokens(
    folders: tuple[Path, Path], asked: tuple[list[Image.Image], list[tuple[int, str]]]
) -> None:
    """Without end tokens every row runs to the last position, on pages that rows share."""
    teacher, files = load_teacher(str(folders[0])), OnnxStudent(folders[1], threads=1)
    limits = files.manifest["limits"]
    limits["ends"], limits["forbidden"] = [], [0]
    images, questions = asked
    pages, prompts = [p for p, _ in questions], [files.prompt_ids(q) for _, q in questions]
    assert prompts == [teacher.tokens.prompt_ids(q) for _, q in questions]
    read = files.read(files.pixels(images))
    together = [one.ids for one in files.greedy(read, pages, prompts)]
    alone = []
    for page, prompt in zip(pages, prompts, strict=True):
        own = {name: value[[page]] for name, value in read.items()}
        alone += [one.ids for one in files.greedy(own, [0], [prompt])]
    states = teacher.encode(teacher.pixel_values(images))
    expected = greedy_ids(
        teacher.model.decoder,
        states,
        torch.tensor(pages),
        prompts,
        Limits(limits["length"], ends=(), forbidden=(0,)),
    )
    assert together == alone == expected
    assert {len(ids) + len(p) for ids, p in zip(together, prompts, strict=True)} == {
        limits["length"]
    }
    assert len({tuple(ids) for ids in together}) > 1


def test_pixels_are_the_processors(
    folders: tuple[Path, Path], tiny_teacher: Teacher, tmp_path: Path
) -> None:
    files, processor = OnnxStudent(folders[1]), tiny_teacher.processor.image_processor
    rng = np.random.default_rng(0)
    sizes = [(32, 48), (7, 90), (90, 7), (31, 31), (200, 210), (64, 96)]
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
    expected = processor(images, return_tensors="np")["pixel_values"]
    assert np.array_equal(files.pixels(images), expected)  # the same operations, so the same bits
    for settings in (
        {"do_align_long_axis": True},
        {"resample": 3},
        {"do_normalize": False},
        {"resample": 0},
        {"do_rescale": False},
    ):
        other = type(processor)(**{**processor.to_dict(), **settings})
        how = {
            "align_long_axis": other.do_align_long_axis,
            "resample": int(other.resample),
            "mean": list(other.image_mean) if other.do_normalize else None,
            "rescale": other.rescale_factor if other.do_rescale else None,
        }
        files.manifest["image"] |= how
        expected = other(images, return_tensors="np")["pixel_values"]
        assert np.array_equal(files.pixels(images), expected), settings
        files = OnnxStudent(folders[1])


@pytest.mark.parametrize("kind", ["rotated", "transparent", "sixteen bits"])
def test_page_files_of_any_kind_are_read_as_a_search_reads_them(
    folders: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    rng = np.random.default_rng(0)
    drawn, path = rng.integers(0, 256, (40, 60, 4), np.uint8), tmp_path / "page.png"
    if kind == "rotated":
        turned = Image.Exif()
        turned[0x0112] = 6
        Image.fromarray(drawn[..., :3]).save(path, exif=turned)
    elif kind == "transparent":
        Image.fromarray(drawn).save(path)
    else:
        Image.fromarray(drawn[..., 0].astype(np.uint16) * 257).save(path)
    files = OnnxStudent(folders[1])
    with Image.open(path) as opened:
        assert np.array_equal(files.pixels([opened]), files.pixels([read_page(path)]))


def test_a_parse_keeps_its_tags(tiny_teacher: Teacher, tmp_path: Path) -> None:
    prompt = PromptFormat(template="<s_docvqa><s_answer>")
    tokens = replace(tiny_teacher.tokens, prompt=prompt)
    teacher = replace(tiny_teacher, prompt=prompt, tokens=tokens)
    export_onnx(teacher, tmp_path / "files")
    files = OnnxStudent(tmp_path / "files")
    ids = teacher.tokens.answer_ids("<s_question>12</s_question>")[:-2]
    assert files.text(ids) == teacher.tokens.text(ids) != ""
    assert "<s_question>" in files.text(ids)
    card = save_student(build_student(teacher, Plan.parse("S1 C3")), teacher, tmp_path / "s")
    assert "token2json(" in (card / "README.md").read_text()


def test_manifest_describes_the_graphs(folders: tuple[Path, Path]) -> None:
    manifest = json.loads((folders[1] / "manifest.json").read_text())
    assert manifest["format"] == FORMAT
    assert manifest["model"]["plan"] == str(Plan.parse(PLAN))
    for graph in manifest["graphs"].values():
        held = onnx.load(folders[1] / graph["file"])
        onnx.checker.check_model(held)
        for ours, theirs in (
            (graph["inputs"], held.graph.input),
            (graph["outputs"], held.graph.output),
        ):
            assert [one["name"] for one in ours] == [one.name for one in theirs]
            for one, other in zip(ours, theirs, strict=True):
                dims = [dim.dim_param or dim.dim_value for dim in other.type.tensor_type.shape.dim]
                fixed = [(a, b) for a, b in zip(one["shape"], dims, strict=True) if a != b]
                # what varies has a name in both, spelt in whatever way in the graph
                assert all(isinstance(a, str) and isinstance(b, str) for a, b in fixed)
        # nothing of the machine that wrote it
        assert str(Path(__file__).parents[2]).encode() not in held.SerializeToString()
    decoder = {one["name"]: one["shape"] for one in manifest["graphs"]["decoder"]["inputs"]}
    assert decoder["S1.keys"] == ["batch", 2, "past", 8]
    assert decoder["S3.values"] == ["batch", 4, "past", 8]
    assert decoder["C3.keys"] == ["batch", 2, 24, 8]
    absent = ("S0.keys", "S2.keys", "C0.keys", "C1.keys")
    assert not {*absent} & {*decoder}


def test_files_answer_with_onnxruntime_and_tokenizers_only(
    folders: tuple[Path, Path],
    asked: tuple[list[Image.Image], list[tuple[int, str]]],
    tmp_path: Path,
) -> None:
    shutil.copytree(folders[1], tmp_path / "moved")
    asked[0][0].save(tmp_path / "page.png")
    teacher = load_teacher(str(folders[0]))
    question = "What is the date?"
    pixels = teacher.pixel_values(asked[0][:1])
    expected = generate_answers(teacher.model, teacher.tokens, pixels, [0], [question])[0]
    blocked = ("torch", "transformers", "circuitsearch", "onnx", "safetensors")
    code = f"""
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Block())
for name in {blocked!r}:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(name + " can be imported")
sys.argv = ["answer_onnx.py", "page.png", {question!r}]
runpy.run_path("moved/answer_onnx.py", run_name="__main__")
assert not {{*{blocked!r}}} & {{*sys.modules}}
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected
    assert expected  # an empty answer would prove little


def test_the_encoders_graph_projects_where_widths_differ(tmp_path: Path) -> None:
    """Any Donut can be exported, whole and without a plan too."""
    teacher = load_teacher(str(tiny_checkpoint(tmp_path / "t", encoder_embed=24)))
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ids = torch.randint(4, 100, (2, 5), generator=torch.Generator().manual_seed(2))
    heads = remembering(teacher.model.decoder, Kind.SELF).values()
    own = [torch.zeros(2, count, 0, width) for count, width in heads for _ in range(2)]
    with torch.no_grad():
        whole = teacher.model(pixel_values=pixels, decoder_input_ids=ids, use_cache=False).logits
        states, *page = EncoderGraph(teacher.model)(pixels)
        logits, *_ = DecoderGraph(teacher.model.decoder)(ids, torch.arange(5), own, page)
    assert torch.equal(states, teacher.encode(pixels))
    torch.testing.assert_close(logits, whole[:, -1], atol=2e-5, rtol=1e-5)


def test_other_weights_are_told_apart(
    folders: tuple[Path, Path],
    tiny_teacher: Teacher,
    asked: tuple[list[Image.Image], list[tuple[int, str]]],
) -> None:
    rows = compare_onnx(tiny_teacher, folders[1], *asked)
    assert all(row.difference > TOLERANCE for row in rows)
    assert not any(row.equal for row in rows)


def test_the_command_fails_where_they_differ(
    folders: tuple[Path, Path],
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The files of a student stand in for those of its teacher."""
    monkeypatch.setattr(onnx_export, "export_onnx", lambda *args, **options: folders[1])
    page = tmp_path / "page.png"
    tiny_pages(1)[0].image().save(page)
    arguments = ["export", str(tiny_folder), str(tmp_path / "o"), "--check", str(page)]
    done = CliRunner().invoke(app, [*arguments, "--question", "Who?"])
    assert done.exit_code == 1
    assert "0 of 1 answers equal" in done.stderr
    assert "NO" in done.stderr
    for wrong, message in (
        (arguments, "needs --question"),
        ([*arguments, "--question", " "], "it is empty"),
        ([*arguments[:3], "--question", "Who?"], "goes with --check PAGE"),
        ([*arguments[:4], str(tmp_path / "none.png"), "--question", "Who?"], "no such file"),
    ):
        done = CliRunner().invoke(app, wrong)
        assert done.exit_code == 2, done.output
        assert message in done.stderr


def test_what_cannot_be_exported_is_named_together(tiny_folder: Path, tmp_path: Path) -> None:
    teacher = load_teacher(str(tiny_folder))
    teacher.model.generation_config.bad_words_ids = [[3], [4, 5]]
    teacher.model.generation_config.repetition_penalty = 1.2
    with pytest.raises(ConfigError, match=r"(?s)opset: got 9.*forbids 1 seq.*repetition_penalty"):
        export_onnx(teacher, tmp_path / "onnx", opset=9)
    assert not (tmp_path / "onnx").exists()


def test_an_unwritable_folder_is_a_storage_error(tiny_teacher: Teacher, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write the export"):
        export_onnx(tiny_teacher, tmp_path / "file" / "onnx")


def test_damaged_exports_and_long_questions_are_refused(
    folders: tuple[Path, Path],
    asked: tuple[list[Image.Image], list[tuple[int, str]]],
    tmp_path: Path,
) -> None:
    teacher = load_teacher(str(folders[0]))
    with pytest.raises(DataError, match="the prompt takes"):
        compare_onnx(teacher, folders[1], asked[0], [(0, "long " * 40)])
    copied = shutil.copytree(folders[1], tmp_path / "copy")
    (copied / "decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(DataError, match="missing or damaged"):
        compare_onnx(teacher, copied, *asked)
    (copied / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="not written by this version"):
        compare_onnx(teacher, copied, *asked)
    with pytest.raises(DataError, match="Checking the export"):
        compare_onnx(replace(teacher), tmp_path / "nothing", *asked)


def test_pages_and_questions_go_together(
    folders: tuple[Path, Path], asked: tuple[list[Image.Image], list[tuple[int, str]]]
) -> None:
    student = OnnxStudent(folders[1])
    pages, questions = asked[0], [text for _, text in asked[1]]
    rows = [place for place, _ in asked[1]]
    said = student.answer(pages, questions, rows)
    alone = [
        student.answer([pages[row]], [text])[0] for row, text in zip(rows, questions, strict=True)
    ]
    assert said == alone
    assert student.answer(pages, questions[:3]) == student.answer(pages, questions[:3], [0, 1, 2])
    both = student.answer(pages[:1], questions[:2])
    assert both == student.answer(pages[:1], questions[:2], [0, 0])
    assert student.answer([], []) == student.answer(pages, []) == []
    for few, given in ((pages[:2], []), (pages, [0, 1])):
        with pytest.raises(ValueError, match="give each question a page, one page for all, or"):
            student.answer(few, questions, given)


def test_files_are_timed_pass_by_pass(folders: tuple[Path, Path]) -> None:
    _, exported = folders
    found = onnx_speed(exported, Generation(prompt=4, passes=3), threads=1, repetitions=2)
    assert min(found.encoding, found.first_token, found.per_token) > 0
    weights = sum(file.stat().st_size for file in exported.glob("*.onnx*"))
    memory = onnx_memory(exported, Generation(prompt=4, passes=3), threads=1)
    assert memory is not None
    assert weights < memory < 2**30  # the runtime holds the weights, and more
    assert onnx_speed(exported, Generation(prompt=4, passes=1), repetitions=1).per_token == 0
    with pytest.raises(ConfigError, match="the model has room for"):
        onnx_speed(exported, Generation(prompt=4, passes=10_000))
    with pytest.raises(DataError, match="Timing the export"):
        onnx_speed(exported.parent)
