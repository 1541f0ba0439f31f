"""Files and folders that programs write: refused before anything runs, owned by one configuration,
never half written.

A run's folder holds `config.json`: the number of its format, the whole configuration, and the facts
of its start. A program that is started again in the folder goes on with the run if the
configuration is the same, and refuses it otherwise. Its checkpoints are the children of
`checkpoints/` with a number at the end of their names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from hpenv import snapshots

#: Of config.json and of the lines beside it. 2: env_kwargs is a dictionary, progress.jsonl counts
#: timesteps.
FORMAT = 2
CONFIG = "config.json"
#: Checkpoints that are kept.
KEPT_CHECKPOINTS = 2


def check_folder(name: str, path: Path) -> None:
    """Refuses a path that cannot be a folder with new files in it; leaves nothing behind.

    Args:
        name: of the argument, for the message.
        path: the folder, or where it will be made.

    Raises:
        ValueError: it is a file or lies below one, or nothing can be written there.
    """
    there = next(
        ancestor for ancestor in (path, *path.absolute().parents) if os.path.lexists(ancestor)
    )
    if not there.is_dir():
        raise ValueError(
            f"{name} must be a folder, or the path of a new one; got {path}, and {there} is no folder"
        )
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(
            f"{name} must be a folder that can be written; got {path}: {error.strerror}"
        ) from error


def check_file(name: str, path: Path) -> None:
    """Refuses a path that cannot be a file; leaves nothing behind.

    Args:
        name: of the argument, for the message.
        path: the file, which is made or replaced.

    Raises:
        ValueError: it is a folder, or its folder cannot be made or written.
    """
    if path.is_dir():
        raise ValueError(
            f"{name} must be a file, or the path of a new one; got {path}, which is a folder"
        )
    check_folder(f"the folder of {name}", path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file, whole or not at all; a reader never sees half of it. Its folder is made if it is missing."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def check_run_folder(
    folder: Path,
    configuration: Mapping[str, Any],
    may_change: Collection[str],
    written: Collection[str],
) -> None:
    """Refuses a folder in which a run of this configuration can neither begin nor be continued;
    changes nothing.

    Args:
        folder: of the run.
        configuration: JSON-able, all of it.
        may_change: its keys in which a run that is continued may differ.
        written: names of what the program writes into the folder beside config.json and
            `checkpoints`.

    Raises:
        ValueError: naming the file and the cure.
    """
    check_folder("out", folder)
    for name in ("checkpoints", *written):
        path = folder / name
        is_folder, should_be = path.is_dir(), "." not in name
        if os.path.lexists(path) and is_folder != should_be:
            expected = "a folder" if should_be else "a file"
            raise ValueError(
                f"{path} must be {expected} of a run; move it away, or give another --out"
            )
    policy = folder / "policy"
    if policy.is_dir():
        strange = sorted(
            {child.name for child in policy.iterdir()} - {*snapshots.FILES, snapshots.MANIFEST}
        )
        if strange:
            raise ValueError(
                f"{policy / strange[0]} does not belong to a policy; move it away, or give another --out"
            )
    file = folder / CONFIG
    if not os.path.lexists(file):
        others = [name for name in ("checkpoints", *written) if os.path.lexists(folder / name)]
        if others:
            raise ValueError(
                f"{folder} holds {others}, and no {CONFIG} that says of what run; give another --out"
            )
        return
    theirs = read_configuration(folder)
    ours = {key: value for key, value in _plain(configuration).items() if key not in may_change}
    different = {
        key: (theirs.get(key), ours.get(key))
        for key in sorted({*ours, *theirs} - {*may_change})
        if theirs.get(key) != ours.get(key)
    }
    if different:
        raise ValueError(
            f"{folder} holds another run, differing as (there, asked): {different}; give another --out"
        )


def claim(folder: Path, configuration: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes config.json of a folder that `check_run_folder` has passed; the facts stay those of the run's start."""
    file = folder / CONFIG
    if file.exists():
        facts = json.loads(file.read_text(encoding="utf-8"))["facts"]
    values = {"format": FORMAT, "configuration": _plain(configuration), "facts": dict(facts)}
    write_text(file, json.dumps(values, indent=1) + "\n")


def _plain(configuration: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(configuration), default=repr))


def read_configuration(folder: Path) -> dict[str, Any]:
    """Returns the configuration of the run in a folder.

    Raises:
        ValueError: config.json is missing, damaged, or of an earlier version.
    """
    file = folder / CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file} cannot be read: {error}; give another --out, or move the folder away"
        ) from error
    if isinstance(values, dict) and "format" not in values and "configuration" in values:
        raise ValueError(f"{file} is of an earlier version of this program, which alone can continue it; give another "
                         "--out, or finish the run with that version")  # fmt: skip
    if not (
        isinstance(values, dict)
        and values.get("format") == FORMAT
        and isinstance(values.get("configuration"), dict)
        and isinstance(values.get("facts"), dict)
    ):
        raise ValueError(
            f"{file} must be an object with format {FORMAT}, configuration and facts; give another --out, or move the "
            "folder away"
        )
    return values["configuration"]


def _named(folder: Path, prefix: str) -> list[Path]:
    """Children of `checkpoints/` that have a checkpoint's name, whatever they are, in the order of their numbers."""
    found = (folder / "checkpoints").glob(f"{prefix}-*")
    return sorted((path for path in found if re.fullmatch(rf"{prefix}-\d+", path.name)), key=number)


def number(checkpoint: Path) -> int:
    """Returns the number at the end of a checkpoint's name: 7 of `step-0000007`."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(folder: Path, prefix: str) -> list[Path]:
    """Returns the whole checkpoints of a run's folder, oldest first.

    A child of another name than the program gives is not one, and is left alone:
    `step-0000005.bak`.
    """
    return [path for path in _named(folder, prefix) if path.is_dir()]


def resume(folder: Path, prefix: str, load: Callable[[Path], object]) -> Path | None:
    """Goes on from the newest checkpoint that can be loaded, if there is one.

    Those that cannot be are moved aside to `*.damaged`, with a warning. As the newest by their
    names, they would outlive those that are written from now on.

    Args:
        folder: of the run.
        prefix: of the checkpoints' names.
        load: takes a checkpoint; a SnapshotError says that it is damaged.

    Returns:
        The checkpoint that was loaded, or None.
    """
    loaded, skipped = None, []
    for checkpoint in reversed(_named(folder, prefix)):
        if loaded is None:
            try:
                load(checkpoint)
            except snapshots.SnapshotError as error:
                skipped.append(
                    f"skipped a checkpoint, now {_moved_aside(checkpoint).name}: {error}"
                )
            else:
                loaded = checkpoint
        elif not checkpoint.is_dir():
            skipped.append(f"moved {_moved_aside(checkpoint).name} aside, which is no folder")
    start = 0 if loaded is None else number(loaded)
    for text in skipped:
        warnings.warn(f"{text}; training starts from {prefix} {start}", stacklevel=2)
    return loaded


def _moved_aside(checkpoint: Path) -> Path:
    """Returns where a damaged checkpoint is now; one that was there before is gone."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    if aside.is_dir():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)
    return checkpoint.rename(aside)


def drop_old(folder: Path, prefix: str) -> None:
    """Deletes all checkpoints but the last KEPT_CHECKPOINTS."""
    for old in checkpoints(folder, prefix)[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)
