"""Convert checkpoints: plan a conversion, execute it, and write its record."""
