"""Controls of a training run: channels and the panel."""
