"""The verification is tested: faults in one side must be detected, by tensors, traces or both.

Every mutant is run by the PyTorch reference in this process, on the golden pre-training model. A
forward pass cannot detect some faults (tensors that are only used as a sum, a consistent
permutation), and the comparison of tensors cannot detect others (faults of the code, of
configurations, of mapping tables). The lists below state which, and the scores are printed.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mutation.running import run_jobs
from safetensors.numpy import save_file

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import Plan, plan_conversion
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.mae.layouts import transformers, transformers_tf
from mae_convert.families.mae.layouts.transformers import TRANSFORMERS
from mae_convert.layouts.table import Repeat, Table, write_tensors
from mae_convert.layouts.transforms import SAME, Permute
from mae_convert.runtime import run_pytorch
from mae_convert.runtime.inputs import random_inputs
from mae_convert.runtime.job import Job, StoredWeights
from mae_convert.runtime.sides import Side, classes_of, loader_for
from mae_convert.runtime.trace import Trace, describe
from mae_convert.verify.judge import judge

WIDTH, HEADS = 32, 4


@dataclass(frozen=True)
class Mutant:
    """A fault in the weights.

    ``changed_tensors`` are canonical names. ``blind`` is true if no forward pass can detect the
    fault, because all outputs and activations stay the same.
    """

    name: str
    change: object
    changed_tensors: tuple[str, ...]
    blind: bool = False


def edit(name, function):
    def change(tensors):
        tensors[name] = np.ascontiguousarray(function(tensors[name]), dtype=tensors[name].dtype)

    return change


def swap(first, second):
    def change(tensors):
        tensors[first], tensors[second] = tensors[second], tensors[first]

    return change


def both(*changes):
    def change(tensors):
        for one in changes:
            one(tensors)

    return change


def rows(part, function, width=WIDTH):
    """Edit the rows of q, k or v in a fused tensor."""
    start = "qkv".index(part) * width

    def change(array):
        array = array.copy()
        array[start : start + width] = function(array[start : start + width])
        return array

    return change


def order(*parts, width=WIDTH):
    return lambda array: np.concatenate([array["qkv".index(p) * width :][:width] for p in parts])


def one_element(array):
    array = array.copy()
    array.flat[77] = np.nextafter(array.flat[77], np.float32(9))
    return array


def with_value(value):
    def change(array):
        array = array.copy()
        array.flat[3] = value
        return array

    return change


def rotated_heads(array):
    return np.roll(array.reshape(HEADS, WIDTH // HEADS, -1), 1, axis=0).reshape(array.shape)


def pixels_channel_first(array):
    return array.reshape(8, 8, 3, -1).transpose(2, 0, 1, 3).reshape(array.shape)


def exchanged_class_token(tensors):
    first = tensors["pos_embed"][:, :1]
    rest = tensors["pos_embed"][:, 1:]
    tensors["pos_embed"] = np.concatenate([tensors["cls_token"], rest], axis=1)
    tensors["cls_token"] = first.copy()


def moved(amount, *names):
    """Return a function that adds an amount to some tensors; another subtracts it from others."""
    return both(*(edit(name, lambda a: a + amount) for name in names))


E, D = "encoder.blocks", "decoder.blocks"
SHUFFLED = np.random.default_rng(5).permutation(4 * WIDTH)

WEIGHTS = [
    Mutant("q and k swapped in block 2", edit("blocks.2.attn.qkv.weight", order("k", "q", "v")),
           (f"{E}.2.attention.q.weight", f"{E}.2.attention.k.weight")),
    Mutant("q, k and v reversed in block 0", edit("blocks.0.attn.qkv.weight", order("v", "k", "q")),
           (f"{E}.0.attention.q.weight", f"{E}.0.attention.v.weight")),
    Mutant("k and v biases swapped", edit("blocks.1.attn.qkv.bias", order("q", "v", "k")),
           (f"{E}.1.attention.k.bias", f"{E}.1.attention.v.bias")),
    Mutant("k and v swapped in the decoder",
           edit("decoder_blocks.0.attn.qkv.weight", order("q", "v", "k", width=24)),
           (f"{D}.0.attention.k.weight", f"{D}.0.attention.v.weight")),
    Mutant("value transposed", edit("blocks.1.attn.qkv.weight", rows("v", lambda a: a.T)),
           (f"{E}.1.attention.v.weight",)),
    Mutant("query transposed", edit("blocks.0.attn.qkv.weight", rows("q", lambda a: a.T)),
           (f"{E}.0.attention.q.weight",)),
    Mutant("attention output transposed", edit("blocks.2.attn.proj.weight", lambda a: a.T),
           (f"{E}.2.attention.output.weight",)),
    Mutant("decoder attention output transposed",
           edit("decoder_blocks.1.attn.proj.weight", lambda a: a.T),
           (f"{D}.1.attention.output.weight",)),
    Mutant("key bias + 5", edit("blocks.0.attn.qkv.bias", rows("k", lambda a: a + 5)),
           (f"{E}.0.attention.k.bias",)),
    Mutant("key bias zeroed in the decoder",
           edit("decoder_blocks.1.attn.qkv.bias", rows("k", lambda a: a * 0, width=24)),
           (f"{D}.1.attention.k.bias",)),
    Mutant("one bias off by 1e-4", edit("decoder_blocks.1.mlp.fc2.bias", lambda a: a * (1 + 1e-4)),
           (f"{D}.1.mlp.fc2.bias",)),
    Mutant("one value off by one unit in the last place",
           edit("blocks.2.mlp.fc1.weight", one_element), (f"{E}.2.mlp.fc1.weight",)),
    Mutant("fc1 of two blocks swapped", swap("blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight"),
           (f"{E}.0.mlp.fc1.weight", f"{E}.1.mlp.fc1.weight")),
    Mutant("fc2 of two decoder blocks swapped",
           swap("decoder_blocks.0.mlp.fc2.weight", "decoder_blocks.1.mlp.fc2.weight"),
           (f"{D}.0.mlp.fc2.weight", f"{D}.1.mlp.fc2.weight")),
    Mutant("norms of a block swapped", swap("blocks.1.norm1.weight", "blocks.1.norm2.weight"),
           (f"{E}.1.norm1.weight", f"{E}.1.norm2.weight")),
    Mutant("norm biases of a decoder block swapped",
           swap("decoder_blocks.0.norm1.bias", "decoder_blocks.0.norm2.bias"),
           (f"{D}.0.norm1.bias", f"{D}.0.norm2.bias")),
    Mutant("final norm scaled", edit("norm.weight", lambda a: a * 1.001), ("encoder.norm.weight",)),
    Mutant("final norm's weight and bias swapped", swap("norm.weight", "norm.bias"),
           ("encoder.norm.weight", "encoder.norm.bias")),
    Mutant("decoder norm zeroed", edit("decoder_norm.bias", lambda a: a * 0),
           ("decoder.norm.bias",)),
    Mutant("decoder positions zeroed", edit("decoder_pos_embed", lambda a: a * 0),
           ("decoder.position_embedding",)),
    Mutant("positions off by the class token's place",
           edit("pos_embed", lambda a: np.roll(a, 1, axis=1)), ("encoder.position_embedding",)),
    Mutant("positions transposed on the grid",
           edit("pos_embed", lambda a: np.concatenate(
               [a[:, :1], a[:, 1:].reshape(1, 4, 4, -1).swapaxes(1, 2).reshape(1, 16, -1)], 1)),
           ("encoder.position_embedding",)),
    Mutant("class token zeroed", edit("cls_token", lambda a: a * 0), ("encoder.cls_token",)),
    Mutant("class token and its position exchanged, which is the same sum", exchanged_class_token,
           ("encoder.cls_token", "encoder.position_embedding"), blind=True),
    Mutant("patch channels reversed", edit("patch_embed.proj.weight", lambda a: a[:, ::-1]),
           ("encoder.patch_embedding.weight",)),
    Mutant("patch height and width swapped",
           edit("patch_embed.proj.weight", lambda a: a.swapaxes(2, 3)),
           ("encoder.patch_embedding.weight",)),
    Mutant("patch bias zeroed", edit("patch_embed.proj.bias", lambda a: a * 0),
           ("encoder.patch_embedding.bias",)),
    Mutant("predicted pixels channel first",
           edit("decoder_pred.weight", pixels_channel_first), ("decoder.prediction.weight",)),
    Mutant("prediction bias reversed", edit("decoder_pred.bias", lambda a: a[::-1]),
           ("decoder.prediction.bias",)),
    Mutant("mask token zeroed", edit("mask_token", lambda a: a * 0), ("decoder.mask_token",)),
    Mutant("decoder embedding bias zeroed", edit("decoder_embed.bias", lambda a: a * 0),
           ("decoder.embed.bias",)),
    Mutant("a constant moved between mask token, embedding and positions",
           both(moved(1, "mask_token", "decoder_embed.bias"), edit(
               "decoder_pos_embed", lambda a: a - 1)),
           ("decoder.mask_token", "decoder.embed.bias", "decoder.position_embedding")),
    Mutant("NaN", edit("norm.bias", with_value(np.nan)), ("encoder.norm.bias",)),
    Mutant("infinity", edit("blocks.0.mlp.fc1.bias", with_value(np.inf)), (f"{E}.0.mlp.fc1.bias",)),
    Mutant("NaN in a key bias", edit("blocks.0.attn.qkv.bias", with_value(np.nan)),
           (f"{E}.0.attention.q.bias",)),
    Mutant("heads of q in another order", edit(
        "blocks.0.attn.qkv.weight", rows("q", rotated_heads)),
           (f"{E}.0.attention.q.weight",)),
    Mutant("heads of q, k, v and output in another order, which is the same function",
           both(edit("blocks.0.attn.qkv.weight", lambda a: np.concatenate(
                    [rotated_heads(part) for part in np.split(a, 3)])),
                edit("blocks.0.attn.qkv.bias", lambda a: np.concatenate(
                    [rotated_heads(part) for part in np.split(a, 3)])),
                edit("blocks.0.attn.proj.weight", lambda a: rotated_heads(a.T).T)),
           (f"{E}.0.attention.q.weight", f"{E}.0.attention.k.weight", f"{E}.0.attention.v.weight",
            f"{E}.0.attention.q.bias")),
    Mutant("q doubled and k halved, which is the same function",
           edit("blocks.1.attn.qkv.weight", lambda a: rows("k", lambda k: k / 2)(
               rows("q", lambda q: q * 2)(a))),
           (f"{E}.1.attention.q.weight", f"{E}.1.attention.k.weight")),
    Mutant("MLP units in another order, which is the same function",
           both(edit("blocks.0.mlp.fc1.weight", lambda a: a[SHUFFLED]),
                edit("blocks.0.mlp.fc1.bias", lambda a: a[SHUFFLED]),
                edit("blocks.0.mlp.fc2.weight", lambda a: a[:, SHUFFLED])),
           (f"{E}.0.mlp.fc1.weight", f"{E}.0.mlp.fc1.bias", f"{E}.0.mlp.fc2.weight"), blind=True),
    Mutant("one matrix rounded to float16",
           edit("blocks.1.mlp.fc2.weight", lambda a: a.astype(np.float16)),
           (f"{E}.1.mlp.fc2.weight",)),
    Mutant("signs of a row turned", edit("blocks.2.mlp.fc1.weight", lambda a: np.concatenate(
        [-a[:1], a[1:]])), (f"{E}.2.mlp.fc1.weight",)),
]  # fmt: skip


class GoldenModel:
    """Traces the golden model and mutants of it in this process."""

    def __init__(self, case, folder: Path) -> None:
        golden = case("pretrain_tiny")
        self.flags = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
        self.folder = folder
        self.source = open_checkpoint(golden.checkpoint, self.flags)
        self.tensors = {n: t.load() for n, t in self.source.container.tensors.items()}
        self.inputs = random_inputs(self.source.family, self.source.configuration.model, seed=3)
        np.savez(folder / "inputs.npz", **self.inputs)
        self.reference = self.trace(self.source)

    def job(
        self, checkpoint, side, output="unused", dtypes=("float64", "float32"), **config
    ) -> Job:
        return Job(
            framework=side.framework,
            device="cpu",
            dtypes=dtypes,
            task=checkpoint.task,
            config={**checkpoint.configuration.model.to_dict(), **config},
            **classes_of(checkpoint, side.framework),
            weights=StoredWeights(
                (str(checkpoint.container.weights_file),), checkpoint.container.kind, "model"
            ),
            loader={"torch": "facebook"}.get(side.framework, checkpoint.layout.name),
            inputs=str(self.folder / "inputs.npz"),
            output=str(output),
            taps=True,
            gradients=False,
            mode="eager",
            description={
                **describe(
                    checkpoint,
                    side,
                    self.inputs,
                    converted_by=None
                    if loader_for(checkpoint, side.framework)
                    else "mae-convert's mapping tables",
                ),
                "dtypes": list(dtypes),
                "run_mask_ratio": checkpoint.configuration.model.mask_ratio,
            },
        )

    def trace(self, checkpoint, **config) -> Trace:
        job = self.job(checkpoint, Side("torch"), **config)
        arrays = {}
        for dtype, results in run_pytorch.runs(job, self.inputs):
            for name, array in results.items():
                arrays[name if name in ("mask", "ids_restore") else f"{dtype}/{name}"] = array
        return Trace({**job.description, "config": dict(job.config)}, arrays)

    def mutated(self, change) -> Trace:
        tensors = {name: array.copy() for name, array in self.tensors.items()}
        change(tensors)
        path = self.folder / "mutant.safetensors"
        save_file(tensors, path)
        return self.trace(open_checkpoint(path, self.flags))


@pytest.fixture(scope="module")
def golden_model(case, tmp_path_factory):
    return GoldenModel(case, tmp_path_factory.mktemp("mutants"))


def test_the_model_itself_passes(golden_model):
    again = golden_model.mutated(lambda tensors: None)
    verdict = judge(golden_model.reference, again)
    assert verdict.passed, verdict.failed()
    assert verdict.first_divergence is None
    assert not verdict.suspects


def test_faults_in_the_weights_are_detected_by_tensors_and_by_traces(golden_model, capsys):
    by_tensors, by_traces, caught, blamed, blamed_by_traces = [], [], [], [], []
    for mutant in WEIGHTS:
        trace = golden_model.mutated(mutant.change)
        whole = judge(golden_model.reference, trace)
        traces_only = judge(golden_model.reference, trace, compare_weights=False)
        weights = [check for check in whole.checks if check.name.startswith("weights/")]
        by_tensors += [mutant.name] * any(not check.passed for check in weights)
        by_traces += [mutant.name] * (not traces_only.passed)
        caught += [mutant.name] * (not whole.passed)
        blamed += [mutant.name] * (
            whole.suspects[:1] != () and whole.suspects[0] in mutant.changed_tensors
        )
        first = traces_only.suspects[:1]
        blamed_by_traces += [mutant.name] * (first != () and first[0] in mutant.changed_tensors)
    visible = [mutant.name for mutant in WEIGHTS if not mutant.blind]
    with capsys.disabled():
        total = len(WEIGHTS)
        print(
            f"\nfaults in weights: {len(caught)}/{total} caught"
            f" ({len(by_tensors)}/{total} by tensors alone, {len(by_traces)}/{len(visible)} of the"
            f" visible ones by traces alone); changed tensor named first: {len(blamed)}/{total},"
            f" by traces alone {len(blamed_by_traces)}/{len(visible)}"
        )
    names = [mutant.name for mutant in WEIGHTS]
    assert len(WEIGHTS) >= 40
    assert caught == by_tensors == names
    assert by_traces == visible
    assert blamed == names
    assert len(blamed_by_traces) >= 0.7 * len(visible)


CONFIGURATIONS = {
    "eps 1e-12": {"layer_norm_eps": 1e-12},
    "eps 1e-5": {"layer_norm_eps": 1e-5},
    "eps 1e-5 in the decoder": {"decoder_layer_norm_eps": 1e-5},
    "GELU by tanh": {"hidden_act": "gelu_new"},
    "ReLU": {"hidden_act": "relu"},
    "eight heads": {"num_attention_heads": 8},
    "four decoder heads": {"decoder_num_attention_heads": 4},
    "normalized pixels": {"norm_pix_loss": True},
    "mask ratio": {"mask_ratio": 0.5},
}
# Only the configuration shows these: traces contain both losses, and both sides use one mask.
FLAGS_ONLY = {"normalized pixels", "mask ratio"}


def test_faults_in_the_configuration_are_detected(golden_model, capsys):
    by_traces = []
    for name, change in CONFIGURATIONS.items():
        run = {} if name in FLAGS_ONLY else change
        trace = golden_model.trace(golden_model.source, **run)
        config = {**trace.description["config"], **change}
        trace = Trace({**trace.description, "config": config}, trace.arrays)
        verdict = judge(golden_model.reference, trace)
        assert not verdict.passed, name
        assert any(next(iter(change)) in cause for cause in verdict.causes), name
        function = [c for c in verdict.failed() if c.name.startswith("function/")]
        by_traces += [name] * bool(function)
    with capsys.disabled():
        total = len(CONFIGURATIONS)
        print(
            f"\nfaults in configurations: {total}/{total} caught, {len(by_traces)}/{total} by the"
            " forward pass too"
        )
    assert set(by_traces) == set(CONFIGURATIONS) - FLAGS_ONLY


@contextmanager
def replaced(module, name, function):
    original = getattr(module, name)
    setattr(module, name, function(original))
    try:
        yield
    finally:
        setattr(module, name, original)


def in_bfloat16(original):
    def attention(q, k, v, **options):
        return original(q.bfloat16(), k.bfloat16(), v.bfloat16(), **options).to(q.dtype)

    return attention


def bfloat16_below_float64(original):
    """Compute only the float32 run with less precision, within a wide tolerance."""

    def attention(q, k, v, **options):
        if q.dtype == torch.float64:
            return original(q, k, v, **options)
        return in_bfloat16(original)(q, k, v, **options)

    return attention


def tf32_below_float64(original):
    """Round the factors of a product to ten bits of mantissa, as TF32 on a GPU."""

    def cut(tensor):
        return (tensor.view(torch.int32) & -8192).view(torch.float32)

    def linear(x, weight, bias=None):
        if x.dtype == torch.float64:
            return original(x, weight, bias)
        return original(cut(x.contiguous()), cut(weight), bias)

    return linear


def biased(original):
    def var_mean(x, *args, **options):
        return original(x, *args, **{**options, "correction": 0})

    return var_mean


CODE = {
    "attention in bfloat16": ("scaled_dot_product_attention", in_bfloat16),
    "attention in bfloat16, but not in the proof": (
        "scaled_dot_product_attention",
        bfloat16_below_float64,
    ),
    "products in TF32, but not in the proof": ("linear", tf32_below_float64),
}


@pytest.mark.parametrize("name", CODE)
def test_code_with_lower_precision_is_detected(golden_model, name):
    function, fault = CODE[name]
    with replaced(torch.nn.functional, function, fault):
        trace = golden_model.trace(golden_model.source)
    verdict = judge(golden_model.reference, trace)
    assert not verdict.passed
    failed = {check.name.split("/")[0] for check in verdict.failed()}
    assert failed == ({"float32"} if "proof" in name else {"function", "float32"} & failed)


def test_biased_variance_is_detected(golden_model):
    with replaced(torch, "var_mean", biased):
        trace = golden_model.trace(golden_model.source)
    verdict = judge(golden_model.reference, trace)
    names = [check.name for check in verdict.failed()]
    assert "function/loss_norm_pix" in names
    assert verdict.first_divergence == "loss_norm_pix"


def changed(rows_, external, change):
    """Return rows with one row changed, whose external name begins with ``external``."""
    changed_rows = []
    for row in rows_:
        if isinstance(row, Repeat):
            changed_rows.append(replace(row, rows=tuple(changed(row.rows, external, change))))
        else:
            changed_rows += change(row) if row.external.startswith(external) else [row]
    return changed_rows


def renamed(**change):
    return lambda row: [replace(row, **change)]


def exchanged(first, second):
    def change(row):
        names = row.canonical.replace(first, "?").replace(second, first).replace("?", second)
        return [replace(row, canonical=names)]

    return change


def transposed_weight(row):
    assert row.canonical.endswith("{weight,bias}")
    weight, bias = (
        replace(row, canonical=row.canonical.replace("{weight,bias}", leaf),
                external=row.external.replace("{weight,bias}", leaf))
        for leaf in ("weight", "bias")
    )  # fmt: skip
    return [replace(weight, transform=Permute((1, 0))), bias]


PATCH = "vit/tf_vi_tmae_for_pre_training/vit/embeddings/patch_embeddings/projection/kernel:0"
TABLE_FAULTS = {
    "q and k change names": (
        "transformers", ".attention.attention.{query", exchanged("q,k", "k,q")),
    "k and v change names": (
        "transformers", ".attention.attention.{query", exchanged("k,v", "v,k")),
    "the norm before attention and the one before the MLP change names": (
        "transformers", ".layernorm_", exchanged("norm1", "norm2")),
    "the output is transposed": (
        "transformers", ".attention.output.dense", transposed_weight),
    "a norm's weight and bias change names": (
        "transformers", "vit.layernorm", renamed(canonical="encoder.norm.{bias,weight}")),
    "a decoder norm's weight and bias change names": (
        "transformers", "decoder.decoder_norm", renamed(canonical="decoder.norm.{bias,weight}")),
    "a query kernel is not transposed": (
        "transformers-tf", "/attention/attention/query/kernel:0", renamed(transform=SAME)),
    "an output kernel is not transposed": (
        "transformers-tf", "/attention/output/dense/kernel:0", renamed(transform=SAME)),
    "the patch kernel has height and width swapped": (
        "transformers-tf", PATCH, renamed(transform=Permute((3, 2, 1, 0)))),
    "gamma and beta change places": (
        "transformers-tf", "/layernorm_before",
        renamed(external="/layernorm_before/{beta,gamma}:0")),
}  # fmt: skip


def faulty_table(layout, external, change):
    module = {"transformers": transformers, "transformers-tf": transformers_tf}[layout]
    table = (module.VERSION_4 if layout == "transformers" else module.WRITTEN)[0]
    rows_ = changed(table.rows, external, change)
    assert tuple(rows_) != table.rows, external
    return rows_, table


def write_with(golden_model, layout, rows_, table, target):
    """Convert with a faulty table, as a maintainer who made that mistake would."""
    plan = plan_conversion(golden_model.source, target, layout)
    faulty = Table(table.name, table.tasks, tuple(rows_))
    rules = faulty.expand(golden_model.source.tensors)
    tensors = write_tensors(golden_model.source.tensors, rules)
    execute(Plan(**{**vars(plan), "rules": rules, "tensors": tensors}))


def test_faults_in_mapping_tables_are_detected_by_the_forward_pass(
    golden_model, fork_servers, tmp_path, capsys
):
    """Tensors that are compared with the faulty table itself are all equal; traces are not."""
    jobs = []
    names = ["none", *TABLE_FAULTS]
    for number, name in enumerate(names):
        target = tmp_path / str(number)
        if name == "none":
            execute(plan_conversion(golden_model.source, target, "transformers"))
        else:
            layout, external, change = TABLE_FAULTS[name]
            write_with(golden_model, layout, *faulty_table(layout, external, change), target)
        checkpoint = open_checkpoint(target)
        result = tmp_path / f"{number}.safetensors"
        job = golden_model.job(checkpoint, Side("tensorflow"), result, dtypes=("float64",))
        job.save(tmp_path / f"{number}.json")
        jobs.append((str(tmp_path / f"{number}.json"), None))
    run_jobs(jobs, "tensorflow", tmp_path / "list.json", fork_servers)
    verdicts = {
        name: judge(
            golden_model.reference,
            Trace.load(tmp_path / f"{number}.safetensors"),
            compare_weights=False,
        )
        for number, name in enumerate(names)
    }
    assert verdicts.pop("none").passed
    caught = [name for name, verdict in verdicts.items() if not verdict.passed]
    with capsys.disabled():
        print(f"\nfaults in mapping tables: {len(caught)}/{len(verdicts)} detected by traces alone")
    assert caught == list(TABLE_FAULTS)
    assert TRANSFORMERS.table_for("pretrain") is transformers.VERSION_4[0]
