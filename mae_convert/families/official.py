"""A published model of a family, for the catalog and for what its shapes leave open."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OfficialModel:
    """A published model, or a size of published models where no file is named.

    Attributes:
        model_name: as the paper names it, for example "VideoMAE ViT-B/16".
        task: "pretrain", "encoder" or "classify".
        model: the configuration.
        license: its licence, as an identifier of the Hugging Face Hub.
        where: address of the file, or the repository on the Hub as ``hf://owner/name``.
        file: its publisher's file name, where one has been published.
        md5: the digits that its publisher names, where any.
        data: the data set that it was trained on, in a word.
    """

    model_name: str
    task: str
    model: Any
    license: str = ""
    where: str = ""
    file: str = ""
    md5: str | None = None
    data: str = ""
