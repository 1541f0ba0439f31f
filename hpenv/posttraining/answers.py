"""Programs as the answers of a chat: what stands between the texts of tasks and the tokens of a
language model.

With a chat template a prompt is part of the user's message, with thinking off; the answer is the
program in a block of code, whatever else may be said around it. Without one the program continues
the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: What the user says in a chat. It shows the head of a generated problem's function, and asks for
#: nothing but a form of answer that can be found. Without the head SmolLM2-135M named its functions
#: as it liked, and none of 10 of the easiest problems were solved; with it, 5.
MESSAGE = "Complete this Python function. Output only a ```python block.\n\n```python\n{prompt}def f(xs):\n```"

_BLOCK = re.compile(
    r"```(?:(?:python|py)3?\b[^`\n]*)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE
)


def program(text: str) -> str:
    """The first block of code of an answer, closed or cut off; all of the answer, if it has none."""
    found = _BLOCK.search(text)
    return found[1] if found else text


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text, first the one that texts of our own are given.

    Args:
        model: of `transformers`; its generation_config may name further ones.
        tokenizer: of the model.

    Raises:
        ValueError: if there are none.
    """
    declared = model.generation_config.eos_token_id
    others = declared if isinstance(declared, list) else [declared]
    ends = dict.fromkeys(int(end) for end in [tokenizer.eos_token_id, *others] if end is not None)
    if not ends:
        raise ValueError(
            f"{type(tokenizer).__name__} has no eos_token; expected one, since completions end with it"
        )
    return list(ends)


class Answers:
    """Texts to tokens and back, for one tokenizer.

    Attributes:
        pad: number of the token that fills up; it is never seen.
    """

    def __init__(self, tokenizer: Any, end: int, message: str = MESSAGE) -> None:
        """Keeps the tokenizer.

        Args:
            tokenizer: of `transformers`.
            end: number of the token that ends a completion.
            message: of the user in a chat, with the task's text in the place of {prompt}; empty:
                the chat template is not used, even if there is one.

        Raises:
            ValueError: for a message without a place for the prompt.
        """
        if message and "{prompt}" not in message:
            raise ValueError(
                f"got the message {message!r}; expected one with {{prompt}} in it, or none"
            )
        self._tokenizer, self._end, self._message = tokenizer, end, message
        self._chat = bool(message) and tokenizer.chat_template is not None
        self.pad = end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def prompts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens of prompts, filled up from their left, (texts, L) int64, and which of them are
        text, bool.

        Raises:
            ValueError: for a prompt without a token, behind which there is nothing to predict from.
        """
        encoded = [self._prompt(text) for text in texts]
        if [] in encoded:
            raise ValueError(
                f"got the prompt {texts[encoded.index([])]!r}; expected one of at least one token"
            )
        L = max(map(len, encoded))
        tokens = [[self.pad] * (L - len(own)) + own for own in encoded]
        return torch.tensor(tokens), torch.tensor(
            [[False] * (L - len(own)) + [True] * len(own) for own in encoded]
        )

    def completions(self, programs: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens of the answers with these programs, their end included, (texts, T) int64, and which are text, bool."""
        answers = [f"```python\n{text.rstrip()}\n```" if self._chat else text for text in programs]
        encoded = [[*self._numbers(text), self._end] for text in answers]
        T = max(map(len, encoded))
        tokens = [own + [self.pad] * (T - len(own)) for own in encoded]
        return torch.tensor(tokens), torch.tensor(
            [[True] * len(own) + [False] * (T - len(own)) for own in encoded]
        )

    def program(self, tokens: Sequence[int]) -> str:
        """The program that an answer holds, given the answer's tokens."""
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
