"""VideoMAE: its configuration, canonical schema, layouts and published models."""
