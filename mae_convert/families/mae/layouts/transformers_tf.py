"""transformers' TensorFlow classes (removed in version 5): ``tf_model.h5``.

A dataset's path is the layer's name, then the weight's name, which begins with the name scope of
the class. transformers ignores the scope when it loads a file, so any scope is read, and the scope
of the class is written. Fixed position embeddings come last in their layer, because Keras lists
frozen weights last.

In shards (``tf_model-00001-of-00002.h5``) and in safetensors files with the metadata
``format: tf``, the name of a tensor is the weight's name, without the scope and the layer's name.
"""

from mae_convert.errors import Text
from mae_convert.families.mae.layouts.transformers import CONVENTIONS, write_config
from mae_convert.families.mae.layouts.transformers import refusal as refusal_in_pytorch
from mae_convert.families.transformers_fields import without_default_labels
from mae_convert.formats.registry import TF_H5
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Repeat, Row, Table
from mae_convert.layouts.transforms import TRANSPOSE, Permute
from reference_models.configuration import ViTMAEConfig

# PyTorch: (out, channels, height, width); TensorFlow: (height, width, channels, out).
KERNEL = Permute((2, 3, 1, 0))

Rows = tuple[Row | Repeat, ...]


def dense(canonical: str, external: str) -> tuple[Row, Row]:
    """Return the mapping rows of a dense layer, whose kernel is the transposed weight."""
    return (
        Row(f"{canonical}.weight", f"{external}/kernel:0", TRANSPOSE),
        Row(f"{canonical}.bias", f"{external}/bias:0"),
    )


def norm(canonical: str, external: str) -> Row:
    """Return the mapping row of a layer normalization."""
    return Row(canonical + ".{weight,bias}", external + "/{gamma,beta}:0")


BLOCK = (
    *dense(".attention.q", "/attention/attention/query"),
    *dense(".attention.k", "/attention/attention/key"),
    *dense(".attention.v", "/attention/attention/value"),
    *dense(".attention.output", "/attention/output/dense"),
    *dense(".mlp.fc1", "/intermediate/dense"),
    *dense(".mlp.fc2", "/output/dense"),
    norm(".norm1", "/layernorm_before"),
    norm(".norm2", "/layernorm_after"),
)


def _encoder(vit: str, *, frozen_positions: bool) -> Rows:
    cls_token = Row("encoder.cls_token", f"{vit}/embeddings/cls_token:0")
    positions = Row("encoder.position_embedding", f"{vit}/embeddings/position_embeddings:0")
    projection = f"{vit}/embeddings/patch_embeddings/projection"
    rest: Rows = (
        Row("encoder.patch_embedding.weight", f"{projection}/kernel:0", KERNEL),
        Row("encoder.patch_embedding.bias", f"{projection}/bias:0"),
        Repeat("encoder.blocks.#", f"{vit}/encoder/layer_._#", BLOCK),
        norm("encoder.norm", f"{vit}/layernorm"),
    )
    return (cls_token, *rest, positions) if frozen_positions else (cls_token, positions, *rest)


def _decoder(decoder: str) -> Rows:
    return (
        Row("decoder.mask_token", f"{decoder}/mask_token:0"),
        *dense("decoder.embed", f"{decoder}/decoder_embed"),
        Repeat("decoder.blocks.#", f"{decoder}/decoder_layers.#", BLOCK),
        norm("decoder.norm", f"{decoder}/decoder_norm"),
        *dense("decoder.prediction", f"{decoder}/decoder_pred"),
        Row("decoder.position_embedding", f"{decoder}/decoder_pos_embed:0"),
    )


def _tables(name: str, pretrain: str, encoder: str, classify: str) -> tuple[Table, ...]:
    """Return the mapping tables of the three classes, given the name scope of each class.

    All tables have the name `name`. With a scope, the names in the layer ``vit`` begin with
    ``vit/SCOPE/vit``; if the scope is empty, they begin with ``vit``.
    """

    def at(layer: str, scope: str) -> str:
        return f"{layer}/{scope}/{layer}" if scope else layer

    head = dense("head", at("classifier", classify))
    return (
        Table(
            name,
            ("pretrain",),
            (
                *_encoder(at("vit", pretrain), frozen_positions=True),
                *_decoder(at("decoder", pretrain)),
            ),
        ),
        Table(name, ("encoder",), _encoder(at("vit", encoder), frozen_positions=True)),
        Table(name, ("classify",), (*_encoder(at("vit", classify), frozen_positions=False), *head)),
    )


WRITTEN = _tables(
    "transformers-tf",
    "tf_vi_tmae_for_pre_training",
    "tf_vi_tmae_model",
    "tf_vi_t_for_image_classification",
)
ANY_SCOPE = _tables("transformers-tf", "*", "*", "*")
WITHOUT_SCOPE = _tables("transformers-tf, names without a model prefix", "", "", "")


def refusal(config: ViTMAEConfig, task: str) -> Text | None:
    """Return why the TensorFlow classes do not support a model for a task; None if they do.

    The classes of transformers 4.57.6 require ``image_size`` as one number, create fixed position
    embeddings for a square grid of patches, and always have query, key and value biases.
    """
    if reason := refusal_in_pytorch(config, task):
        return reason
    if config.image_hw[0] != config.image_hw[1]:
        return (
            "transformers' TensorFlow classes support only square images; convert to transformers, "
            "timm or keras"
        )
    if task == "encoder" and config.patch_hw[0] != config.patch_hw[1]:
        return "TFViTMAEModel supports only square patches; convert to transformers, timm or keras"
    if not config.qkv_bias:
        return (
            "transformers' TensorFlow classes always have query, key and value biases; convert to "
            "transformers or keras"
        )
    return None


TRANSFORMERS_TF = Layout(
    name="transformers-tf",
    family="mae",
    title="Hugging Face transformers, TensorFlow classes up to 4.57 (tf_model.h5)",
    tables=WRITTEN + ANY_SCOPE + WITHOUT_SCOPE,
    containers=(TF_H5,),
    weights_name="tf_model.h5",
    conventions=CONVENTIONS,
    class_defaults=("layer_norm_eps", "hidden_act"),
    read_config=without_default_labels,
    write_config=write_config,
    refusal=refusal,
)
