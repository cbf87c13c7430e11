"""Donut's true shape, random weights: plan, student, one distillation step, save, load, generate.

    OMP_NUM_THREADS=1 python tests/benchmarks/students/true_shape.py --out FILE.json

The teacher has the released checkpoint's sizes in every part (encoder of 2560 x 1920 pixels, four
decoder layers of 1,024, 57,532 tokens); only its tokenizer is the shipped teacher's. Each stage is
a command of its own process, with the peak of its resident memory and its processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from circuitsearch.core.files import write_json
from circuitsearch.core.shapes import known_shape
from circuitsearch.teacher.recipe import Sizes, new_model, new_processor, save_checkpoint

PLAN = "M0 C2 S3 C3"
SEARCH = """
name: true-shape
output: {output}
teacher: {teacher}
data: {{source: rendered, train: 2, score: 1, select: 1, final: 1}}
budget: [{{quantity: parameters, limit: 31.25%}}]
distill: {{steps: 1, batch: 2}}
elastic: {{steps: 0}}
"""
GENERATE = """
import sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
import circuitsearch.students
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
pixels = processor(Image.open(sys.argv[2]).convert("RGB"), return_tensors="pt").pixel_values
ids = processor.tokenizer("<s_docvqa><s_question>Total?</s_question><s_answer>",
                          add_special_tokens=False, return_tensors="pt").input_ids
with torch.no_grad():
    said = model.generate(pixels, decoder_input_ids=ids, max_length=ids.shape[1] + 8, num_beams=1)
print(said.shape[1] - ids.shape[1], "tokens")
"""


def teacher(folder: Path) -> None:
    """Write a checkpoint of donut-base's sizes with random weights."""
    shape = known_shape("donut-base").decoder
    sizes = Sizes(
        height=2560,
        width=1920,
        embed=128,
        depths=(2, 2, 14, 2),
        encoder_heads=(4, 8, 16, 32),
        window=10,
        layers=shape.layers,
        d_model=shape.d_model,
        heads=shape.heads,
        ffn=shape.ffn,
        max_length=shape.positions - 2,
        init_std=0.02,
    )
    processor = new_processor(sizes)
    torch.manual_seed(0)
    model = new_model(sizes, processor.tokenizer)
    model.decoder.resize_token_embeddings(shape.vocabulary, mean_resizing=False)
    save_checkpoint(model, processor, folder)


def measured(name: str, *command: str) -> dict[str, Any]:
    """Run a command; return its peak memory in GiB and its processor seconds."""
    started = time.monotonic()
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.read() if process.stdout else ""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name}: exit code {process.returncode}")
    found = {
        "peak GiB": round(used.ru_maxrss / 2**20, 2),
        "CPU s": round(used.ru_utime + used.ru_stime, 1),
        "wall s": round(time.monotonic() - started, 1),
        "said": said.strip()[-200:],
    }
    sys.stdout.write(f"{name}: {json.dumps(found)}\n")
    sys.stdout.flush()
    return found


def main() -> None:
    """Run the stages and write what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        teacher(work / "teacher")
        search, student, page = work / "search.yaml", work / "student", work / "page.png"
        search.write_text(SEARCH.format(output=work / "out", teacher=work / "teacher"))
        render = "from circuitsearch.teacher.documents.synthetic import rendered_pages as r; "
        render += f"r(1, 'true shape')[0].image().save({str(page)!r})"
        circuitsearch = ["-c", "from circuitsearch.cli.main import main; main()"]
        distil = ["distill", str(search), "--plan", PLAN, "--output", str(student)]
        found = {
            "page": measured("page", "-c", render),
            "plan, student, one step, save": measured("distill", *circuitsearch, *distil),
            "load, generate": measured("generate", "-c", GENERATE, str(student), str(page)),
        }
    found["torch"] = torch.__version__
    write_json(options.out, {"plan": PLAN, **found})


if __name__ == "__main__":
    main()
