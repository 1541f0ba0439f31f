"""Self-check of the sandbox: attacks, and the bait that they are after."""
