"""This project's Keras 3 models: ``.weights.h5`` as ``model.save_weights`` writes it.

Keras names a dataset by the attributes that lead to its layer and numbers the layer's variables in
the order of their creation: a dense layer has its kernel at 0 and its bias at 1, a norm gamma and
beta, the embeddings class token and positions, the decoder mask token and positions.
"""

from mae_convert.layouts.layout import IMAGENET, Layout
from mae_convert.layouts.transformers_tf import KERNEL
from mae_convert.mapping import TRANSPOSE, Repeat, Row, Table


def dense(canonical: str, external: str) -> tuple[Row, Row]:
    """Return the rows of one dense layer: the kernel is the transposed weight."""
    return (
        Row(f"{canonical}.weight", f"{external}/vars/0", TRANSPOSE),
        Row(f"{canonical}.bias", f"{external}/vars/1"),
    )


def norm(canonical: str, external: str) -> Row:
    """Return the row of one layer normalisation."""
    return Row(canonical + ".{weight,bias}", external + "/vars/{0,1}")


BLOCK = (
    *dense(".attention.q", "/attention/query"),
    *dense(".attention.k", "/attention/key"),
    *dense(".attention.v", "/attention/value"),
    *dense(".attention.output", "/attention/projection"),
    *dense(".mlp.fc1", "/fc1"),
    *dense(".mlp.fc2", "/fc2"),
    norm(".norm1", "/norm1"),
    norm(".norm2", "/norm2"),
)

KERAS = Layout(
    name="keras",
    title="this project's Keras 3 models, for TensorFlow and JAX",
    tables=(
        Table(
            "keras",
            ("pretrain", "encoder", "classify"),
            (
                Row("encoder.cls_token", "encoder/embeddings/vars/0"),
                Row("encoder.position_embedding", "encoder/embeddings/vars/1"),
                Row(
                    "encoder.patch_embedding.weight",
                    "encoder/embeddings/projection/vars/0",
                    KERNEL,
                ),
                Row("encoder.patch_embedding.bias", "encoder/embeddings/projection/vars/1"),
                Repeat("encoder.blocks.#", "encoder/block_#", BLOCK),
                norm("encoder.norm", "encoder/norm"),
                Row("decoder.mask_token", "decoder/vars/0"),
                Row("decoder.position_embedding", "decoder/vars/1"),
                *dense("decoder.embed", "decoder/embed"),
                Repeat("decoder.blocks.#", "decoder/block_#", BLOCK),
                norm("decoder.norm", "decoder/norm"),
                *dense("decoder.prediction", "decoder/prediction"),
                norm("head.norm", "fc_norm"),
                *dense("head", "classifier"),
            ),
        ),
    ),
    containers=("keras_h5",),
    conventions={
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "mask_ratio": 0.75,
        "norm_pix_loss": False,
        **IMAGENET,
    },
)
