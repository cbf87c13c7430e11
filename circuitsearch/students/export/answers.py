"""Answers questions about page images with the ONNX files beside this script.

    python answer_onnx.py PAGE.png "What is the total?"

It needs numpy, Pillow, onnxruntime and tokenizers; neither torch nor transformers nor
circuitsearch. `circuitsearch export` writes it next to the graphs. `manifest.json` holds everything
else that it knows: names of the graphs' inputs, prompt, end tokens, and how pixels are prepared.

Prompts differ in length, and padding would shift positions. All rows of a batch therefore walk in
step from position 0: inside its prompt a row takes its prompt's next token, behind it its best one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

__all__ = ["FORMAT", "MANIFEST", "OnnxStudent", "Written"]

FORMAT = "circuitsearch onnx 1"
MANIFEST = "manifest.json"

# What transformers takes out of decoded text where the tokenizer asks for it.
_CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


@dataclass
class Written:
    """What one prompt was continued by.

    Attributes:
        ids: the chosen tokens, the one that ended the answer left out.
        logits: [V] the logits that each choice was made from, the last one's included; empty
            unless they were asked for.
        ended: whether the answer has ended.
    """

    ids: list[int] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    ended: bool = False


class OnnxStudent:
    """A student in ONNX Runtime.

    Args:
        folder: what `circuitsearch export` wrote.
        threads: of the runtime; 0 lets it choose.

    Raises:
        ValueError: the folder holds something else.
        OSError: a file cannot be read.
    """

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        """Open the graphs and the tokenizer."""
        place = Path(folder)
        found = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        self.manifest: dict[str, Any] = found if isinstance(found, dict) else {}
        if self.manifest.get("format") != FORMAT:
            raise ValueError(f"{place / MANIFEST}: it was not written by this version's export")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        graphs = self.manifest["graphs"]
        try:
            self._encoder, self._decoder = (
                onnxruntime.InferenceSession(
                    str(place / graphs[name]["file"]), options, providers=["CPUExecutionProvider"]
                )
                for name in ("encoder", "decoder")
            )
            self.tokenizer = Tokenizer.from_file(str(place / self.manifest["tokenizer"]["file"]))
        except Exception as error:  # both libraries raise bare Exceptions on bad files
            raise ValueError(f"{place}: a file is missing or damaged ({error})") from error
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        if self.prompt_ids("") != self.manifest["prompt"]["empty_ids"]:
            raise ValueError(f"{place}: tokenizer and manifest are of two models; export again")

    def answer(
        self, images: Sequence[Image.Image], questions: Sequence[str], pages: Sequence[int] = ()
    ) -> list[str]:
        """Answer questions about pages.

        Args:
            images: the pages.
            questions: the questions.
            pages: for each question the index of its page; empty where each has its own, or
                where all are about one.

        Raises:
            ValueError: pages and questions do not go together, or a question is too long.
        """
        if not questions:
            return []
        alone = [0] * len(questions) if len(images) == 1 else range(len(questions))
        rows = list(pages or alone)
        if len(rows) != len(questions) or not (pages or len(images) in (1, len(questions))):
            raise ValueError(
                f"pages: got {len(images)} pages, {len(questions)} questions and {len(pages)} "
                "indices; give each question a page, one page for all, or an index per question"
            )
        read = self.read(self.pixels(images))
        written = self.greedy(read, rows, [self.prompt_ids(question) for question in questions])
        return [self.text(one.ids) for one in written]

    def prompt_ids(self, question: str) -> list[int]:
        """Return the token ids of the task prompt with a question in it."""
        prompt = self.manifest["prompt"]
        asked = question.lower() if prompt["lowercase_question"] else question
        text = prompt["template"].replace("{question}", asked)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's tokens; the tags of a parse are the answer."""
        parses = self.manifest["prompt"].get("parses", False)
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=not parses)
        if self.manifest["tokenizer"]["clean_up"]:
            for spaced in _CLEANED:
                text = text.replace(spaced, spaced.strip())
        return text.strip()

    def pixels(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return [P, 3, height, width] float32, prepared as the checkpoint's processor does."""
        return np.stack([_pixels(image, self.manifest["image"]) for image in images])

    def read(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return what is read from pages [P, 3, height, width], once: keys and values by name."""
        names = [output["name"] for output in self.manifest["graphs"]["encoder"]["outputs"]]
        values = self._encoder.run(names, {"pixel_values": pixels})
        return dict(zip(names, values, strict=True))

    def greedy(
        self,
        read: dict[str, np.ndarray],
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        *,
        keep_logits: bool = False,
    ) -> list[Written]:
        """Continue prompts by the best token each time, all of them in step.

        Args:
            read: of the pages, see `read`.
            rows: for each prompt the index of its page.
            prompts: token ids.
            keep_logits: whether to return the logits of every choice.

        Raises:
            ValueError: a prompt leaves no room for an answer.
        """
        limits = self.manifest["limits"]
        longest = max((len(prompt) for prompt in prompts), default=0)
        if longest >= limits["length"]:
            raise ValueError(
                f"question: the prompt takes {longest} tokens, the model has room for "
                f"{limits['length']} with the answer; shorten it"
            )
        written = [Written() for _ in prompts]
        if not prompts:
            return written
        memory = self.begin(read, rows)
        position = min(map(len, prompts))
        ids = np.array([prompt[:position] for prompt in prompts], dtype=np.int64)
        while position < limits["length"] and not all(one.ended for one in written):
            logits = self.step(memory, ids, position)
            ids = _chosen(logits, prompts, position, limits, written, keep_logits)
            position += 1
        return written

    def begin(self, read: dict[str, np.ndarray], rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the decoder's keys and values before the first token, one row per prompt."""
        memory = {}
        for part in self.manifest["graphs"]["decoder"]["inputs"]:
            name, shape = part["name"], part["shape"]
            if name in read:
                memory[name] = read[name][list(rows)]
            elif len(shape) == 4:  # nothing before the first token
                memory[name] = np.zeros((len(rows), shape[1], 0, shape[3]), dtype=np.float32)
        return memory

    def step(self, memory: dict[str, np.ndarray], ids: np.ndarray, position: int) -> np.ndarray:
        """Read ids [B, T] up to a position; return logits [B, V], and let the memory grow."""
        names = [output["name"] for output in self.manifest["graphs"]["decoder"]["outputs"]]
        positions = np.arange(position - ids.shape[1], position, dtype=np.int64)
        feed = {"ids": ids, "positions": positions, **memory}
        logits, *grown = self._decoder.run(names, feed)
        for name, value in zip(names[1:], grown, strict=True):
            memory[name.removesuffix(".new")] = value
        return np.asarray(logits)


def _chosen(
    logits: np.ndarray,
    prompts: Sequence[Sequence[int]],
    position: int,
    limits: dict[str, Any],
    written: Sequence[Written],
    keep_logits: bool,
) -> np.ndarray:
    """Return the tokens [B, 1] at a position, and note what was written."""
    allowed = logits.copy()
    allowed[:, limits["forbidden"]] = -np.inf
    tokens = []
    for row, (prompt, one) in enumerate(zip(prompts, written, strict=True)):
        token = int(allowed[row].argmax())
        if position < len(prompt):
            token = int(prompt[position])
        elif not one.ended:
            if keep_logits:
                one.logits.append(logits[row])
            one.ended = token in limits["ends"]
            one.ids += [] if one.ended else [token]
        tokens.append([token])
    return np.array(tokens, dtype=np.int64)


def _pixels(image: Image.Image, how: dict[str, Any]) -> np.ndarray:
    """Return [3, height, width] of one page (Donut's preparation, step by step)."""
    pixels = np.asarray(_upright(image))
    height, width = how["height"], how["width"]
    if how["align_long_axis"]:
        across = (pixels.shape[1] - pixels.shape[0]) * (width - height)
        pixels = np.rot90(pixels, 3) if across < 0 else pixels
    if how["resize"]:
        pixels = _resized(pixels, _to_short_edge(pixels, min(height, width)), how["resample"])
    if how["thumbnail"]:
        size = _within(pixels, height, width)
        if size != pixels.shape[:2]:
            # 0, nearest, counts as unset there: transformers takes bicubic then
            pixels = _resized(pixels, size, how["resample"] or Image.Resampling.BICUBIC)
    if how["pad"]:
        down, across = height - pixels.shape[0], width - pixels.shape[1]
        sides = ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0))
        pixels = np.pad(pixels, sides)
    values = pixels.astype(np.float32)
    if how["rescale"] is not None:
        values = (pixels.astype(np.float64) * how["rescale"]).astype(np.float32)
    if how["mean"] is not None:
        mean, std = (np.array(how[name], dtype=np.float32) for name in ("mean", "std"))
        values = (values - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _upright(image: Image.Image) -> Image.Image:
    """Return a page as a viewer would show it: upright RGB, transparent parts white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion would turn a 16-bit scan white
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    ink = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", ink.size, "white"), ink).convert("RGB")


def _resized(pixels: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """Return pixels [height, width, 3] resized to (height, width)."""
    page = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(page.resize((size[1], size[0]), resample=Image.Resampling(resample)))


def _to_short_edge(pixels: np.ndarray, edge: int) -> tuple[int, int]:
    """Return (height, width) with the shorter edge as given."""
    height, width = pixels.shape[:2]
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def _within(pixels: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """Return (height, width) that fits into a frame, the longer edge deciding."""
    down, across = pixels.shape[:2]
    height, width = min(down, height), min(across, width)
    if (height, width) == (down, across):
        return height, width
    if down > across:
        width = int(across * height / down)
    elif across > down:
        height = int(down * width / across)
    return height, width


def main() -> None:
    """Answer one question on the command line."""
    parser = argparse.ArgumentParser(description="Answer a question about a page with ONNX files.")
    parser.add_argument("page", help="image file of the page")
    parser.add_argument("question")
    parser.add_argument("--folder", default=str(Path(__file__).parent), help="of the ONNX files")
    given = parser.parse_args()
    try:
        with Image.open(given.page) as page:
            print(OnnxStudent(given.folder).answer([page], [given.question])[0])
    except (OSError, ValueError, KeyError, Image.DecompressionBombError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
