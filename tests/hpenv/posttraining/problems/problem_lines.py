"""Lines of problem files."""

import json

from hpenv.posttraining.problems.files import read_problems

SOLUTION = "class Solution:\n    def pick(self, xs, k=0):\n        return xs[k]\n"


def write(path, *records):
    path.write_text("\n\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


def read(tmp_path, *records):
    return read_problems(write(tmp_path / "problems.jsonl", *records))


def with_tests(**fields):
    return {
        "description": "Return item k of xs.",
        "entry_point": "pick",
        "solution": "def pick(xs, k): return xs[k]",
    } | fields


TESTS = "assert pick([1], 0) == 1"
