"""Loading a teacher: what it reads from the checkpoint, and how it refuses a bad one."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from circuitsearch.core.errors import ConfigError
from circuitsearch.teacher.loading import Teacher, _counted_shape, load_teacher, teacher_shape
from tests.tiny import tiny_checkpoint


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def page() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_settings_come_from_the_checkpoint(tiny_teacher: Teacher) -> None:
    assert tiny_teacher.prompt.template == "<s_docvqa><s_question>{question}</s_question><s_answer>"
    assert tiny_teacher.prompt.lowercase_question is False
    assert (tiny_teacher.tokens.pad_id, tiny_teacher.tokens.eos_id) == (1, 2)
    assert tiny_teacher.max_length == 96
    assert tiny_teacher.tokens.max_length == 96
    assert not tiny_teacher.model.training
    assert not any(p.requires_grad for p in tiny_teacher.model.parameters())
    decoder = tiny_teacher.shape.decoder
    assert (decoder.layers, decoder.d_model, decoder.heads, decoder.head_dim) == (4, 32, 4, 8)
    assert (decoder.ffn, decoder.encoder_width, decoder.positions) == (64, 32, 98)


def test_no_network_is_used(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a local folder must load without a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_teacher(str(tiny_folder))


def test_pixels_follow_the_preprocessor_file(tiny_teacher: Teacher, folder: Path) -> None:
    pixels = tiny_teacher.pixel_values([page(), page().convert("L")])
    assert pixels.shape == (2, 3, 32, 48)
    edit(folder / "preprocessor_config.json", lambda c: c.update(image_mean=[0.0] * 3))
    other = load_teacher(str(folder)).pixel_values([page()])
    # (v - 0) / .5 instead of (v - .5) / .5 is a shift by one; float32 rounding of values below 2
    torch.testing.assert_close(other[0], pixels[0] + 1.0, rtol=0, atol=1e-6)
    edit(folder / "preprocessor_config.json", lambda c: c.update(size=[32, 48]))  # legacy (W, H)
    assert load_teacher(str(folder)).pixel_values([page()]).shape == (1, 3, 48, 32)


def test_encode_equals_the_models_own_states(tiny_teacher: Teacher) -> None:
    pixels = tiny_teacher.pixel_values([page()])
    ids = torch.tensor([tiny_teacher.tokens.prompt_ids("What?")])
    states = tiny_teacher.encode(pixels)
    assert states.shape == (1, tiny_teacher.shape.encoder.tokens, 32)
    expected = tiny_teacher.model(pixel_values=pixels, decoder_input_ids=ids).logits
    again = tiny_teacher.model.decoder(input_ids=ids, encoder_hidden_states=states).logits
    torch.testing.assert_close(again, expected, rtol=0, atol=0)


def test_unequal_widths_are_projected(tmp_path: Path) -> None:
    teacher = load_teacher(str(tiny_checkpoint(tmp_path / "t", d_model=24, encoder_embed=16)))
    states = teacher.encode(teacher.pixel_values([page()]))
    assert states.shape == (1, 24, 24)
    model = teacher.model
    assert teacher.shape.encoder.width == 24
    counted = sum(p.numel() for m in (model.encoder, model.enc_to_dec_proj) for p in m.parameters())
    assert teacher.shape.encoder.parameters == counted
    plain = load_teacher(str(tiny_checkpoint(tmp_path / "u"))).shape.encoder
    assert teacher.shape.encoder.macs == plain.macs + 24 * 32 * 24


def test_formula_and_counter_agree_on_the_encoder(tiny_teacher: Teacher) -> None:
    encoder = tiny_teacher.shape.encoder
    counted = _counted_shape(tiny_teacher.model.encoder, (32, 48))
    assert (counted.macs, counted.tokens, counted.width) == (
        encoder.macs,
        encoder.tokens,
        encoder.width,
    )
    assert encoder.parameters == sum(p.numel() for p in tiny_teacher.model.encoder.parameters())
    assert teacher_shape(tiny_teacher.model, (32, 48), "x").encoder == encoder
    # the pixels decide, not the size in the encoder's config: twice the height, twice the tokens
    assert teacher_shape(tiny_teacher.model, (64, 48)).encoder.tokens == 2 * encoder.tokens


def test_processor_config_of_new_transformers(folder: Path) -> None:
    teacher = load_teacher(str(folder))
    for name in ("preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"):
        (folder / name).unlink()
    teacher.processor.save_pretrained(folder)
    again = load_teacher(str(folder))
    torch.testing.assert_close(
        again.pixel_values([page()]), teacher.pixel_values([page()]), rtol=0, atol=0
    )


def test_options_file(folder: Path) -> None:
    edit(folder / "circuitsearch.json", lambda c: c.update(lowercase_question=True, max_length=50))
    teacher = load_teacher(str(folder))
    assert teacher.prompt.lowercase_question
    assert teacher.max_length == 50
    assert teacher.tokens.prompt_ids("WHAT?") == teacher.tokens.prompt_ids("what?")
    prompt = {"template": "<s_answer>{question}<yes/>", "end": "</s>"}
    edit(folder / "circuitsearch.json", lambda c: c.update(prompt=prompt))
    teacher = load_teacher(str(folder))
    text = teacher.processor.tokenizer.decode(teacher.tokens.prompt_ids("Hi"))
    assert text == "<s_answer>hi<yes/>"
    assert teacher.model.config.decoder_start_token_id == teacher.tokens.prompt_ids("")[0]


def test_a_prompt_without_question_reads_whole_pages(folder: Path) -> None:
    assert not load_teacher(str(folder)).prompt.parses
    prompt = {"template": "<s_docvqa>", "end": "</s>"}
    edit(folder / "circuitsearch.json", lambda c: c.update(prompt=prompt))
    teacher = load_teacher(str(folder))
    assert teacher.prompt.parses
    assert teacher.tokens.prompt_ids("one") == teacher.tokens.prompt_ids("other")


def test_max_length_falls_back_to_the_position_table(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert load_teacher(str(folder)).max_length == 96
    edit(folder / "generation_config.json", lambda c: c.update(max_length=4000))
    assert load_teacher(str(folder)).max_length == 96


def test_ids_that_the_config_leaves_open_are_filled(folder: Path) -> None:
    def clear(config: dict[str, Any]) -> None:
        for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
            config[name] = None

    edit(folder / "config.json", clear)
    edit(folder / "generation_config.json", clear)
    teacher = load_teacher(str(folder))
    pixels = teacher.pixel_values([page()])
    out = teacher.model.generate(pixel_values=pixels, max_length=6)
    assert out[0, 0] == teacher.tokens.prompt_ids("")[0]


def test_fingerprint_is_content(tiny_teacher: Teacher, folder: Path) -> None:
    assert load_teacher(str(folder)).fingerprint == tiny_teacher.fingerprint
    (folder / "README.md").write_text("a note", encoding="utf-8")
    edit(folder / "config.json", lambda c: c.update(transformers_version="0.0"))
    assert load_teacher(str(folder)).fingerprint == tiny_teacher.fingerprint
    changes = {
        "preprocessor_config.json": lambda c: c.update(image_std=[1.0] * 3),
        "circuitsearch.json": lambda c: c.update(lowercase_question=True),
        "generation_config.json": lambda c: c.update(max_length=90),
    }
    seen = {tiny_teacher.fingerprint}
    for name, change in changes.items():
        edit(folder / name, change)
        seen.add(load_teacher(str(folder)).fingerprint)
    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.model.decoder.layer_norm.bias"][0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    seen.add(load_teacher(str(folder)).fingerprint)
    assert len(seen) == 5


def _drop(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _set(name: str, **values: object) -> Callable[[Path], object]:
    return lambda folder: edit(folder / name, lambda c: c.update(values))


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["decoder.model.decoder.layers.0.fc1.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _without_task_tokens(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    old = AutoTokenizer.from_pretrained(folder)
    text = old.backend_tokenizer.to_str()
    tokenizer = json.loads(text)
    tokenizer["added_tokens"] = [
        t for t in tokenizer["added_tokens"] if not t["content"].startswith(("<s_", "</s_"))
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)


def _post_layernorm(folder: Path) -> None:
    from transformers import (
        BartConfig,
        DonutSwinConfig,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
    )

    encoder = DonutSwinConfig(
        image_size=[32, 48], embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    decoder = BartConfig(
        vocab_size=106,
        d_model=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        max_position_embeddings=96,
        is_decoder=True,
        add_cross_attention=True,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    VisionEncoderDecoderModel(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_drop("config.json"), ["config.json is missing", "save_pretrained"]),
        (_drop("model.safetensors"), ["weights (*.safetensors) are missing"]),
        (_drop("preprocessor_config.json"), ["image processor", "is missing"]),
        (_pickle_only, ["pickle (pytorch_model.bin)", "save_pretrained"]),
        (_lose_a_tensor, ["1 tensors are missing", "layers.0.fc1.weight"]),
        (_set("config.json", model_type="bert"), ["'bert'", "vision-encoder-decoder"]),
        (_set("config.json", pad_token_id=0), ["pad_token_id 0", "tokenizer says 1"]),
        (
            _set("circuitsearch.json", lowercase_questions=True),
            ["did you mean", "lowercase_question"],
        ),
        (_set("circuitsearch.json", max_length=True), ["max_length", "True", "int"]),
        (_set("circuitsearch.json", max_length=1), ["max_length is 1", "integers from 2"]),
        (
            _set("circuitsearch.json", prompt={"template": "no slot", "end": ""}),
            ["prompt", "{question}"],
        ),
        (
            _set("circuitsearch.json", prompt={"template": "<s_docvqa>", "end": "no tag"}),
            ["prompt", "each with a tag"],
        ),
        (
            _set("circuitsearch.json", prompt={"template": "<s_x>{question}", "end": "</s>"}),
            ["<s_x>", "task tokens"],
        ),
        (
            _set("preprocessor_config.json", image_processor_type="ViTImageProcessor"),
            ["ViT", "Donut"],
        ),
        (_without_task_tokens, ["task tokens", "<s_question>", "circuitsearch.json"]),
        (_post_layernorm, ["post-LN", "mbart"]),
        (
            lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"),
            ["config.json", "not valid JSON"],
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"not weights"),
            ["cannot load", "complete copy"],
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}", encoding="utf-8"),
            ["tokenizer", "cannot be loaded"],
        ),
    ],
)
def test_bad_checkpoints_are_refused(
    folder: Path, damage: Callable[[Path], object], says: list[str]
) -> None:
    damage(folder)
    with pytest.raises(ConfigError) as caught:
        load_teacher(str(folder))
    for part in says:
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_teacher(str(tmp_path))
    for part in ("config.json", "safetensors", "tokenizer", "image processor", str(tmp_path)):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no/such/folder/at/all", ["no such folder", "shipped"]),
        ("Shiped", ["did you mean 'shipped'"]),
        ("nobody-here/no-such-model", ["not in the local Hugging Face cache", "hf download"]),
    ],
)
def test_unknown_names(name: str, says: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_teacher(name)
    for part in says:
        assert part in str(caught.value)


def test_a_file_is_not_a_folder(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"folder that holds config\.json"):
        load_teacher(str(tiny_folder / "config.json"))


def test_missing_shipped_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("circuitsearch.teacher.checkpoint.SHIPPED", tmp_path / "none")
    with pytest.raises(ConfigError, match="reinstall circuitsearch"):
        load_teacher("shipped")


@pytest.mark.parametrize("device", ["gpu", "cuda:97"])
def test_unusable_device(tiny_folder: Path, device: str) -> None:
    with pytest.raises(ConfigError, match="cpu"):
        load_teacher(str(tiny_folder), device)


def test_the_unknown_token_is_no_answer(folder: Path) -> None:
    """Whoever generates obeys this: the teacher, its students, the ONNX files."""
    unknown = AutoTokenizer.from_pretrained(folder).unk_token_id
    assert load_teacher(folder).model.generation_config.bad_words_ids == [[unknown]]
    told = folder / "generation_config.json"
    edit(told, lambda content: content.update(bad_words_ids=[[4, 5]]))
    assert load_teacher(folder).model.generation_config.bad_words_ids == [[4, 5], [unknown]]
    edit(
        folder / "generation_config.json", lambda told: told.update(bad_words_ids=[[unknown], [6]])
    )
    assert load_teacher(folder).model.generation_config.bad_words_ids == [[unknown], [6]]
