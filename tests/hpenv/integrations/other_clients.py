"""Clients that are installed by hand: TorchRL, RLlib, Minari, rl-zoo3, searches, trl, OpenEnv."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import gymnasium as gym
import numpy as np
import torch

from tests.paths import ROOT


def episode_return(env, position):
    """The return of a run whose controls stay at a position. A black box for a search."""
    env.reset(seed=0)
    total, over = 0.0, False
    while not over:
        _, reward, terminated, truncated, _ = env.step(np.asarray(position, dtype=np.float32))
        total, over = total + float(reward), terminated or truncated
    return total


def torchrl(id, arguments, folder):
    """`GymEnv(id)`, its checks, and a collector, which steps under no_grad."""
    from tensordict.nn import TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.envs import GymEnv, check_env_specs

    env = GymEnv(id, **arguments)
    env.auto_register_info_dict()
    check_env_specs(env)
    sizes = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    actor = TensorDictModule(torch.nn.Linear(*sizes), ["observation"], ["action"])
    frames = list(Collector(env, actor, frames_per_batch=4, total_frames=8))
    assert [len(batch) for batch in frames] == [4, 4]
    assert all(batch["next", "reward"].isfinite().all() for batch in frames)
    assert any(batch["next", "terminated"].any() for batch in frames)


def rllib(id, arguments, folder):
    """PPO with one worker, on single envs and on a native population."""
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig

    from hpenv.integrations.rllib import register

    path = os.pathsep.join(sys.path)
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    try:
        assert id in register()
        for mode in ("sync", "vector_entry_point"):
            config = (
                PPOConfig()
                .environment(id, env_config=arguments)
                .env_runners(
                    num_env_runners=1,
                    num_envs_per_env_runner=2,
                    rollout_fragment_length=4,
                    gym_env_vectorize_mode=mode,
                )
                .training(train_batch_size_per_learner=8, minibatch_size=4, num_epochs=1)
                .learners(num_learners=0)
            )
            algorithm = config.build_algo()
            result = algorithm.train()
            assert result["env_runners"]["num_episodes_lifetime"] > 0
            assert np.isfinite(result["env_runners"]["episode_return_mean"])
            algorithm.stop()
    finally:
        ray.shutdown()


def minari(id, arguments, folder):
    """A data set of two random runs. A stored episode replays to its stored observations."""
    from hpenv.integrations.minari import export
    from train_agents.make_datasets import RandomPositions

    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    env = gym.make(id, **arguments)
    controller = RandomPositions(env.action_space.shape[0])
    dataset = export("hpenv/client-v0", controller, id, arguments, [3, 5])
    env = dataset.recover_environment()
    for episode, seed in zip(dataset.iterate_episodes(), (3, 5), strict=True):
        observation, _ = env.reset(seed=seed)
        seen = [observation] + [env.step(action)[0] for action in episode.actions]
        assert np.allclose(seen, episode.observations, rtol=1e-4, atol=1e-5)
        assert episode.terminations.tolist() == [False] * (len(seen) - 2) + [True]


def rl_zoo3(id, arguments, folder):
    """Its training program with `--gym-packages hpenv` and the file of hyperparameters."""
    sizes = {"n_envs": 2, "n_steps": 4, "batch_size": 4, "n_epochs": 1}
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", "ppo", "--env", id]
    command += ["--gym-packages", "hpenv", "-conf", str(ROOT / "examples/rl_zoo3/ppo.yml")]
    command += ["-n", "16", "--eval-freq", "-1", "--log-folder", str(folder), "--env-kwargs"]
    command += [f"{key}:{value!r}" for key, value in arguments.items()]
    command += ["--hyperparams", *(f"{key}:{value}" for key, value in sizes.items())]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(folder.rglob(f"{id}.zip"))


def optuna(id, arguments, folder):
    """A search over constant positions."""
    import optuna as library

    library.logging.set_verbosity(library.logging.WARNING)
    env = gym.make(id, **arguments)
    names = env.unwrapped.action_names

    def objective(trial):
        return episode_return(env, [trial.suggest_float(name, -1.0, 1.0) for name in names])

    study = library.create_study(
        direction="maximize", sampler=library.samplers.TPESampler(seed=0, n_startup_trials=2)
    )
    study.optimize(objective, n_trials=3)
    best = [study.best_params[name] for name in names]
    assert episode_return(env, best) == study.best_value


def nevergrad(id, arguments, folder):
    """A search over constant positions."""
    import nevergrad as library

    env = gym.make(id, **arguments)
    space = library.p.Array(shape=env.action_space.shape).set_bounds(-1.0, 1.0)
    space.random_state.seed(0)
    optimizer = library.optimizers.OnePlusOne(parametrization=space, budget=3)
    best = optimizer.minimize(lambda position: -episode_return(env, position))
    assert np.isfinite(episode_return(env, best.value))


def cma(id, arguments, folder):
    """Ask and tell, with a candidate per row of a population whose rows have one seed."""
    import cma as library

    envs = gym.make_vec(id, num_envs=4, autoreset_mode="DISABLED", seed_mode="grouped", **arguments)
    size = envs.single_action_space.shape[0]
    # cma has no search in one dimension: a second one is searched and not used.
    options = {"popsize": 4, "bounds": [-1, 1], "seed": 1, "verbose": -9}
    search = library.CMAEvolutionStrategy(np.zeros(max(2, size)), 0.3, options)
    for _ in range(2):
        candidates = search.ask()
        actions = np.array(candidates, dtype=np.float32)[:, :size]
        envs.reset(seed=0)
        totals, alive = np.zeros(4), np.ones(4, dtype=bool)
        while alive.any():
            _, rewards, terminated, truncated, _ = envs.step(actions)
            totals, alive = totals + alive * rewards, alive & ~(terminated | truncated)
        search.tell(candidates, (-totals).tolist())
    assert np.isfinite(search.best.f)


def trl(id, arguments, folder):
    """A language model whose text sets the controls, paid by the return of the run."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from hpenv.isolation import torch_defaults
    from tests.tiny_qwen3 import byte_tokenizer, qwen3

    env = gym.make(id, **arguments)
    size = env.action_space.shape[0]
    rewards = []

    def reward_of(completions, **_):
        """Reads up to A numbers from each text. Nothing of it is executed."""
        for text in completions:
            numbers = [float(number) / 9 for number in re.findall(r"\d", text)][:size]
            rewards.append(episode_return(env, np.resize([*numbers, 0.0], size)))
        return rewards[-len(completions) :]

    tokenizer = byte_tokenizer()
    tokenizer.padding_side = "left"
    options = GRPOConfig(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=8,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        gradient_checkpointing=False,
    )
    trainer = GRPOTrainer(
        model=qwen3(),
        args=options,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": ["Controls: ", "Numbers: "]}),
        reward_funcs=reward_of,
    )
    trainer.train()
    with torch_defaults():
        assert len(rewards) >= 2 and np.isfinite(rewards).all()


def openenv(id, arguments, folder):
    """A server in a thread, and OpenEnv's client without anything of hpenv."""
    import uvicorn
    from openenv.core.generic_client import GenericEnvClient

    from hpenv.integrations.openenv import application

    server = uvicorn.Server(uvicorn.Config(application(id, arguments), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        client = GenericEnvClient(base_url=f"http://127.0.0.1:{port}", message_timeout_s=300)
        with client.sync() as env:
            steer(env)
    finally:
        server.should_exit = True
        thread.join()


def steer(env):
    """Reads the tools, makes mistakes that train nothing, and plays an episode."""

    def call(tool, **values):
        return env.step({"type": "call_tool", "tool_name": tool, "arguments": values})

    tools = env.step({"type": "list_tools"}).observation["tools"]
    schemas = {tool["name"]: tool["input_schema"] for tool in tools}
    names = list(schemas["set_controls"]["properties"])
    first = env.reset(seed=1).observation["text"]
    assert all(name in first for name in names) and "Decision 0 of" in first

    for tool, values, kind in (
        ("set_controls", {names[0]: 1.5}, "invalid_args"),
        ("set_controls", {names[0]: "__import__('os')"}, "invalid_args"),
        ("set_controls", {"import os": 0.1}, "invalid_args"),
        ("execute_code", {"code": "1"}, "tool_not_found"),
    ):
        answer = call(tool, **values)
        assert answer.observation["error"]["error_type"] == kind
        assert answer.reward is None and env.state()["step_count"] == 0

    done, count = False, 0
    while not done:
        answer = call("set_controls", **{names[0]: 0.3})
        count, done = count + 1, answer.done
        assert f"Decision {count} of" in answer.observation["result"]
        assert np.isfinite(answer.reward)
    assert "Held-out" in answer.observation["result"] and env.state()["step_count"] == count
    late = call("set_controls", **{names[0]: 0.3})
    assert late.observation["error"]["error_type"] == "execution_error"
    json.dumps(late.observation)
