"""A Qwen3 of two layers and width 32 with random weights, over bytes."""

import pytest
import torch

transformers = pytest.importorskip(
    "transformers", reason="needs transformers: pip install 'hpenv[posttraining]'"
)
tokenizers = pytest.importorskip(
    "tokenizers", reason="needs tokenizers: pip install 'hpenv[posttraining]'"
)

PAD, END = 256, 257
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n"
    "{% endfor %}<assistant>{% if enable_thinking %}!{% endif %}"
)


def byte_tokenizer(chat: bool = False):
    """One token per byte of UTF-8, and two special ones."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(
        {letter: number for number, letter in enumerate(letters)}, merges=[]
    )
    core = tokenizers.Tokenizer(model)
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<end>"])
    result = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>"
    )
    result.chat_template = CHAT if chat else None
    return result


def qwen3(seed: int = 0, scale: float = 0.3):
    """Weights of a larger scale than usual, so that the distributions are not flat."""
    config = transformers.Qwen3Config(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.normal_(0.0, scale, generator=generator)
    return model.eval()
