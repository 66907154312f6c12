"""The process that mae-convert runs in: signals that end it, and shortages of resources."""
