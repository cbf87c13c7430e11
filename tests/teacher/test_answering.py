"""Stock generation, grouped by prompt length, equals one question at a time."""

import numpy as np
import pytest
import torch
from PIL import Image

from circuitsearch.answer import answer_question, read_page
from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.core.shapes import DecoderShape
from circuitsearch.teacher import answering
from circuitsearch.teacher.answering import generate_answers, together
from circuitsearch.teacher.loading import load_teacher
from tests.tiny import tiny_checkpoint, tiny_pages


def _one_by_one(teacher, pixels, pages, questions):
    said = []
    for page, question in zip(pages, questions, strict=True):
        prompt = teacher.tokens.prompt_ids(question)
        made = teacher.model.generate(
            pixel_values=pixels[page : page + 1],
            decoder_input_ids=torch.tensor([prompt]),
            max_length=teacher.max_length,
            do_sample=False,
            num_beams=1,
        )
        said.append(teacher.tokens.text(made[0, len(prompt) :].tolist()))
    return said


@pytest.mark.parametrize("embed", [16, 24], ids=["equal widths", "projected encoder"])
def test_answers_equal_those_asked_one_by_one(tmp_path, embed):
    teacher = load_teacher(str(tiny_checkpoint(tmp_path / "t", encoder_embed=embed)))
    pages = tiny_pages(3)
    pixels = teacher.pixel_values([page.image() for page in pages])
    asked, questions = [0, 1, 2, 0, 2], ["What?", "What is it?", "Who?", "Where is the x?", "When?"]
    made = generate_answers(teacher.model, teacher.tokens, pixels, asked, questions, batch=2)
    assert made == _one_by_one(teacher, pixels, asked, questions)
    assert len(set(made)) > 1  # random weights, but not one text for everything


def test_as_many_questions_at_once_as_their_pages_leave_room_for(monkeypatch, tiny_teacher):
    donut = DecoderShape(
        layers=4,
        d_model=1024,
        heads=16,
        head_dim=64,
        ffn=4096,
        vocabulary=57_580,
        encoder_width=1024,
    )
    page = 4 * 4800 * 4 * 2 * 1024  # float32: 4800 tokens in 4 layers, keys and values
    assert together(donut, 4800) == 2**31 // page == 13
    assert together(donut, 10**9) == 1
    assert together(tiny_teacher.shape.decoder, 8) == answering.MOST_TOGETHER
    assert together(donut, 1, most=3) == 3

    pixels = tiny_teacher.pixel_values([page.image() for page in tiny_pages(3)])
    asked, sizes = [0, 1, 2], []
    generate = tiny_teacher.model.generate

    def counting(**options):
        sizes.append(len(options["decoder_input_ids"]))
        return generate(**options)

    monkeypatch.setattr(tiny_teacher.model, "generate", counting)
    together_said = generate_answers(
        tiny_teacher.model, tiny_teacher.tokens, pixels, asked, ["W?"] * 3
    )
    monkeypatch.setattr(answering, "_PAGE_BYTES", 1)
    alone = generate_answers(tiny_teacher.model, tiny_teacher.tokens, pixels, asked, ["W?"] * 3)
    assert alone == together_said
    assert sizes == [3, 1, 1, 1]


def test_one_question_from_a_file(tmp_path, tiny_folder, tiny_teacher):
    page = tiny_pages(1)[0].image()
    page.save(tmp_path / "page.png")
    pixels = tiny_teacher.pixel_values([page])
    said = answer_question(str(tiny_folder), tmp_path / "page.png", "What?")
    assert said == _one_by_one(tiny_teacher, pixels, [0], ["What?"])[0]


def test_unusable_questions_are_refused(tmp_path, tiny_folder):
    Image.new("RGB", (8, 8)).save(tmp_path / "page.png")
    with pytest.raises(DataError, match="it is empty"):
        answer_question(str(tiny_folder), tmp_path / "page.png", "  ")
    with pytest.raises(DataError, match="shorten it"):
        answer_question(str(tiny_folder), tmp_path / "page.png", "why " * 100)


def test_a_page_file_is_read_as_a_search_reads_it(tmp_path):
    page = tiny_pages(1)[0].image()
    ink = page.convert("L").point(lambda value: 255 - value)
    see_through = Image.merge("RGBA", [*Image.new("RGB", page.size).split(), ink])
    see_through.save(tmp_path / "transparent.png")
    deep = np.asarray(page.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "sixteen.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # shown a quarter turn clockwise
    page.rotate(90, expand=True).save(tmp_path / "rotated.png", exif=turned)
    grey = np.asarray(page.convert("L")).astype(int)
    for name in ("transparent.png", "sixteen.png", "rotated.png"):
        found = np.asarray(read_page(tmp_path / name).convert("L")).astype(int)
        assert found.shape == grey.shape, name
        assert np.abs(found - grey).max() <= 1, name
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png: not an image"):
        read_page(tmp_path / "broken.png")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 4),
        ("max_time", 1.0),
        ("stop_strings", ["a"]),
        ("return_dict_in_generate", True),
        ("guidance_scale", 1.5),
        ("repetition_penalty", 1.2),
    ],
)
def test_what_greedy_answers_leave_out_is_refused_by_name(tmp_path, name, value):
    teacher = load_teacher(str(tiny_checkpoint(tmp_path / "t")))
    setattr(teacher.model.generation_config, name, value)
    pixels = teacher.pixel_values([tiny_pages(1)[0].image()])
    with pytest.raises(ConfigError, match=rf"generation_config: {name} is "):
        generate_answers(teacher.model, teacher.tokens, pixels, [0], ["What?"])
