"""Students on disk: an ordinary Hugging Face folder, written whole and loaded strictly.

`config.json` carries the plan, `model.safetensors` the encoder and the sliced decoder, and the
tokenizer, image processor and model card lie beside them. The folder can be loaded in three ways:

    with circuitsearch     transformers' Auto classes, once `circuitsearch.students` is imported;
                           `load_student`, strictly; `load_teacher`, as a teacher
    without it             the Auto classes with trust_remote_code=True: `modeling.py` and
                           `remote.py` lie in the folder, and `auto_map` in config.json names them
    as a stock model       by `stock="auto"` and where the plan allows (see `stock`): nothing else
                           than transformers is needed

Nothing is pickled.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from transformers import VisionEncoderDecoderModel

from circuitsearch.core.errors import ConfigError, DataError, StorageError
from circuitsearch.core.files import open_to_umask, read_json, write_json, write_text
from circuitsearch.students.modeling import CircuitMBartConfig
from circuitsearch.students.replacements import is_table
from circuitsearch.students.saving.card import CardFacts, student_card
from circuitsearch.students.saving.stock import stock_problems, stock_student
from circuitsearch.students.student import plan_of
from circuitsearch.teacher.loading import Teacher, quiet_transformers

__all__ = ["load_student", "save_student"]

_CODE = ("modeling.py", "remote.py")
_AUTO_MAP = {
    "AutoConfig": "remote.CircuitStudentConfig",
    "AutoModelForImageTextToText": "remote.CircuitStudent",
}


def save_student(
    model: VisionEncoderDecoderModel,
    teacher: Teacher,
    folder: str | Path,
    *,
    facts: CardFacts | None = None,
    stock: Literal["no", "auto"] = "no",
) -> Path:
    """Write a student as an ordinary checkpoint folder.

    Args:
        model: the student.
        teacher: its teacher, whose tokenizer, image processor and prompt the folder gets.
        folder: where to write; files of an older checkpoint in it are replaced.
        facts: what the model card says beside plan, costs and teacher.
        stock: `auto` writes a stock model where the plan allows; where it does not, the folder is
            as usual and the card says why.

    Returns:
        The folder.

    Raises:
        ConfigError: if the model is no student.
        StorageError: if the folder cannot be written.
    """
    target = Path(folder).resolve()  # `.` has no name of its own
    plan_of(model)
    problems = stock_problems(model.decoder.config) if stock == "auto" else []
    plain = stock == "auto" and not problems
    card = student_card(model, teacher, facts or CardFacts(), stock=plain, reasons=problems)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.mkdir(parents=True)
        with quiet_transformers():
            (stock_student(model) if plain else model).save_pretrained(temporary)
        for weights in temporary.glob("*.safetensors"):
            open_to_umask(weights)
        if not plain:
            _add_code(temporary)
        teacher.processor.save_pretrained(temporary)
        write_json(temporary / "circuitsearch.json", _options(teacher))
        write_text(temporary / "README.md", card)
        target.mkdir(parents=True, exist_ok=True)
        for name in _CODE if plain else ():
            (target / name).unlink(missing_ok=True)
        # config.json goes first and comes last: a folder that has it is complete
        (target / "config.json").unlink(missing_ok=True)
        for file in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
            file.replace(target / file.name)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"Cannot write the student to {str(target)!r}: {error}. "
            "Check that the folder is writable and has free space."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def load_student(folder: str | Path, *, stock: bool = False) -> VisionEncoderDecoderModel:
    """Load what `save_student` wrote, in evaluation mode; nothing is downloaded.

    Args:
        folder: of the student.
        stock: whether a stock model will do, whose layers have other numbers than its plan's.

    Raises:
        ConfigError: if the folder is missing or holds no student, or a stock one that will not do.
        DataError: if its weights are damaged or do not belong to its config.
    """
    path = Path(folder)
    where = f"Student {str(path)!r}"
    if not (path / "config.json").is_file():
        raise ConfigError(f"{where}: there is no config.json; give a folder of save_student")
    if not stock and _is_stock(read_json(path / "config.json")):
        raise ConfigError(
            f"{where}: it is a stock model, whose layers have other numbers than its plan's; load "
            "it with load_teacher or VisionEncoderDecoderModel.from_pretrained"
        )
    try:
        with quiet_transformers():
            model, report = VisionEncoderDecoderModel.from_pretrained(
                path, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{where}: it cannot be loaded ({error}); save it again") from error
    # transformers fills what is missing with random numbers and only warns
    odd = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
    if odd:
        raise DataError(
            f"{where}: weights and config.json disagree on {len(odd)} tensors, e.g. {odd[0]}; the "
            "folder mixes two students or was changed by hand, save the student again"
        )
    try:
        plan_of(model)
    except ConfigError as error:
        raise ConfigError(
            f"{where}: its decoder carries no plan; give a student's folder. The teacher itself is "
            "called 'teacher'; of another checkpoint make the search's teacher"
        ) from error
    table = getattr(model.decoder.model.decoder, "token_map", None)  # a stock model has none
    if table is not None and not is_table(table):
        raise DataError(f"{where}: its table of tokens is damaged; save the student again")
    return model.eval()


def _is_stock(config: Any) -> bool:
    """Return whether a folder's config.json is that of a student as a stock model."""
    decoder = config.get("decoder") if isinstance(config, dict) else None
    if not isinstance(decoder, dict) or "plan_text" not in decoder:
        return False
    return decoder.get("model_type") != CircuitMBartConfig.model_type


def _add_code(folder: Path) -> None:
    """Put the classes into a folder, and where they are into its config.json."""
    for name in _CODE:
        shutil.copyfile(Path(__file__).parents[1] / name, folder / name)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"auto_map": _AUTO_MAP})


def _options(teacher: Teacher) -> dict[str, Any]:
    """Return what no Hugging Face file says about a teacher (see `teacher.checkpoint`)."""
    prompt = asdict(teacher.prompt)
    lowercase = prompt.pop("lowercase_question")
    return {"lowercase_question": lowercase, "max_length": teacher.max_length, "prompt": prompt}
