"""Post-training as a plant: GRPO on programs whose grader has loopholes, and defenses."""
