"""What a controller sees and is paid: features, reward terms, trajectory and registers."""
