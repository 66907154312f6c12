"""Look at what a model does: masks, reconstructions, sheets of pictures, features."""
