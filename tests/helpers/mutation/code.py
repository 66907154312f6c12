"""Names of faults in code, independent of the framework, and of their causes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CodeFault:
    """A fault in the code of a model.

    Attributes:
        name: as in ``code_pytorch`` and ``code_keras``.
        model: the model of ``models.MODELS`` in which the fault has an effect.
        keys: the kinds of hypotheses that identify it (see ``mae_convert.diagnose``), if any.
        words: the words that a sentence about the cause must contain. Without keys and words no
            sentence is expected: the fault has to be detected, and counts as not named.
    """

    name: str
    model: str
    keys: tuple[str, ...]
    words: tuple[str, ...] = ()


def faults_of(model: str, key: str, *names: str) -> list[CodeFault]:
    """Return faults of one kind; `key` may be several keys, separated by commas.

    Several keys are correct if a changed tensor would have the same effect as the code.
    """
    return [CodeFault(name, model, tuple(key.split(", "))) for name in names]


CODE_FAULTS = [
    *faults_of("pretrain", "epsilon",
               "eps 1e-5 everywhere", "eps 1e-12 in the decoder", "eps 1e-12 before the MLP",
               "eps 1e-3 in block 1", "eps 1e-5 in the last norms", "eps 1e-12 in the blocks"),
    *faults_of("pretrain", "activation",
               "GELU by tanh", "quick GELU in the decoder", "ReLU in one block"),
    *faults_of("pretrain", "number of heads", "six heads", "four decoder heads"),
    *faults_of("pretrain", "heads",
               "heads inside out", "heads not transposed back", "heads split inside out"),
    *faults_of("pretrain", "scale", "scale by the width", "no scale", "scale twice"),
    *faults_of("pretrain", "attention",
               "causal attention", "key and value exchanged", "softmax over queries",
               "class token not attended to", "query and key exchanged"),
    *faults_of("pretrain", "structure",
               "normalized after", "attention and MLP in parallel", "no residual of attention",
               "no residual of the MLP"),
    *faults_of("pretrain", "norm",
               "unbiased variance in norms", "RMS norm", "epsilon outside the root",
               "no last norm of the encoder", "no norm before the MLP"),
    *faults_of("pretrain", "images", "BGR images", "images upside down"),
    *faults_of("pretrain", "patch axes", "patches cut as (channel, row, column)",
               "patches cut as (column, row, channel)"),
    *faults_of("learned", "encoder.embedding code, positions, multiplied",
               "no position of the class token", "positions not picked", "class token twice",
               "patches column by column", "positions one off"),
    *faults_of("pretrain", "mask",
               "highest noise kept", "mask inverted", "shuffle in place of ids_restore",
               "one patch more", "mask in the shuffled order", "ids one off"),
    *faults_of("learned", "decoder.embedding code, positions",
               "not restored", "mask tokens first", "no decoder position of the class token",
               "decoder positions before restoring", "decoder positions one off"),
    *faults_of("pretrain", "patches", "last token left out"),
    *faults_of("pretrain", "pixels", "reconstruction as (channel, row, column)",
               "reconstruction as BGR"),
    *faults_of("pretrain", "loss", "loss over visible patches", "loss over all patches",
               "absolute error", "summed over a patch"),
    *faults_of("pretrain", "statistics", "biased variance of patches", "no epsilon of patches"),
    *faults_of("avg", "pool", "mean with the class token", "normalized before pooling",
               "class token pooled"),
    *faults_of("token", "pool", "mean of patches read", "first patch read"),
    *faults_of("pretrain", "zero", "no key bias", "no patch bias", "no bias of fc2",
               "no bias of the prediction"),
    *faults_of("pretrain", "blocks", "blocks in reverse order"),
    CodeFault("dropout left on", "pretrain", (), ("dropout of 0.1 is active",)),
    CodeFault("dropout of attention left on", "pretrain", (), ("its results are random",)),
    CodeFault("last block left out", "pretrain", (), ("encoder.blocks.2.q is missing in B",)),
    CodeFault("layer scale 0.9", "pretrain", (), ("0.9 times attention",)),
    CodeFault("logits of attention capped", "pretrain", ()),
    CodeFault("first block twice", "pretrain", ("blocks",)),
]  # fmt: skip

PRECISIONS = [
    CodeFault(f"{part} in {dtype}{where}", "pretrain", ("precision",), (words, dtype))
    for part, words in (
        ("attention", "attention"),
        ("linear layers", ""),
        ("norms", "norm"),
        ("the MLP", "MLP"),
        ("everything", ""),
    )
    for dtype in ("bfloat16", "float16", "TF32")
    for where in ("", ", but not in the proof")
    if not (part == "norms" and dtype == "TF32")
]
