"""Several processes: what travels between them, who has which part of the state, and who is alive."""
