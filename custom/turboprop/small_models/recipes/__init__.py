"""What each small model is, what it is trained on, and how well it does."""
