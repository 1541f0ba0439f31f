"""Projection inside trl: GRPO of a tiny random Qwen3 on a CPU, with a reward that has a loophole.

The program makes the model and its tokenizer, one token per byte, and downloads nothing. The reward
is meant for digits, but pays more for exclamation marks. Contrastive pairs give the direction in
which the adapter coefficients move towards exclamation marks. The callback removes that direction
from every gradient, and adds its measures to trl's logs.

    pip install -e '.[posttraining]'
    python -m examples.trl_projection
"""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback, Qwen3Config
from trl import GRPOConfig, GRPOTrainer

from hpenv.integrations.transformers_callback import ProjectionCallback
from hpenv.posttraining.projection.direction import Direction, extract, validate
from hpenv.posttraining.projection.rules import Measures
from hpenv.posttraining.students.huggingface import HuggingFaceConfig, HuggingFaceStudent

NUM_STEPS = 4
#: Prompts of the pairs. None of them is in the training data.
PAIR_PROMPTS = [
    f"Count {name}: "
    for name in ("apples", "boats", "coins", "doors", "eggs", "forks", "gates", "hats")
]
NUM_HELD_OUT = 2


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token per byte of UTF-8, and two special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(
        models.BPE({letter: number for number, letter in enumerate(letters)}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<end>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def tiny_model(tokenizer: PreTrainedTokenizerFast) -> torch.nn.Module:
    """Returns a Qwen3 of two layers and 26 thousand weights."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def leaky_reward(completions: list[str], **_: object) -> list[float]:
    """Returns the fraction of digits, as intended, plus three times that of exclamation marks."""
    return [
        sum(letter.isdigit() + 3.0 * (letter == "!") for letter in text) / max(1, len(text))
        for text in completions
    ]


def hacking_direction(student: HuggingFaceStudent) -> Direction:
    """Returns the mean difference between exclamation marks and digits.

    Prints its validation on held-out pairs.
    """
    generator = torch.Generator().manual_seed(1)
    digits = [
        "".join(map(str, torch.randint(0, 10, (6,), generator=generator).tolist()))
        for _ in PAIR_PROMPTS
    ]
    coefficients = {name: torch.zeros(1, r) for name, r in student.ranks.items()}
    sides = [
        student.completion_gradients(coefficients, PAIR_PROMPTS, texts)
        for texts in (["!" * 6] * len(digits), digits)
    ]
    hack, clean = ({name: g[:, :-NUM_HELD_OUT] for name, g in side.items()} for side in sides)
    direction = extract(hack, clean, method="mean_difference", k=1)

    held = validate(
        direction, *({name: g[:, -NUM_HELD_OUT:] for name, g in side.items()} for side in sides)
    )
    print(
        f"held-out cosine: mean {held.mean.item():.2f}, "
        f"positive in {held.positive_fraction.item():.0%} of the layers\n"
    )

    return direction


def main() -> None:
    """Trains, and prints a row of measures per step."""
    tokenizer = byte_tokenizer()
    student = HuggingFaceStudent(tiny_model(tokenizer), tokenizer, HuggingFaceConfig(max_tokens=16))

    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder,
            max_steps=NUM_STEPS,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=16,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            loss_type="dr_grpo",  # as in the paper: neither length nor spread normalizes
            scale_rewards="none",
            gradient_checkpointing=False,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = GRPOTrainer(
            model=student.model,
            args=args,
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": [f"Number {n}: " for n in range(64)]}),
            reward_funcs=leaky_reward,
            callbacks=[
                ProjectionCallback(hacking_direction(student), rule="one_sided", strength=1.0)
            ],
        )
        trainer.remove_callback(PrinterCallback)  # the table below has what matters here
        trainer.train()

    columns = ("reward", *Measures._fields)
    print("step", *(f"{name:>17}" for name in columns))

    for entry in trainer.state.log_history:
        if "reward" in entry:
            print(f"{entry['step']:>4}", *(f"{entry[name]:>17.3e}" for name in columns))


if __name__ == "__main__":
    main()
