"""Checks the sandbox on this machine: `python -m hpenv.posttraining.sandbox --selfcheck`.

Prints a table of attacks and their outcomes. The exit code is 1 if an attack was not contained, or
if the kernel lacks something that the sandbox needs.
"""

import argparse
import sys
import textwrap

from hpenv.posttraining.sandbox.box import Sandbox
from hpenv.posttraining.sandbox.jobs import SandboxUnavailable
from hpenv.posttraining.sandbox.selfcheck.attacks import ATTACKS, run_attack


def selfcheck() -> int:
    """Runs every attack, and returns the number of attacks that were not contained."""
    failures = 0
    row = "{:36}  {:72}  {}\n".format
    sys.stdout.write(row("attack", "what it tries", "outcome"))

    with Sandbox() as box:
        for attack in ATTACKS.values():
            contained, outcome = run_attack(box, attack)
            failures += not contained
            result = "contained"
            if not contained:
                result = f"NOT CONTAINED: {outcome.killed_by or outcome.stdout[-300:]!r}"
            sys.stdout.write(row(attack.name, textwrap.shorten(attack.tries, 72), result))
            sys.stdout.flush()

    sys.stdout.write(f"{len(ATTACKS) - failures} of {len(ATTACKS)} attacks contained\n")
    return failures


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m hpenv.posttraining.sandbox", description=__doc__
    )
    parser.add_argument(
        "--selfcheck", action="store_true", required=True, help="attack the sandbox on this machine"
    )
    parser.parse_args()
    try:
        sys.exit(min(selfcheck(), 1))
    except SandboxUnavailable as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
