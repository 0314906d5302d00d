"""Windows of training steps: knows states, gradients and updates, and neither models nor processes."""
