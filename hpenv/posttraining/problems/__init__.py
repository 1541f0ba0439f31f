"""Programming problems: generated, or read from JSONL files."""
