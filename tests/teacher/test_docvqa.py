"""DocVQA's format: real receipts load whole, every kind of fault is named, nothing is lost."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.teacher.documents.docvqa import load_docvqa
from circuitsearch.teacher.documents.images import image_problem, open_image
from circuitsearch.teacher.documents.records import fingerprint
from circuitsearch.teacher.documents.synthetic import rendered_pages
from tests.data_fixtures import Receipts, receipts, write_docvqa, write_receipts  # noqa: F401

Rows = list[dict[str, Any]]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """An annotation file of five rendered pages."""
    return write_docvqa(rendered_pages(5, "docvqa"), tmp_path, "train")


def rows_of(path: Path) -> Rows:
    rows = json.loads(path.read_text(encoding="utf-8"))["data"]
    assert isinstance(rows, list)
    return rows


def change(path: Path, edit: Callable[[Rows], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content["data"])
    path.write_text(json.dumps(content), encoding="utf-8")


# --- real input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_receipts_load_whole(receipts: Receipts, split: str) -> None:  # noqa: F811
    path = receipts.folder / f"{split}.json"
    loaded = load_docvqa(path)
    assert loaded.skipped == ()
    assert len(loaded.pages) == receipts.pages[split]
    assert sum(len(page.questions) for page in loaded.pages) == receipts.questions[split]
    # Oracle: every record of the file, read directly, is there once and word for word.
    expected = {
        (
            str(row["questionId"]),
            row["question"],
            tuple(row["answers"]),
            str(row["docId"]),
            row["image"],
        )
        for row in rows_of(path)
    }
    got = {
        (question.id, question.text, question.answers, page.document, page.id)
        for page in loaded.pages
        for question in page.questions
    }
    assert got == expected


def test_receipt_images_are_the_files(receipts: Receipts) -> None:  # noqa: F811
    pages = load_docvqa(receipts.val, verify=False).pages
    for page in pages[:3]:
        image = page.image()
        with Image.open(receipts.folder / page.id) as direct:
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), np.asarray(direct.convert("RGB")))


def test_receipts_keep_their_fingerprint(receipts: Receipts) -> None:  # noqa: F811
    checked, unchecked = load_docvqa(receipts.val), load_docvqa(receipts.val, verify=False)
    assert fingerprint(checked.pages) == fingerprint(unchecked.pages)
    assert len({page.fingerprint() for page in checked.pages}) == receipts.pages["val"]


def test_truncated_receipt_is_named(receipts: Receipts, tmp_path: Path) -> None:  # noqa: F811
    row = rows_of(receipts.val)[0]
    data = (receipts.folder / row["image"]).read_bytes()
    target = tmp_path / row["image"]
    target.parent.mkdir(parents=True)
    target.write_bytes(data[: len(data) // 2])
    path = tmp_path / "val.json"
    path.write_text(json.dumps({"data": [row]}), encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(row["image"])) as caught:
        load_docvqa(path)
    assert "row 0" in str(caught.value)
    assert "replace the file" in str(caught.value)


def test_stand_in_has_the_receipts_structure(receipts: Receipts, tmp_path: Path) -> None:  # noqa: F811
    stand_in = write_receipts(tmp_path)
    for split in ("train", "val"):
        real = json.loads((receipts.folder / f"{split}.json").read_text(encoding="utf-8"))
        made = json.loads((stand_in.folder / f"{split}.json").read_text(encoding="utf-8"))
        assert made.keys() == real.keys()
        assert {tuple(sorted(row)) for row in made["data"]} == {tuple(sorted(real["data"][0]))}
        assert len(load_docvqa(stand_in.folder / f"{split}.json").pages) == stand_in.pages[split]


# --- what good rows become ----------------------------------------------------------------------


def test_rows_of_one_image_make_one_page_and_keep_their_order(good: Path) -> None:
    change(good, lambda rows: rows.sort(key=lambda row: row["question"]))
    pages = load_docvqa(good).pages
    assert len(pages) == 5
    order = [str(row["questionId"]) for row in rows_of(good)]
    for page in pages:
        places = [order.index(question.id) for question in page.questions]
        assert places == sorted(places)


@pytest.mark.parametrize("written", [417, "417", " 417 ", "00417"])
def test_ids_of_either_type_are_one_id(good: Path, written: object) -> None:
    change(good, lambda rows: rows[0].update(questionId=written, docId=str(rows[0]["docId"])))
    first = load_docvqa(good).pages[0]
    assert first.questions[0].id == "417"
    assert first.document == "1"


def test_ids_that_differ_by_type_only_are_duplicates(good: Path) -> None:
    def edit(rows: Rows) -> None:
        rows[0]["questionId"], rows[1]["questionId"] = 417, "0417"

    change(good, edit)
    with pytest.raises(DataError, match=r"row 1 .*already taken by row 0"):
        load_docvqa(good)


def test_document_is_the_source_document_where_it_is_named(good: Path) -> None:
    def edit(rows: Rows) -> None:
        for row in rows:
            row["ucsf_document_id"] = "abcd0123"

    change(good, edit)
    assert {page.document for page in load_docvqa(good).pages} == {"abcd0123"}


def test_question_types_become_one_family(good: Path) -> None:
    change(good, lambda rows: rows[0].update(question_types=["table/list", "form", "form"]))
    change(good, lambda rows: rows[1].pop("question_types"))
    families = {q.id: q.family for page in load_docvqa(good).pages for q in page.questions}
    first, second = (str(row["questionId"]) for row in rows_of(good)[:2])
    assert families[first] == "form+table/list"
    assert families[second] == ""


def test_images_below_another_folder(good: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "images").rename(moved / "images")
    assert len(load_docvqa(good, moved).pages) == 5
    with pytest.raises(DataError, match="no file below"):
        load_docvqa(good)
    with pytest.raises(DataError, match="does not exist: pass `images=`"):
        load_docvqa(good, tmp_path / "absent")


def test_pages_survive_a_change_of_folder(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = load_docvqa(good.name).pages[0]
    monkeypatch.chdir("/")
    assert page.image().mode == "RGB"


# --- bad files: each refused with exit code 2, the row named and the remedy told -----------------

BAD_ROWS: dict[str, tuple[Callable[[Rows], object], str]] = {
    "missing image file": (lambda r: r[1].update(image="images/none.png"), "add it or mend"),
    "image is a folder": (lambda r: r[1].update(image="images"), "no file below"),
    "overlong image name": (lambda r: r[1].update(image="x" * 5000), "no file below"),
    "absolute image path": (lambda r: r[1].update(image="/etc/hostname"), "is absolute"),
    "drive letter": (lambda r: r[1].update(image="C:/page.png"), "is absolute"),
    "path that climbs out": (lambda r: r[1].update(image="images/../../p.png"), "by '..'"),
    "backslashes that climb out": (lambda r: r[1].update(image="..\\p.png"), "by '..'"),
    "null byte in path": (lambda r: r[1].update(image="images/\0.png"), "control character"),
    "no answers": (lambda r: r[1].update(answers=[]), "at least one accepted answer"),
    "answers are one text": (lambda r: r[1].update(answers="4.20"), "give a list of texts"),
    "answer is a number": (lambda r: r[1].update(answers=["x", 4.2]), "answers[1] is 4.2 (float)"),
    "answer is blank": (lambda r: r[1].update(answers=[" "]), "not blank or remove it"),
    "answers are null": (lambda r: r[1].update(answers=None), "'answers' is null: add it"),
    "answers are missing": (lambda r: r[1].pop("answers"), "'answers' is missing: add it"),
    "misspelt key": (lambda r: r[1].update(Answers=r[1].pop("answers")), "the row has 'Answers'"),
    "duplicate id": (lambda r: r[1].update(questionId=r[0]["questionId"]), "its own id"),
    "id is a truth value": (lambda r: r[1].update(questionId=True), "give a whole number"),
    "id is a fraction": (lambda r: r[1].update(questionId=1.5), "give a whole number"),
    "id is missing": (lambda r: r[1].pop("questionId"), "'questionId' is missing: add it"),
    "empty question": (lambda r: r[1].update(question="  "), "'question' is '  ' (str)"),
    "question is a list": (lambda r: r[1].update(question=["what?"]), "give a text"),
    "document is missing": (lambda r: r[1].pop("docId"), "'docId' is missing: add it"),
    "page in two documents": (lambda r: r[1].update(docId=999), "the same document"),
    "types are a number": (lambda r: r[1].update(question_types=3), "leave the key out"),
    "row is a list": (lambda r: r.__setitem__(1, cast(Any, [])), "it is a list: give an object"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row_is_named_with_its_remedy(good: Path, name: str) -> None:
    edit, remedy = BAD_ROWS[name]
    # The first page of this seed has several questions: row 1 shares its page with row 0.
    before = rows_of(good)
    assert before[0]["image"] == before[1]["image"]
    change(good, edit)
    with pytest.raises(DataError) as caught:
        load_docvqa(good)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert str(good) in message
    assert "train.json row 1" in message
    assert remedy in message
    identity = rows_of(good)[1]
    if isinstance(identity, dict):
        assert f"questionId {str(identity.get('questionId'))[:3]}" in message.replace("'", "")


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row_is_skipped_and_listed(good: Path, name: str) -> None:
    before = [str(row["questionId"]) for row in rows_of(good)]
    change(good, BAD_ROWS[name][0])
    loaded = load_docvqa(good, faults="skip")
    kept = [question.id for page in loaded.pages for question in page.questions]
    assert kept == [before[0], *before[2:]]
    assert len(loaded.skipped) == 1
    assert "row 1" in loaded.skipped[0]
    assert BAD_ROWS[name][1] in loaded.skipped[0]


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "a byte changed": lambda data: data[:-40] + bytes([data[-40] ^ 255]) + data[-39:],
    "a text": lambda data: b"this is not an image",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_image_condemns_all_its_rows(good: Path, tmp_path: Path, name: str) -> None:
    image = rows_of(good)[0]["image"]
    on_it = [i for i, row in enumerate(rows_of(good)) if row["image"] == image]
    file = tmp_path / image
    file.write_bytes(BROKEN[name](file.read_bytes()))
    with pytest.raises(DataError, match="cannot be decoded") as caught:
        load_docvqa(good)
    for row in on_it:
        assert f"row {row} " in str(caught.value)
    loaded = load_docvqa(good, faults="skip")
    assert len(loaded.skipped) == len(on_it)
    assert image not in {page.id for page in loaded.pages}


def test_unverified_broken_image_shows_when_drawn(good: Path, tmp_path: Path) -> None:
    file = tmp_path / rows_of(good)[0]["image"]
    file.write_bytes(file.read_bytes()[:60])
    page = load_docvqa(good, verify=False).pages[0]
    with pytest.raises(DataError, match=re.escape(str(file))):
        page.image()
    file.unlink()
    with pytest.raises(DataError, match="restore the file"):
        page.fingerprint()


def test_all_faults_are_reported_together(good: Path) -> None:
    def edit(rows: Rows) -> None:
        rows[0]["question"] = ""
        rows[0]["answers"] = []
        rows[2]["image"] = "images/none.png"
        del rows[4]["questionId"]

    change(good, edit)
    with pytest.raises(DataError) as caught:
        load_docvqa(good)
    message = str(caught.value)
    assert f"3 of {len(rows_of(good))} rows" in message
    lines = message.splitlines()[1:]
    assert [line.split("row ")[1].split()[0] for line in lines] == ["0", "2", "4"]
    assert "'question'" in lines[0]
    assert "'answers'" in lines[0]


def test_long_lists_of_faults_are_cut_and_counted(good: Path) -> None:
    def edit(rows: Rows) -> None:
        rows[:] = [{**rows[0], "questionId": 1000 + i, "question": ""} for i in range(33)] + rows[
            5:
        ]

    change(good, edit)
    with pytest.raises(DataError) as caught:
        load_docvqa(good)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 20 + 1
    assert lines[0].count("33 of ") == 1
    assert lines[-1].strip() == "- and 13 more"
    assert len(load_docvqa(good, faults="skip").skipped) == 33


def test_nothing_left_is_an_error_even_when_skipping(good: Path) -> None:
    change(good, lambda rows: [row.update(question="") for row in rows])
    with pytest.raises(DataError, match="None is left to use") as caught:
        load_docvqa(good, faults="skip")
    assert caught.value.exit_code == 2
    assert "row 0" in str(caught.value)


def test_file_outside_the_folder_is_not_opened(good: Path, tmp_path: Path) -> None:
    secret = tmp_path.parent / f"{tmp_path.name}-outside.png"
    Image.new("RGB", (8, 8)).save(secret)
    for path in (f"../{secret.name}", str(secret)):
        change(good, lambda rows, path=path: rows[0].update(image=path))  # type: ignore[misc]
        loaded = load_docvqa(good, faults="skip")
        assert len(loaded.skipped) == 1
        assert all("outside" not in page.id for page in loaded.pages)


@pytest.mark.parametrize("style", ["empty lists", "no key", "null", "by record"])
def test_split_without_answers_gets_one_clear_message(good: Path, style: str) -> None:
    content = json.loads(good.read_text(encoding="utf-8"))
    content["dataset_split"] = "test"
    for row in content["data"]:
        if style == "no key":
            del row["answers"]
        else:
            row["answers"] = None if style == "null" else []
        if style == "by record":
            row["data_split"] = "test"
            content.pop("dataset_split", None)
    good.write_text(json.dumps(content), encoding="utf-8")
    for faults in ("error", "skip"):
        with pytest.raises(DataError, match="give the train or val file") as caught:
            load_docvqa(good, faults=faults)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "top level is a list"),
        ("{}", "'data' is missing"),
        ('{"data": {}}', "'data' is a dict"),
        ('{"data": []}', "empty list"),
        ('{"data": [1, null]}', "row 1: it is a NoneType"),
    ],
)
def test_wrong_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "train.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        load_docvqa(path, faults="skip")
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)


def test_missing_file_and_unknown_policy(good: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json"):
        load_docvqa(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match="did you mean 'skip'"):
        load_docvqa(good, faults="skipp")  # type: ignore[arg-type]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats(0, 1) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = ("questionId", "question", "image", "docId", "answers", "question_types", "ucsf_document_id")
ROW = st.dictionaries(
    st.sampled_from(KEYS), JSON | st.just("page.png") | st.just(["a"]), max_size=7
)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(ROW | JSON, min_size=1, max_size=6))
def test_any_rows_load_or_are_accounted_for(tmp_path_factory: Any, rows: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("any")
    Image.new("L", (4, 4)).save(folder / "page.png")
    sure = {
        "questionId": "sure",
        "question": "q",
        "image": "page.png",
        "docId": "sure",
        "answers": ["a"],
    }
    path = folder / "val.json"
    path.write_text(json.dumps({"data": [sure, *rows]}), encoding="utf-8")
    loaded = load_docvqa(path, faults="skip")
    kept = sum(len(page.questions) for page in loaded.pages)
    assert kept + len(loaded.skipped) == len(rows) + 1


# --- images ---------------------------------------------------------------------------------------


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def test_transparent_paper_is_white() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    page = open_image(encoded(image))
    assert [page.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]


def test_sixteen_bit_scan_keeps_its_greys() -> None:
    levels = np.array([[0, 0x8000, 0xFFFF]], dtype=np.uint16)
    page = open_image(encoded(Image.fromarray(levels)))
    assert [page.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_rotated_scan_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to view
    data = encoded(Image.new("RGB", (30, 10)), "JPEG", exif=exif)
    assert open_image(data).size == (10, 30)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    data = encoded(Image.new(mode, (5, 4)), form)
    assert image_problem(data) is None
    assert open_image(data).mode == "RGB"


@settings(max_examples=40, deadline=None)
@given(form=st.sampled_from(["PNG", "JPEG", "TIFF"]), cut=st.floats(0.1, 0.9))
def test_cheap_check_finds_every_truncation_that_decoding_finds(form: str, cut: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), form)
    data = data[: int(cut * len(data))]
    try:
        open_image(data)
    except Exception:  # the judge: full decoding, whatever it raises
        assert image_problem(data) is not None


def test_questions_without_answers_load_where_none_are_needed(good: Path) -> None:
    change(good, lambda rows: [row.pop("answers") for row in rows])
    with pytest.raises(DataError):
        load_docvqa(good)
    pages = load_docvqa(good, answered=False).pages
    assert [q.id for page in pages for q in page.questions] == [
        str(row["questionId"]) for row in rows_of(good)
    ]
    assert {q.answers for page in pages for q in page.questions} == {()}


def test_other_faults_of_unanswered_rows_are_still_named(good: Path) -> None:
    def spoil(rows: Rows) -> None:
        for row in rows:
            row["answers"] = []
        rows[0]["question"] = " "
        rows[1]["answers"] = "a text"

    change(good, spoil)
    with pytest.raises(DataError, match=r"(?s)row 0.*'question' is ' '.*row 1.*'answers' is"):
        load_docvqa(good, answered=False)
