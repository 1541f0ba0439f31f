"""Result files of runs that never were."""

from train_agents.experiments.sidecar import ExperimentConfig as SidecarExperiment

TINY_SIDECAR = SidecarExperiment(
    data="synthetic", num_steps=24, long_steps=30, batch_tokens=32, sequence_length=16,
    eval_tokens=256,
    eval_interval=12, num_traces=6, num_evaluation_seeds=2, num_tuning_seeds=1, num_reward_seeds=2,
    hidden_size=4,
    num_probe_batches=2,
    signal_states=(1,), signal_layers=(1,), signal_batches=2, signal_noise_steps=3,
)  # fmt: skip


def count(file, fail=False):
    """A job that leaves a trace each time it is run."""
    with open(file, "a") as trace:
        trace.write("x")
    if fail:
        raise ValueError("no luck")
    return [{"seed": 1}], {"note": "done"}


def result_row(seed, bpb, reason=None):
    curve = [5.5, 4.0, 3.0]
    return {
        "seed": seed, "bpb": bpb, "train_loss": 2.0, "probe_loss": 3.0, "divergence_reason": reason,
        "steps": [0, 12, 24],
        "probe_curve": curve, "train_curve": curve[1:],
        "panel": {"lr": [1.0, 2.0], "weight_decay": [1.0, 0.5]},
        "corpus": "c0ffee",
    }  # fmt: skip
