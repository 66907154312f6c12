"""Create certificates and traces for `fuzz.py` without a framework, and examine mutated copies."""

from pathlib import Path

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.fingerprint import checkpoint_fingerprint
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.diagnose.diagnosis import diagnose_traces
from mae_convert.publish.artifacts import Artifact
from mae_convert.publish.card_parity import in_short, verification
from mae_convert.reports.junit import verdict_junit
from mae_convert.reports.verdict_files import markdown
from mae_convert.runtime.inputs import make_inputs
from mae_convert.runtime.sides import Side
from mae_convert.runtime.trace import Trace, describe
from mae_convert.verify.certificate import read_certificate, read_source, write_certificate
from mae_convert.verify.judge import Verdict, judge
from mae_convert.verify.replay import _not_stored
from mae_convert.verify.summary import verdict_text
from mae_convert.verify.tracing import save_trace
from mae_convert.verify.verification import InputChoice, Verification

GOOD = "good.safetensors"  # a valid trace, in the folder of the corrupted trace
DTYPES = {"float64": np.float64, "float32": np.float32}


def made_up_trace(checkpoint: Checkpoint) -> tuple[Trace, dict[str, np.ndarray]]:
    """Return a trace with random results of the correct shapes, and the inputs of the trace."""
    inputs, model = make_inputs(InputChoice(), checkpoint), checkpoint.configuration.model
    chance, tokens, images = np.random.default_rng(0), 1 + model.num_kept, len(inputs["noise"])
    shapes = {
        "last_hidden_state": (images, tokens, model.hidden_size),
        "logits": (images, model.num_patches, model.patch_dim),
        "reconstruction": (images, model.num_channels, *model.image_hw),
        "loss": (),
        "loss_norm_pix": (),
        "tap/encoder.embedding": (images, tokens, model.hidden_size),
        **{
            f"tap/encoder.blocks.0.{name}": (images, tokens, model.hidden_size)
            for name in ("q", "k", "v", "attention", "mlp", "output")
        },
        "tap/decoder.embedding": (images, 1 + model.num_patches, model.decoder_hidden_size),
        "grad/encoder.norm.weight": (model.hidden_size,),
    }
    arrays = {
        f"{dtype}/{name}": np.asarray(value, kind)
        for name, shape in shapes.items()
        for value in [chance.standard_normal(shape)]
        for dtype, kind in DTYPES.items()
    }
    order = np.argsort(inputs["noise"], axis=1)
    arrays["ids_restore"] = np.argsort(order, axis=1)
    arrays["mask"] = (arrays["ids_restore"] >= model.num_kept).astype(np.float32)
    description = {
        **describe(checkpoint, Side("torch"), inputs, converted_by=None),
        "dtypes": list(DTYPES),
        "taps": True,
        "run_mask_ratio": model.mask_ratio,
        "versions": {"torch": "2.6"},
        "settings": {},
    }
    return Trace(description, arrays), inputs


def write_proofs(model: Path, traces: Path) -> None:
    """Write a certificate into the directory of a model, and two equal traces into a folder."""
    checkpoint = open_checkpoint(model)
    trace, inputs = made_up_trace(checkpoint)
    fingerprints = (checkpoint_fingerprint(checkpoint),) * 2
    verdict = judge(trace, trace)
    written = Verification(verdict, inputs, (trace, trace), fingerprints=fingerprints)
    write_certificate(written, checkpoint)
    for name in ("x", GOOD):
        save_trace(trace, traces / name)


def examine_trace(path: Path) -> None:
    """Read a trace, compare it with a valid trace, and write the verdict in every format.

    Raises:
        MaeConvertError: the trace is refused.
    """
    good, spoiled = Trace.load(path.with_name(GOOD)), Trace.load(path)
    for pair in ((good, spoiled), (spoiled, good), (spoiled, spoiled)):
        _report(judge(*pair), *pair)


def examine_certificate(model: Path) -> None:
    """Check a model's certificate with the code that verification and publication use.

    The model is not run.

    Args:
        model: the directory of the model, which contains the certificate.

    Raises:
        MaeConvertError: the certificate is refused.
    """
    certificate = read_certificate(model)
    certificate.failed_checks()
    checkpoint = open_checkpoint(model)
    certificate.failed_checks_of_files(checkpoint)
    part = Artifact(model, checkpoint, certificate)
    in_short(part), verification(part)
    source, _ = read_source(certificate)
    _not_stored(certificate)
    again, _ = made_up_trace(checkpoint)
    _report(judge(source, again), source, again)


def _report(verdict: Verdict, a: Trace, b: Trace) -> None:
    explained = Verification(diagnose_traces(verdict, a, b), {}, (a, b))
    verdict_text(explained.verdict), verdict_junit(explained), markdown(explained)
