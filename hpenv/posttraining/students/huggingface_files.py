"""Folders of Hugging Face models: read whole, as a copy in memory, or refused.

An error names what is wrong. `transformers` replaces what it does not find: a missing weight by
random numbers, a missing vocabulary by an empty one, a damaged generation_config.json by defaults.
A student of such a model would be trained for hours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors
import torch

from hpenv.lm.sources import check_file
from hpenv.lm.stored import read_object

#: Files that `transformers` reads besides weights. Each must be a JSON object if it is there.
OBJECTS = (
    *(
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ),
    *("added_tokens.json", "vocab.json", "model.safetensors.index.json"),
)


def read_model(
    folder: str | os.PathLike[str], gguf_file: str | None, dtype: torch.dtype
) -> tuple[Any, Any]:
    """Reads a causal language model and its tokenizer from a folder. Nothing is downloaded.

    Args:
        folder: see HuggingFaceStudent.load. `~` stands for the home folder.
        gguf_file: name of a GGUF file in the folder, which needs no other file.
        dtype: of the weights in memory.

    Raises:
        ModuleNotFoundError: without `transformers`.
        ValueError: if there is no such folder or file, or it does not hold a whole model with its
            tokenizer.
    """
    if not isinstance(folder, str | os.PathLike) or not isinstance(gguf_file, str | None):
        raise ValueError(
            f"folder and gguf_file must be a path and a name; got {folder!r} and {gguf_file!r}"
        )

    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "HuggingFaceStudent.load needs transformers; install it with: "
            "pip install 'hpenv[posttraining]'",
            name=error.name,
        ) from error

    path = Path(os.path.expanduser(folder))
    if not (path / (gguf_file or "config.json")).is_file():
        found = (
            sorted(entry.name for entry in path.glob("*.gguf"))
            if path.is_dir()
            else "no such folder"
        )
        raise ValueError(
            f"no {gguf_file or 'config.json'!r} in {str(path)!r} (GGUF files there: {found}); "
            "expected a folder with a model, as `hf download <name of the model> --local-dir "
            "<folder>` makes it"
        )

    if gguf_file is None:
        _check_files(path)
    which = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, **which)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, output_loading_info=True, **which
        )
        model, report = loaded
    except ImportError:
        raise
    except Exception as error:  # the parsers of a dozen formats raise many kinds
        place, reason = str(path / (gguf_file or ".")), str(error).strip().partition("\n")[0]
        raise ValueError(
            f"folder must hold a causal language model that `transformers` reads; got {place!r} "
            f"({type(error).__name__}: {reason}); download or save it again"
        ) from error

    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if names := sorted(map(str, report[kind])):
            raise ValueError(
                f"the files in {str(path)!r} must be those of the model that config.json "
                f"describes; {kind} are {names[:3]}, {len(names)} in all; download or save it again"
            )

    ends = model.generation_config.eos_token_id
    if not all(isinstance(end, int | None) for end in (ends if isinstance(ends, list) else [ends])):
        raise ValueError(
            f"eos_token_id in {str(path)!r} must be a number or a list of them; got {ends!r}"
        )

    files = set(tokenizer.vocab_files_names.values())
    if gguf_file is None and files and not any((path / name).is_file() for name in files):
        raise ValueError(
            f"no tokenizer in {str(path)!r}; expected one of the files {sorted(files)} of the model"
        )

    # Copies, because the weights are windows into the files. The files may be written again, and a
    # window may start anywhere in memory.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model, tokenizer


def _check_files(path: Path) -> None:
    """Refuses JSON files without an object, and safetensors files cut off or without floats."""
    for name in OBJECTS:
        if (path / name).is_symlink() or (path / name).exists():
            read_object("folder", path / name)

    for file in sorted(path.glob("model*.safetensors")):
        check_file("folder", str(file))
        try:
            with safetensors.safe_open(file, framework="pt", device="cpu") as opened:
                dtypes = {opened.get_slice(name).get_dtype() for name in opened.keys()}
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(
                f"folder must hold whole safetensors files; got {str(file)!r} ({error}); download "
                "or save it again"
            ) from error

        if not any(dtype.startswith(("F", "BF")) for dtype in dtypes):
            raise ValueError(
                f"weights must be floating-point numbers; {str(file)!r} holds {sorted(dtypes)} "
                "alone"
            )


def model_settings(model: Any, tokenizer: Any, config: Mapping[str, Any]) -> dict[str, object]:
    """Returns what decides a completion besides the weights, as JSON-able values.

    Fields of the student's configuration that change only the speed are left out.
    """
    speed, origin = ("texts_per_pass", "cache_dir"), ("_name_or_path", "transformers_version")
    settings = {name: value for name, value in config.items() if name not in speed}
    shape = {name: value for name, value in model.config.to_dict().items() if name not in origin}
    words = [
        sorted(tokenizer.get_vocab().items()),
        str(tokenizer.chat_template),
        str(tokenizer.special_tokens_map),
    ]

    for name, value in (("model", shape), ("tokenizer", words)):
        settings[name] = sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
    return settings | {"targets": list(config["targets"])}
