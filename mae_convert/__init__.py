"""Convert Masked Autoencoder checkpoints between frameworks and prove that nothing changed."""

__version__ = "0.1.0"
