"""Convert a checkpoint with the classes of transformers 4.57.6; run by `benchmark.py`.

python scripts/bench_peer.py transformers CHECKPOINT OUTPUT HEADS
python scripts/bench_peer.py transformers-tf DIRECTORY OUTPUT HEADS

CHECKPOINT is a file of facebookresearch/mae, and DIRECTORY is an output of the first command. HEADS
is the number of attention heads of the encoder; the second command does not use it.
"""

import argparse
import re

RENAMED = (
    ("cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    ("patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
    ("norm.", "vit.layernorm."),
    ("mask_token", "decoder.mask_token"),
    ("decoder_pos_embed", "decoder.decoder_pos_embed"),
    ("decoder_embed", "decoder.decoder_embed"),
    ("decoder_norm", "decoder.decoder_norm"),
    ("decoder_pred", "decoder.decoder_pred"),
)
IN_A_BLOCK = (
    ("attn.proj", "attention.output.dense"),
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)


def renamed(name: str) -> str:
    """Return the name that a tensor of facebookresearch/mae has in transformers."""
    for ours, theirs in RENAMED:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    name = re.sub(r"^blocks\.", "vit.encoder.layer.", name)
    name = re.sub(r"^decoder_blocks\.", "decoder.decoder_layers.", name)
    for ours, theirs in IN_A_BLOCK:
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def to_pytorch(source: str, target: str, heads: int) -> None:
    """Load a facebookresearch/mae file with the PyTorch class of transformers; save the model."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    state = torch.load(source, map_location="cpu", weights_only=True)["model"]
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    config = ViTMAEConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    state_renamed = {}
    for name, tensor in state.items():
        if ".qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state_renamed[renamed(name).replace("attn.qkv", f"attention.attention.{part}")] = (
                    third
                )
        else:
            state_renamed[renamed(name)] = tensor
    model = ViTMAEForPreTraining(config)
    model.load_state_dict(state_renamed, strict=True)
    model.save_pretrained(target)


def to_tensorflow(source: str, target: str) -> None:
    """Load the PyTorch weights in a directory with the TensorFlow class, and save the model."""
    from transformers import TFViTMAEForPreTraining

    TFViTMAEForPreTraining.from_pretrained(source, from_pt=True).save_pretrained(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layout", choices=("transformers", "transformers-tf"))
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("heads", type=int)
    given = parser.parse_args()
    if given.layout == "transformers":
        to_pytorch(given.source, given.target, given.heads)
    else:
        to_tensorflow(given.source, given.target)
