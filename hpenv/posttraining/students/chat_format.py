"""Chat format: converts between the texts of tasks and the tokens of a language model.

With a chat template, the prompt is part of the user's message, and thinking is off. The program is
the first block of code in the answer, whatever text surrounds it. Without a template, the program
continues the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Message of the user in a chat. It shows the head of a generated problem's function, and asks only
#: for a form of answer that can be found. Without the head SmolLM2-135M chose the names of its
#: functions, and solved none of 10 of the easiest problems. With the head it solved 5.
MESSAGE = (
    "Complete this Python function. Output only a ```python block.\n\n"
    "```python\n{prompt}def f(xs):\n```"
)

_BLOCK = re.compile(
    r"```(?:(?:python|py)3?\b[^`\n]*)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE
)


def program(text: str) -> str:
    """Returns the first block of code of an answer, closed or cut off, or else the whole answer."""
    found = _BLOCK.search(text)
    return found[1] if found else text


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Returns the tokens that end a text. The first one ends texts that are passed to the model.

    Args:
        model: of `transformers`. Its generation_config may name further tokens.
        tokenizer: of the model.

    Raises:
        ValueError: if there are no such tokens.
    """
    declared = model.generation_config.eos_token_id
    others = declared if isinstance(declared, list) else [declared]
    ends = dict.fromkeys(int(end) for end in [tokenizer.eos_token_id, *others] if end is not None)

    if not ends:
        raise ValueError(
            f"{type(tokenizer).__name__} has no eos_token; expected one, since completions end "
            "with it"
        )
    return list(ends)


class ChatFormat:
    """Converts texts to tokens and back, for one tokenizer.

    Attributes:
        pad: number of the padding token, which the model never sees.
    """

    def __init__(self, tokenizer: Any, end: int, message: str = MESSAGE) -> None:
        """Keeps the tokenizer.

        Args:
            tokenizer: of `transformers`.
            end: number of the token that ends a completion.
            message: of the user in a chat, with {prompt} in place of the task's text. If it is
                empty, the chat template is not used, even if there is one.

        Raises:
            ValueError: for a message without {prompt}.
        """
        if message and "{prompt}" not in message:
            raise ValueError(f"message must be empty or have {{prompt}} in it; got {message!r}")
        self._tokenizer, self._end, self._message = tokenizer, end, message
        self._chat = bool(message) and tokenizer.chat_template is not None
        self.pad = end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def prompts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns the tokens of prompts, padded on the left, and the mask of their text.

        Both are (texts, L), int64 and bool.

        Raises:
            ValueError: for a prompt without a token, after which nothing can be predicted.
        """
        encoded = [self._prompt(text) for text in texts]
        if [] in encoded:
            raise ValueError(
                f"a prompt must have at least one token; got {texts[encoded.index([])]!r}"
            )

        L = max(map(len, encoded))
        tokens = [[self.pad] * (L - len(numbers)) + numbers for numbers in encoded]
        mask = [[False] * (L - len(numbers)) + [True] * len(numbers) for numbers in encoded]
        return torch.tensor(tokens), torch.tensor(mask)

    def completions(self, programs: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns the tokens of answers with these programs, and the mask of their text.

        Both are (texts, T), int64 and bool. The end token is included in the text.
        """
        answers = [f"```python\n{text.rstrip()}\n```" if self._chat else text for text in programs]
        encoded = [[*self._numbers(text), self._end] for text in answers]
        T = max(map(len, encoded))
        tokens = [numbers + [self.pad] * (T - len(numbers)) for numbers in encoded]
        mask = [[True] * len(numbers) + [False] * (T - len(numbers)) for numbers in encoded]
        return torch.tensor(tokens), torch.tensor(mask)

    def program(self, tokens: Sequence[int]) -> str:
        """Returns the program in an answer, given the answer's tokens."""
        text = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return program(text)

    def _prompt(self, text: str) -> list[int]:
        if not self._chat:
            return list(self._tokenizer(text)["input_ids"])
        messages = [{"role": "user", "content": self._message.replace("{prompt}", text)}]
        chat = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return self._numbers(chat)

    def _numbers(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
