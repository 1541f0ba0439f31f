"""The plant of language-model pretraining."""
