"""The template that `mae-convert runner new` writes: a runner for the user's own model."""

SKELETON = '''"""Your own model as a runner of `mae-convert verify A B --against FILE.py:build`.

Only `build` is needed; delete what your model does not need. The file is imported in a child
process, by the interpreter of `--against FILE.py:build=PYTHON`.
"""

# from my_package import MyModel

# The layout of the state dict that your model loads: "facebook", "transformers", "timm" ...
# (`mae-convert layouts`). None: the layout of the checkpoint.
LAYOUT = None

# How your model gets the noise that determines the mask: "argument" if it is called as
# model(pixel_values, noise), "torch.rand" if it generates the noise with one call of torch.rand,
# which is then replaced, or None if it does not mask.
MASK = "argument"

# The names of the values in the tuple that your model returns. Possible names: mask,
# ids_restore, last_hidden_state, logits, reconstruction, loss, loss_norm_pix.
OUTPUTS = ("loss", "logits", "mask")

# Which modules (Keras: layers) compute which intermediate activations; {} is the number of a block.
# Remove the entries whose modules your model does not have. "path:input" is the input of a module;
# for a name with {q,k,v}, the output is split along the last axis.
ACTIVATIONS = {
    "encoder.embedding": "blocks.0:input",
    "encoder.blocks.{}.{q,k,v}": "blocks.{}.attn.qkv",
    "encoder.blocks.{}.attention": "blocks.{}.attn",
    "encoder.blocks.{}.mlp": "blocks.{}.mlp",
    "encoder.blocks.{}.output": "blocks.{}",
    "encoder.norm": "norm",
}


def build(config):
    """Return the model: a torch.nn.Module or a keras.Model, with any weights.

    Args:
        config: fields of the configuration (hidden_size, num_hidden_layers, layer_norm_eps ...),
            "task" (pretrain, encoder or classify), "num_kept" (the number of patches that are not
            removed) and "dtype" (the dtype of a Keras model).
    """
    raise NotImplementedError("return your model, for example MyModel(width=config['hidden_size'])")


# def load_state(model, state):
#     """Load the tensors of the checkpoint, by name, into the model.
#
#     Without this function, a PyTorch model loads the tensors by model.load_state_dict(state,
#     strict=True), and each variable of a Keras model gets the tensor with the variable's path.
#     """
#     names = {name: name.removeprefix("module.") for name in state}
#     model.load_state_dict({names[name]: t for name, t in state.items()}, strict=True)


# def forward(model, pixel_values, noise):
#     """Run the model and return results by name.
#
#     Without this function, the model is called as MASK specifies, and OUTPUTS contains the names
#     of its results.
#
#     Args:
#         pixel_values: (N, C, H, W), or (N, C, T, H, W) for videos.
#         noise: (N, L), or None for a classifier; the num_kept patches with the lowest values are
#             kept.
#     """
#     loss, logits, mask = model(pixel_values, noise)
#     return {"logits": logits, "mask": mask}
'''
