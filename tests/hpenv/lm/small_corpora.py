"""Small texts and tokenizers."""

TEXT = "".join(f"línea {i}: the quick brown fox {i * i} jumps\n" for i in range(400))


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)
