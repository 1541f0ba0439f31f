"""One program per paper: its tables and figures, from training to the committed numbers."""
