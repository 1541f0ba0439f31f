"""Files and folders of programs: checks before a run, one configuration per folder, atomic writes.

A run's folder holds `config.json`: the number of its format, the whole configuration, and the facts
of the run's start. A program that starts again in the folder continues the run if the configuration
is the same, and refuses the folder otherwise. Checkpoints are the children of `checkpoints/` with a
number at the end of their names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from hpenv.benchmark.files import check_folder, write_text
from hpenv.plant import snapshots

#: Format of a run's folder. In 2, env_kwargs is a dictionary and progress.jsonl counts timesteps.
FORMAT = 2
CONFIG = "config.json"
#: Number of checkpoints that are not deleted.
KEPT_CHECKPOINTS = 2


def check_run_folder(
    folder: Path,
    configuration: Mapping[str, Any],
    may_change: Collection[str],
    written: Collection[str],
) -> None:
    """Checks that a run of this configuration can begin or continue in a folder. Changes nothing.

    Args:
        folder: folder of the run.
        configuration: the whole configuration, in types that JSON can hold.
        may_change: keys of the configuration that may differ when a run continues.
        written: names of the program's other files and folders, in addition to config.json and
            `checkpoints`.

    Raises:
        ValueError: it cannot. It names the file and the cure.
    """
    check_folder("out", folder)
    for name in ("checkpoints", *written):
        path = folder / name
        is_folder, should_be_folder = path.is_dir(), "." not in name
        if os.path.lexists(path) and is_folder != should_be_folder:
            expected = "a folder" if should_be_folder else "a file"
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
                f"{policy} must hold only the files of a policy; got {strange[0]}; "
                "move it away, or give another --out"
            )

    file = folder / CONFIG
    if not os.path.lexists(file):
        others = [name for name in ("checkpoints", *written) if os.path.lexists(folder / name)]
        if others:
            raise ValueError(
                f"{folder} must have a {CONFIG} with its {others}; got none; give another --out"
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
            f"{folder} must hold the same run; got differences (there, given): {different}; "
            "give another --out"
        )


def claim(folder: Path, configuration: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes config.json of a folder that `check_run_folder` has accepted.

    The facts of an existing config.json, those of the run's start, do not change.
    """
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
            f"{file} must be readable JSON; got {error}; "
            "give another --out, or move the folder away"
        ) from error

    if isinstance(values, dict) and "format" not in values and "configuration" in values:
        raise ValueError(
            f"{file} must have format {FORMAT}; got one of an earlier version of this program; "
            "give another --out, or finish the run with that version"
        )
    if not (
        isinstance(values, dict)
        and values.get("format") == FORMAT
        and isinstance(values.get("configuration"), dict)
        and isinstance(values.get("facts"), dict)
    ):
        raise ValueError(
            f"{file} must be an object with format {FORMAT}, configuration and facts; "
            "give another --out, or move the folder away"
        )

    return values["configuration"]


def _checkpoint_paths(folder: Path, prefix: str) -> list[Path]:
    """Returns files and folders in `checkpoints/` with a checkpoint's name, by number."""
    found = (folder / "checkpoints").glob(f"{prefix}-*")
    return sorted((path for path in found if re.fullmatch(rf"{prefix}-\d+", path.name)), key=number)


def number(checkpoint: Path) -> int:
    """Returns the number at the end of a checkpoint's name: 7 of `step-0000007`."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(folder: Path, prefix: str) -> list[Path]:
    """Returns the complete checkpoints of a run's folder, oldest first.

    Other names, such as `step-0000005.bak`, are ignored.
    """
    return [path for path in _checkpoint_paths(folder, prefix) if path.is_dir()]


def resume(folder: Path, prefix: str, load: Callable[[Path], object]) -> Path | None:
    """Loads the newest checkpoint that is not damaged, if there is one.

    Damaged checkpoints are renamed to `*.damaged`, with a warning. Otherwise they would outlive new
    checkpoints, because their names have higher numbers.

    Args:
        folder: folder of the run.
        prefix: prefix of the checkpoints' names.
        load: function that loads a checkpoint. It raises a SnapshotError if the checkpoint is
            damaged.

    Returns:
        The loaded checkpoint, or None.
    """
    loaded, skipped = None, []
    for checkpoint in reversed(_checkpoint_paths(folder, prefix)):
        if loaded is None:
            try:
                load(checkpoint)
            except snapshots.SnapshotError as error:
                skipped.append(f"skipped a checkpoint, now {_move_aside(checkpoint).name}: {error}")
            else:
                loaded = checkpoint
        elif not checkpoint.is_dir():
            skipped.append(f"moved {_move_aside(checkpoint).name} aside, which is no folder")

    start = 0 if loaded is None else number(loaded)
    for text in skipped:
        warnings.warn(f"{text}; training starts from {prefix} {start}", stacklevel=2)

    return loaded


def _move_aside(checkpoint: Path) -> Path:
    """Renames a damaged checkpoint, replaces an earlier one, and returns the new path."""
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
