"""Prompts through chat templates, and programs out of answers."""

import pytest

import hpenv  # noqa: F401  registers the ids
from hpenv.posttraining.students.chat_format import MESSAGE, ChatFormat, program
from tests.tiny_qwen3 import END, PAD, byte_tokenizer


def test_a_prompt_goes_through_the_chat_template_where_there_is_one():
    said = MESSAGE.replace("{prompt}", "# a\n")
    assert "# a\ndef f(xs):" in said
    for chat, message, expected in (
        (True, MESSAGE, f"<user>{said}\n<assistant>"),
        (True, "", "# a\n"),
        (False, MESSAGE, "# a\n"),
    ):
        tokens, seen = ChatFormat(byte_tokenizer(chat), END, message).prompts(
            ["# a\n", "# longer than that\n"]
        )
        assert byte_tokenizer().decode(tokens[0][seen[0]]) == expected
        assert not seen[0, 0] and seen[:, -1].all() and (tokens[~seen] == PAD).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\ndef f(x):\n    return x\n```", "def f(x):\n    return x\n"),
        ("Sure!\n```py\na = 1\n```\nDone. ```python\nb = 2\n```", "a = 1\n"),
        ("```\na = 1\n```", "a = 1\n"),
        ("```python3\na = 1\n```", "a = 1\n"),
        ('```py title="a.py"\r\na = 1\r\n```', "a = 1\r\n"),
        ("```Python\ndef f(x):\n    ret", "def f(x):\n    ret"),
        ("def f(x):\n    return '`'", "def f(x):\n    return '`'"),
    ],
)
def test_the_program_is_the_first_block_of_an_answer(text, expected):
    assert program(text) == expected
