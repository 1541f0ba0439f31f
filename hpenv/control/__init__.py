"""What an action may move: channels and the panel."""
