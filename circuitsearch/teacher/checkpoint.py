"""A teacher's checkpoint folder: where it is, what its files settle, and its fingerprint.

Donut checkpoints differ in prompt, pixel normalisation, image size, maximal length and special ids.
All of that is read from the checkpoint's own files, never from constants:

    config.json             architecture, pad / end / decoder start ids
    generation_config.json  maximal length (else the decoder's position table)
    tokenizer files         task tokens and their ids
    preprocessor_config.json or processor_config.json   image size, normalisation, resampling
    circuitsearch.json      optional: {"lowercase_question": bool, "max_length": int,
                            "prompt": {"template": "...{question}...", "end": "..."}}

Whether questions were lowercased in training is in no Hugging Face file, hence circuitsearch.json.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from circuitsearch.core.errors import ConfigError, DataError, nearest, raise_together
from circuitsearch.core.files import content_hash, read_json

from .tokens import PromptFormat

__all__ = [
    "SHIPPED",
    "check_files",
    "find_checkpoint",
    "fingerprint",
    "read_max_length",
    "read_options",
    "read_prompt",
]

SHIPPED = Path(__file__).parent / "shipped"
"""Folder of the weights that the package brings along, under the name `shipped`."""

_OPTIONS_FILE = "circuitsearch.json"
_OPTIONS = {"lowercase_question": bool, "max_length": int, "prompt": dict}
_JSON_FILES = (
    "config.json",
    "generation_config.json",
    _OPTIONS_FILE,
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_BINARY_FILES = ("*.safetensors", "*.model", "merges.txt")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NOT_PICKLE = (
    'which is never loaded; convert it once: python -c "from transformers import '
    "VisionEncoderDecoderModel as V; V.from_pretrained('OLD').save_pretrained('NEW')\" "
    "and copy the tokenizer and preprocessor files"
)


def find_checkpoint(name: str) -> Path:
    """Return the local folder of a teacher.

    Args:
        name: `shipped`, a folder, or a Hugging Face name (`owner/model`), which is taken from the
            local cache or, when the network allows, downloaded into it.

    Raises:
        ConfigError: nothing is there under that name.
    """
    if name == "shipped":
        if not (SHIPPED / "config.json").is_file():
            raise ConfigError(
                "Teacher 'shipped': its weights are missing from the installed package "
                f"({SHIPPED}); reinstall circuitsearch, or give the folder of a checkpoint"
            )
        return SHIPPED
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ConfigError(f"Teacher {name!r}: it is a file; give the folder that holds config.json")
    if _HUB_NAME.fullmatch(name):
        return _from_hub(name)
    guess = nearest(name, ["shipped"])
    hint = f"; did you mean {guess!r}?" if guess else ""
    raise ConfigError(
        f"Teacher {name!r}: no such folder{hint}. Allowed are 'shipped', a checkpoint folder, or a "
        "Hugging Face name such as naver-clova-ix/donut-base-finetuned-docvqa"
    )


def _from_hub(name: str) -> Path:
    """Return the snapshot of a hub model, from the cache when it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = [*_JSON_FILES, *_BINARY_FILES, "*.safetensors.index.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ConfigError(
            f"Teacher {name!r}: no such folder, not in the local Hugging Face cache, and it cannot "
            f"be downloaded ({type(error).__name__}: {_first_line(error)}). Check the spelling; "
            f"without a network, fetch it elsewhere with `hf download {name}` and give the folder"
        ) from error


def check_files(folder: Path) -> dict[str, Any]:
    """Return config.json of a checkpoint whose files are complete.

    Raises:
        ConfigError: files are missing (all named at once), or it is no vision encoder-decoder.
    """
    problems = []
    if not (folder / "config.json").is_file():
        problems.append("config.json is missing; a checkpoint is what save_pretrained writes")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        problems.append(
            f"the weights are only there as pickle ({pickled[0]}), {_NOT_PICKLE}"
            if pickled
            else "weights (*.safetensors) are missing"
        )
    for what, names in (
        ("tokenizer", ("tokenizer.json", "tokenizer_config.json")),
        ("image processor", ("preprocessor_config.json", "processor_config.json")),
    ):
        if not any((folder / name).is_file() for name in names):
            problems.append(f"the {what} ({' or '.join(names)}) is missing")
    raise_together(problems, ConfigError, f"Teacher folder {str(folder)!r}")
    config = _json(folder / "config.json")
    kind = config.get("model_type")
    if kind != "vision-encoder-decoder":
        raise ConfigError(
            f"Teacher folder {str(folder)!r}: config.json says model_type {kind!r}, allowed is "
            "'vision-encoder-decoder' (Donut and its relatives); give such a checkpoint"
        )
    return config


def read_options(folder: Path) -> dict[str, Any]:
    """Return the entries of circuitsearch.json, {} when there is none.

    Raises:
        ConfigError: unknown entries or wrong types, all together.
    """
    path = folder / _OPTIONS_FILE
    if not path.is_file():
        return {}
    options = _json(path)
    problems = []
    for key, value in options.items():
        if key not in _OPTIONS:
            guess = nearest(key, _OPTIONS)
            hint = f"; did you mean {guess!r}?" if guess else ""
            problems.append(f"unknown entry {key!r}, allowed are {', '.join(_OPTIONS)}{hint}")
        elif type(value) is not _OPTIONS[key]:
            problems.append(f"{key}: got {value!r}, expected {_OPTIONS[key].__name__}")
    prompt = options.get("prompt")
    if isinstance(prompt, dict) and (
        set(prompt) != {"template", "end"}
        or not all(isinstance(text, str) for text in prompt.values())
        or prompt["template"].count("{question}") > 1
        or not all(re.search(r"<[^<>\s]+>", text) for text in prompt.values())
    ):
        problems.append(
            f"prompt: got {prompt!r}, expected the texts 'template' (with one {{question}}, or "
            "none where whole pages are read) and 'end', each with a tag"
        )
    raise_together(problems, ConfigError, str(path))
    return options


def read_prompt(
    folder: Path, tokenizer: Any, start_id: int | None, options: dict[str, Any]
) -> PromptFormat:
    """Return the prompt format of a checkpoint.

    circuitsearch.json decides when it names a prompt. Otherwise the format is Donut's, with the
    decoder's start token as the task token when that is one.

    Raises:
        ConfigError: tags of the prompt are not in the tokenizer.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    lowercase = options.get("lowercase_question", False)
    if "prompt" in options:
        prompt = PromptFormat(**options["prompt"], lowercase_question=lowercase)
    else:
        prompt = PromptFormat(lowercase_question=lowercase)
        start = None if start_id is None else tokenizer.convert_ids_to_tokens(start_id)
        if isinstance(start, str) and re.fullmatch(r"<s_[^<>]+>", start):
            template = start + prompt.template[prompt.template.index(">") + 1 :]
            prompt = PromptFormat(template, prompt.end, lowercase)
    missing = [
        tag
        for tag in re.findall(r"<[^<>\s]+>", prompt.template + prompt.end)
        if tag not in vocabulary
    ]
    if missing:
        raise ConfigError(
            f"Teacher folder {str(folder)!r}: the tokenizer lacks the task tokens "
            f"{', '.join(missing)} of the prompt {prompt.template!r}. Choose a checkpoint tuned "
            f"for questions, or state its own prompt in {_OPTIONS_FILE}: "
            '{"prompt": {"template": "...{question}...", "end": "..."}}'
        )
    return prompt


def read_max_length(folder: Path, positions: int, options: dict[str, Any]) -> int:
    """Return the longest decoder sequence (tokens, prompt included).

    Args:
        folder: the checkpoint.
        positions: usable rows of the position table, which bound every other setting.
        options: entries of circuitsearch.json.

    Raises:
        ConfigError: the setting is not an integer from 2.
    """
    path = folder / "generation_config.json"
    stated = _json(path).get("max_length") if path.is_file() else None
    longest = options.get("max_length", stated)
    if longest is None:
        return positions
    if not isinstance(longest, int) or longest < 2:
        source = _OPTIONS_FILE if "max_length" in options else path.name
        raise ConfigError(
            f"{folder / source}: max_length is {longest!r}, allowed are integers from 2"
        )
    return min(longest, positions)


def fingerprint(folder: Path) -> str:
    """Return a hash (16 hex digits) of everything in a checkpoint that changes what it computes.

    JSON files count by content, not by layout, and without the version that wrote them; weights and
    tokenizer models by their bytes, read in a stream. The folder's place and other files do not
    count.
    """
    contents: dict[str, Any] = {}
    for name in _JSON_FILES:
        if (folder / name).is_file():
            content = _json(folder / name)
            content.pop("transformers_version", None)
            contents[name] = content
    for path in _matching(folder, _BINARY_FILES):
        with path.open("rb") as stream:
            contents[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return content_hash(contents)


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a bad file is a fault of the setting that named the checkpoint."""
    try:
        content = read_json(path)
    except DataError as error:
        raise ConfigError(f"Teacher: {error}; fetch the checkpoint again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"Teacher: {str(path)!r} holds a {type(content).__name__}, not an object")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
