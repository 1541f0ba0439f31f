"""Optimizes past schedules and distills them: `python -m train_agents.hindsight`.

The non-causal optimizer of AdaptiveRL, section 9, and the causal controller that it teaches:

1. Search. For every seed and every start (a multiple of the base rate), the first pass records a
   run, and the second finds better past actions (`train_agents.trajectories`).
2. Distillation. The improved runs are played again, and a small MLP is fitted to their actions at
   their observations (`agents.imitation`).
3. Rounds. The MLP controls the runs of the same seeds. At each of its states the right action is
   the one that leads to the improved run's position. It is fitted to all rounds together.

That label is not the action that a search from the state itself would find, which would cost a
search per state. It is right if the best rate at a step depends little on the rates before it.

The program writes these files to its folder:

- `config.json`.
- `searches.jsonl`: positions, actions, losses on the probe and cost of every search.
- `rollouts.jsonl`: observations and labels of every round, with held-out scores of the runs.
- `progress.jsonl` and TensorBoard events.
- `policy/` at the end. `train_agents.evaluate` and `python -m hpenv.benchmark run` score it.

After an interruption, the same command continues after the last whole search or round. Costs are in
run equivalents: decisions that were played over those of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.imitation import clone_behavior
from hpenv.arrays import FloatArray
from hpenv.benchmark.command_line import configuration, refusals
from hpenv.benchmark.controllers import load_controller
from hpenv.benchmark.environments import make_population, spec_of
from hpenv.benchmark.facts import environment_facts
from hpenv.benchmark.progress import Advance
from hpenv.env import TrainLoopVectorEnv
from hpenv.policies.gaussian_mlp import GaussianMLP
from hpenv.policies.store import save_policy
from train_agents import outputs
from train_agents.hindsight_config import HindsightConfig
from train_agents.logs import RunLog, append_line, read_lines
from train_agents.replays import EnvRuns, controller_positions, play_runs
from train_agents.trajectories import (
    Dials,
    Improvement,
    expected_cost,
    improve,
    split_decisions,
)

#: Files and folders that the program writes, in addition to config.json.
WRITTEN = ("searches.jsonl", "rollouts.jsonl", "progress.jsonl", "tensorboard", "policy")
#: Round of the improved trajectories themselves.
EXPERT = 0


class Hindsight:
    """A new or continued run of the program."""

    def __init__(self, config: HindsightConfig) -> None:
        """Makes the first env, and checks and claims the folder.

        Raises:
            ValueError: the configuration is wrong, or the folder holds another run.
        """
        torch.set_num_threads(config.threads)
        self.config, self.folder = config, config.out
        left_out = ("out", "tensorboard", "threads", "searches")
        values = {key: value for key, value in asdict(config).items() if key not in left_out}
        values["env_kwargs"] = config.arguments(1.0)
        outputs.check_run_folder(self.folder, values, (), WRITTEN)

        self.env = self.make_env(config.starts[0], 1, config.features)
        self.dials = Dials.of(self.env)
        split_decisions(self.env.num_decisions, config.num_windows)
        names = self.env.action_names
        if unknown := sorted(set(config.cells) - set(names)):
            raise ValueError(f"cells must be some of {list(names)}; got {unknown}")
        self.columns = [i for i, name in enumerate(names) if name in (config.cells or names)]
        if config.first is not None:
            load_controller(config.first)
        if config.searches is not None:
            self.check_searches(config.searches)
        facts = environment_facts(values["env_kwargs"], self.env.corpus_digest)
        outputs.claim(self.folder, values, facts)
        self.values, self.spent = values, 0.0

    def check_searches(self, folder: Path) -> None:
        """Checks that the searches of another run are those of this configuration.

        Raises:
            ValueError: the folder is no run, or its searches are others.
        """
        theirs, ours = outputs.read_configuration(folder), self.config.search
        different = {
            key: (theirs.get(key), value) for key, value in ours.items() if theirs.get(key) != value
        }
        if different:
            raise ValueError(
                f"searches must be a run of the same runs and windows; {folder} differs "
                f"(there, given): {different}"
            )

    def make_env(self, start: float, num_rows: int, features: Sequence[str]) -> TrainLoopVectorEnv:
        """Makes the runs of a start."""
        arguments = self.config.arguments(start) | {"observation": list(features)}
        return make_population(self.config.env, num_rows, arguments)

    def run(self) -> GaussianMLP:
        """Searches, distills, and saves the policy."""
        config, folder = self.config, self.folder
        searches = read_lines(folder / "searches.jsonl")
        rollouts = read_lines(folder / "rollouts.jsonl")
        if config.searches is not None and not searches:
            searches = self.other_searches(config.searches)
        self.spent = sum(line["num_runs"] for line in [*searches, *rollouts])

        with (
            RunLog(folder, round(1e3 * self.spent), config.tensorboard, self.values) as log,
            log.progress(self.total_cost(), "hindsight", completed=self.spent) as advance,
        ):
            self.search_all(searches, log, advance)
            self.play_rounds(searches, rollouts, log, advance)
            policy, error = self.fit(rollouts)
            log.write({"round/error": error}, round(1e3 * self.spent) + 1)
        policy.spec = spec_of(self.env)
        save_policy(policy, folder / "policy")
        return policy

    def total_cost(self) -> float:
        """Returns the largest cost of searches and rounds [runs]."""
        config = self.config
        each = expected_cost(config.num_windows, config.sweeps, len(self.columns))
        return len(config.starts) * config.seeds * (each + 2 + config.rounds)

    def other_searches(self, folder: Path) -> list[dict[str, Any]]:
        """Copies the searches of another run, all of them, to the folder, and returns them.

        Raises:
            ValueError: the other run has not finished its searches.
        """
        lines = read_lines(folder / "searches.jsonl")
        wanted = len(self.config.starts) * self.config.seeds
        if len(lines) != wanted:
            raise ValueError(
                f"searches must be a folder with {wanted} searches; got {len(lines)} in {folder}"
            )
        for line in lines:
            append_line(self.folder / "searches.jsonl", line)
        return lines

    def search_all(self, searches: list[dict[str, Any]], log: RunLog, advance: Advance) -> None:
        """Searches for better actions of every run that has none yet, and adds them to the list."""
        config = self.config
        for number in range(len(searches), len(config.starts) * config.seeds):
            index, run = divmod(number, config.seeds)
            start, seed = config.starts[index], config.run_seeds[run]
            found = self.search(start, seed, advance)
            line = {"number": number, "start": start, "seed": seed, **plain(found)}
            append_line(self.folder / "searches.jsonl", line)
            searches.append(line)
            self.spent += found.num_runs
            metrics = {
                "search/first_loss": found.first_loss,
                "search/loss": found.loss,
                "search/num_runs": found.num_runs,
            }
            log.write(metrics, round(1e3 * self.spent))

    def play_rounds(
        self,
        searches: Sequence[Mapping[str, Any]],
        rollouts: list[dict[str, Any]],
        log: RunLog,
        advance: Advance,
    ) -> None:
        """Plays the rounds of every start that are not there yet, and adds them to the list."""
        num_starts, done = len(self.config.starts), len(rollouts)
        for round_number in range(self.config.rounds + 1):
            first = round_number * num_starts
            left = [index for index in range(num_starts) if first + index >= done]
            if not left:
                continue
            policy, error = None, float("nan")
            if round_number > EXPERT:  # the controller of all earlier rounds
                policy, error = self.fit(rollouts[:first])

            for index in left:
                found = self.rollout(round_number, index, searches, policy)
                line = {"number": first + index, **found}
                append_line(self.folder / "rollouts.jsonl", line)
                rollouts.append(line)
                self.spent += line["num_runs"]
                advance(line["num_runs"], f"round {round_number}")
                metrics = {
                    f"round/held_out/{index}": float(np.mean(line["held_out"])),
                    f"round/probe/{index}": float(np.mean(line["probe"])),
                    "round/error": error,
                }
                log.write(metrics, round(1e3 * self.spent))

    def search(self, start: float, seed: int, advance: Advance) -> Improvement:
        """Finds better past actions of one run."""
        config = self.config
        env = self.make_env(start, 1, ["progress"])
        runs = EnvRuns(env, seed, config.num_windows)
        title = f"start {start:g}, seed {seed}"
        return improve(
            runs,
            self.dials,
            self.first_pass(env, start, seed),
            config.sweeps,
            self.columns,
            lambda spent: advance(spent, title),
        )

    def first_pass(self, env: TrainLoopVectorEnv, start: float, seed: int) -> FloatArray:
        """Returns the positions of the first pass after every decision, (D, A)."""
        if self.config.first is None:
            return np.zeros((env.num_decisions, len(env.action_names)))
        controller = load_controller(self.config.first)
        return controller_positions(
            controller, env, self.config.env, self.config.arguments(start), seed
        )

    def rollout(
        self,
        round_number: int,
        index: int,
        searches: Sequence[Mapping[str, Any]],
        policy: GaussianMLP | None,
    ) -> dict[str, Any]:
        """Plays the runs of a start in a round, and labels their states.

        Round EXPERT plays the improved actions, and in further rows those of the first pass. In the
        others the policy acts.
        """
        config = self.config
        lines = searches[index * config.seeds : (index + 1) * config.seeds]
        arrays = {
            name: np.array([line[name] for line in lines]).swapaxes(0, 1)  # (D, N, A)
            for name in ("positions", "actions", "first_actions")
        }
        times = 1 if policy else 2
        rows = times * config.seeds
        env = self.make_env(config.starts[index], rows, config.features)
        if policy:
            played = play_runs(env, config.run_seeds, lambda _, seen: policy.act(seen))
        else:
            actions = np.concatenate([arrays["actions"], arrays["first_actions"]], axis=1)
            played = play_runs(env, 2 * config.run_seeds, lambda decision, _: actions[decision])

        own = slice(0, config.seeds)
        pairs = zip(played.positions[:, own], arrays["positions"], strict=True)
        labels = np.stack([self.dials.actions(before, wanted) for before, wanted in pairs])
        alive = played.alive[:, own]
        return {
            "round": round_number,
            "start": config.starts[index],
            "probe": played.probe[own].tolist(),
            "held_out": played.held_out[own].tolist(),
            "first_probe": played.probe[config.seeds :].tolist(),
            "first_held_out": played.held_out[config.seeds :].tolist(),
            "num_runs": float(rows),
            "observations": played.observations[:, own][alive].tolist(),
            "labels": labels[alive].tolist(),
        }

    def fit(self, rollouts: Sequence[Mapping[str, Any]]) -> tuple[GaussianMLP, float]:
        """Fits the controller to all labels of some rounds. Returns it and its squared error."""
        seen = np.concatenate([np.array(line["observations"]) for line in rollouts])
        labels = np.concatenate([np.array(line["labels"]) for line in rollouts])
        return clone_behavior(seen, labels, self.config.imitation, self.config.seed)


def plain(found: Improvement) -> dict[str, Any]:
    """Returns an improvement in JSON's types."""
    values = found._asdict()
    for name in ("positions", "actions", "first_actions"):
        values[name] = values[name].tolist()
    return values


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program and prints what was found."""
    config = configuration(HindsightConfig, "train_agents.hindsight", __doc__, arguments)
    with refusals():
        hindsight = Hindsight(config)
    try:
        hindsight.run()
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command continues from {config.out}")

    for line in read_lines(config.out / "searches.jsonl"):
        print(
            f"start {line['start']:.3g}, seed {line['seed']}: probe loss {line['first_loss']:.4f} "
            f"to {line['loss']:.4f} in {line['num_runs']:.1f} runs"
        )
    print(f"written: {config.out / 'policy'}")


if __name__ == "__main__":
    main()
