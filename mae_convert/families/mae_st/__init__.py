"""MAE-ST: its configuration, canonical schema and layouts."""
