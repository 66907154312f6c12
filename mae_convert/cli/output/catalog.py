"""Print the official checkpoints: which is which, and which to take."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mae_convert.cli.output.console import console, markup, pairs, table
from mae_convert.families.mae.official import BASE_URL, LICENSE, LICENSE_URL, Official
from mae_convert.verify.reference_results import PUBLISHED, PublishedTruth

DECODERS = {None: "none", False: "plain", True: "normalised"}
WHICH = (
    ("to look at reconstructions", "mae_visualize_vit_*: decoders that predict plain pixels"),
    ("features, fine-tuning", "mae_pretrain_vit_*: encoders without a decoder"),
    ("to pre-train further", "mae_pretrain_vit_*_full: with decoder, normalised pixels"),
    ("to classify ImageNet-1k", "mae_finetuned_vit_*: read the mean of the patches"),
)


Fingerprints = Mapping[str, Mapping[str, str]]


def catalog(officials: Sequence[Official], fingerprints: Fingerprints) -> None:
    """Print the table, and what to take for what.

    Args:
        officials: the official checkpoints.
        fingerprints: fingerprint and ``confirmed`` of those that were downloaded, by name.
    """
    out = console()
    heads = ("name", "folder", "task", "pixels predicted", "parameters", "md5")
    grid = table(*heads, right=("parameters",), whole=set(heads) - {"pixels predicted"})
    grid.padding = (0, 1)  # so that all names fit into 80 columns
    for official in officials:
        grid.add_row(
            official.name,
            official.folder,
            official.task,
            DECODERS[official.normalised],
            f"{official.parameters / 1e6:.1f} M",
            official.md5 or "none",
        )
    out.print(grid)
    names = ", ".join(official.name for official in officials if official.name in PUBLISHED)
    out.print(f"\nothers have published results (verify --published) for {names}")
    out.print("\n[bold]Which one?[/bold]")
    out.print(pairs((f"  {purpose}", names) for purpose, names in WHICH))
    out.print(
        "\nThe encoders of visualize and pretrain are not the same: a reconstruction with parts of"
        " both is wrong.\nThat _full was trained on normalised pixels is reported, not documented."
        "\nfacebook/vit-mae-* on the Hub are the visualize weights, timm's *.mae the pretrain ones."
    )
    out.print(f"\nlicence of all: {LICENSE}, {LICENSE_URL}")
    for name, known in fingerprints.items():
        out.print(
            f"\nfingerprint of {name}, as downloaded here ({markup(known['confirmed'])}):\n"
            f"  {markup(known['fingerprint'])}",
            soft_wrap=True,
        )
    out.print(
        f"address: {BASE_URL}/FOLDER/NAME.pth; md5: the first digits, which the publisher names"
    )


def catalog_json(officials: Sequence[Official], fingerprints: Fingerprints) -> dict[str, Any]:
    """Return the catalog as plain data; ``fingerprint`` is None for what was not downloaded."""
    rows = [
        {
            "name": official.name,
            "url": f"{BASE_URL}/{official.path}",
            "task": official.task,
            "has_decoder": official.task == "pretrain",
            "normalised_pixels": official.normalised,
            "parameters": official.parameters,
            "md5_begins_with": official.md5,
            "license": LICENSE,
            "purpose": official.purpose,
            "on_the_hub": official.on_the_hub,
            "fingerprint": fingerprints.get(official.name),
        }
        for official in officials
    ]
    return {"official": rows, "published": {n: _truth(t) for n, t in PUBLISHED.items()}}


def _truth(truth: PublishedTruth) -> dict[str, Any]:
    return asdict(truth)
