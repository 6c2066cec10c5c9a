"""Pure tensor code with two users or more."""
