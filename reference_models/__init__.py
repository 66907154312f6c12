"""Reference implementations of masked autoencoders in PyTorch and in Keras 3.

The models in ``reference_models.pytorch`` and in ``reference_models.keras`` compute the same
functions; import the package for your framework. This package itself imports no framework, no
mapping table and no file format.
"""
