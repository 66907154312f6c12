"""Reference masked autoencoders, the same function written in PyTorch and in Keras 3.

The models live in ``reference_models.pytorch`` and ``reference_models.keras``; import the one whose
framework is wanted. This package itself imports neither, nor any mapping table or file format.
"""
