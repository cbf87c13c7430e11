"""A hundred broken data sets: each refused with a DataError that names the file and the row.

Mutations are drawn with a fixed seed. A mutation of one row must name that row, one of the whole
file must name the file; none may raise anything but DataError.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from circuitsearch.core.errors import DataError
from circuitsearch.teacher.documents.docvqa import load_docvqa
from circuitsearch.teacher.documents.synthetic import rendered_pages
from tests.data_fixtures import write_docvqa

Row = dict[str, Any]
PAGES = 4
KEYS = ("questionId", "question", "image", "docId", "answers")
SURROGATE = "tot\ud800al"
WRONG: dict[str, list[Any]] = {
    "questionId": [None, True, 1.5, "", "  ", [], {}, [1], SURROGATE],
    "question": [None, 7, "", " \n", ["what?"], {"text": "what?"}, False, SURROGATE],
    "image": [None, 7, "", [], "/etc/passwd", "../p.png", "C:\\p.png", "\0", "images", "x" * 4000,
              "nothing.png", "images/\u202e.png", SURROGATE, "https://example.org/p.png"],
    "docId": [None, True, 2.5, " ", [], {}, SURROGATE],
    "answers": [None, [], "4.20", 7, [""], ["a", None], [["a"]], [4.2], {"text": "a"}, [SURROGATE]],
    "question_types": [3, [None], {"a": 1}, [["table"]], [SURROGATE]],
    "ucsf_document_id": [True, 2.5, [], " "],
}  # fmt: skip
IMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "removed": lambda data: None,
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "header only": lambda data: data[:33],
    "half": lambda data: data[: len(data) // 2],
    "end cut": lambda data: data[:-15],
    "byte flipped": lambda data: data[:-40] + bytes([data[-40] ^ 255]) + data[-39:],
    "text": lambda data: b"this is no image",
    "HTML": lambda data: b"<html><body>404</body></html>",
    "PDF": lambda data: b"%PDF-1.7\n" + data,
    "zeros": lambda data: bytes(len(data)),
    "JPEG cut": lambda data: _jpeg(data)[: len(_jpeg(data)) // 2],
    "SVG": lambda data: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "bomb": lambda data: _bomb(),
}
FILES: dict[str, Callable[[str], bytes]] = {
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 without mark": lambda text: text.encode("utf-16-le"),
    "Latin-1": lambda text: text.replace("What", "Où", 1).encode("latin-1"),
    "a stray byte": lambda text: text.replace("What", "W", 1).encode() + b"\xff",
    "cut": lambda text: text[: len(text) // 2].encode(),
    "no comma": lambda text: text.replace(",", "", 1).encode(),
    "single quotes": lambda text: text.replace('"', "'").encode(),
    "two objects": lambda text: (text + text).encode(),
    "lines of JSON": lambda text: "\n".join(map(json.dumps, json.loads(text)["data"])).encode(),
    "CSV": lambda text: b"questionId,question\n1,What?\n",
    "empty": lambda text: b"",
    "null": lambda text: b"null",
    "a list": lambda text: json.dumps(json.loads(text)["data"]).encode(),
    "data renamed": lambda text: text.replace('"data"', '"rows"', 1).encode(),
    "data by id": lambda text: b'{"data": {"1": {}}}',
    "no rows": lambda text: b'{"data": []}',
    "nested without end": lambda text: b'{"data": ' + b"[" * 100_000,
    "a number without end": lambda text: b'{"data": [{"questionId": ' + b"9" * 5000 + b"}]}",
    "NaN": lambda text: text.replace('"docId": 1', '"docId": NaN', 1).encode(),
    "infinity": lambda text: text.replace('"docId": 1', '"docId": -Infinity', 1).encode(),
    "zero bytes": lambda text: b"\0" * 100,
    "gzip": lambda text: b"\x1f\x8b\x08\x00" + bytes(40),
}  # fmt: skip


def _jpeg(data: bytes) -> bytes:
    stream = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def _bomb() -> bytes:
    """A PNG of some bytes that says it has 40,000 x 40,000 pixels."""
    stream = io.BytesIO()
    Image.new("1", (1, 1)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[16:24] = (40_000).to_bytes(4) * 2
    return bytes(data)


Change = Callable[[Path, int], None]


def _edited(edit: Callable[[list[Any], int], object]) -> Change:
    """Return a mutation of the row of a number."""

    def change(path: Path, row: int) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        edit(content["data"], row)
        path.write_text(json.dumps(content), encoding="utf-8")

    return change


def _image(spoil: Callable[[bytes], bytes | None]) -> Change:
    def change(path: Path, row: int) -> None:
        file = path.parent / json.loads(path.read_text(encoding="utf-8"))["data"][row]["image"]
        data = spoil(file.read_bytes())
        if data is None:
            file.unlink()
        else:
            file.write_bytes(data)

    return change


def _file(spoil: Callable[[str], bytes]) -> Change:
    def change(path: Path, row: int) -> None:
        path.write_bytes(spoil(path.read_text(encoding="utf-8")))

    return change


def _mutations() -> list[tuple[str, Change, int | None]]:
    """Return (what was done, mutation, row to be named or None for the file); a hundred."""
    draw = random.Random(0)
    rows: list[tuple[str, Change]] = [
        (f"{key} is {str(value)[:20]!a}", _edited(lambda r, i, k=key, v=value: r[i].update({k: v})))
        for key, values in WRONG.items()
        for value in values
    ]
    rows += [
        (f"{key} {done}", _edited(edit))
        for key in KEYS
        for done, edit in (
            ("missing", lambda r, i, k=key: r[i].pop(k)),
            ("in capitals", lambda r, i, k=key: r[i].update({k.upper(): r[i].pop(k)})),
        )
    ]
    rows += [
        (f"row is {value!r}", _edited(lambda r, i, v=value: r.__setitem__(i, v)))
        for value in (None, 7, "row", [], {})
    ]
    rows += [
        ("id of another row", _edited(lambda r, i: r[i].update(questionId=r[0]["questionId"]))),
        ("id as text", _edited(lambda r, i: r[i].update(questionId=f"0{r[0]['questionId']}"))),
        ("row twice", _edited(lambda r, i: r.insert(i, dict(r[0])))),
        ("page of two documents", _edited(lambda r, i: r[i].update(image=r[0]["image"], docId=99))),
    ]
    rows += [(f"image {name}", _image(spoil)) for name, spoil in IMAGES.items()]
    whole = [(name, _file(spoil), None) for name, spoil in FILES.items()]
    drawn = draw.sample(rows, 100 - len(whole))
    return [*whole, *((what, change, draw.randrange(4, 8)) for what, change in drawn)]


MUTATIONS = _mutations()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a good data set, by their place in its folder."""
    folder = tmp_path_factory.mktemp("good")
    path = write_docvqa(rendered_pages(PAGES, "mutations"), folder, "train")
    assert len(json.loads(path.read_text(encoding="utf-8"))["data"]) > 8
    assert len(load_docvqa(path).pages) == PAGES
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_there_are_a_hundred() -> None:
    assert len({what for what, _, _ in MUTATIONS}) == len(MUTATIONS) == 100


@pytest.mark.parametrize(("what", "change", "row"), MUTATIONS, ids=[one[0] for one in MUTATIONS])
def test_it_is_refused_and_named(
    tmp_path: Path, written: dict[str, bytes], what: str, change: Change, row: int | None
) -> None:
    for name, data in written.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "train.json"
    change(path, 0 if row is None else row)
    with pytest.raises(DataError) as caught:
        load_docvqa(path)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "train.json" in message
    assert row is None or f"train.json row {row}" in message, message
    assert message.isprintable() or message.replace("\n", "").isprintable()
    message.encode()  # what a file holds can always be shown
    assert len(message) < 8000
    if row is not None:
        assert any(f"row {row}" in line for line in load_docvqa(path, faults="skip").skipped)
