"""The process that mae-convert runs in: signals that end it, and what it may run short of."""
