"""A trainer of a tiny model."""

import torch

from hpenv.posttraining.projection.direction import Direction
from hpenv.posttraining.students.adapter import attach
from tests.tiny_qwen3 import qwen3, transformers

DATA = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(0, 256, (8, 12), generator=torch.Generator().manual_seed(1))
]
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def direction(sizes: dict[str, int], k: int = 1, N: int = 1) -> Direction:
    generator = torch.Generator().manual_seed(3)
    axes = {
        name: torch.linalg.qr(torch.randn(N, r, k, generator=generator))
        .Q.transpose(1, 2)
        .contiguous()
        for name, r in sizes.items()
    }
    return Direction(axes, {name: torch.ones(N, k) for name in sizes})


def wrapped(quarantine: bool = False):
    model = qwen3()
    return model, attach(model, quarantine=quarantine)


def of_layers(model, k: int = 1) -> Direction:
    return direction({name: len(model.get_submodule(name).S) for name in LAYERS}, k)


def trained(tmp_path, model, callbacks, steps: int = 3, resumed=None, **arguments):
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=0.01,
        weight_decay=0.0,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **(
            {"logging_steps": 1, "save_strategy": "no", "lr_scheduler_type": "constant"} | arguments
        ),
    )
    trainer = transformers.Trainer(model=model, args=args, train_dataset=DATA, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resumed)
    return trainer


def coefficients_of(model) -> dict[str, torch.Tensor]:
    return {
        name: value.detach().clone()
        for name, value in model.named_parameters()
        if name.endswith(("coefficients", "quarantine"))
    }
