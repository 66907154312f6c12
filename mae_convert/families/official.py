"""A published model of a family, for the catalog and for what its shapes leave open."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

SUFFIX = ".pth"


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


@dataclass(frozen=True)
class OfficialFile:
    """A published file that is downloaded by its name in the catalog.

    A family has a subclass for its publisher, with the attributes of the class.

    Attributes:
        base_url: where the publisher's folders are.
        license: of the files, as an identifier of the Hugging Face Hub.
        data: the data set that they were trained on, on the Hub.
        name: what it is called here: its file name without ``.pth``.
        folder: where it is under `base_url`.
        task: "pretrain", "encoder" or "classify".
        model: the configuration.
        normalised: the decoder predicts pixels that are normalised patch by patch; None where
            there is no decoder.
        purpose: what to take it for, in a line.
        md5: the six digits that its publisher names, where any.
        on_the_hub: a repository on the Hugging Face Hub with the same weights, where one is known.
        known: configuration fields that neither the file nor its layout's conventions tell.
    """

    base_url: ClassVar[str]
    license: ClassVar[str]
    data: ClassVar[str]
    name: str
    folder: str
    task: str
    model: Any
    normalised: bool | None
    purpose: str
    md5: str | None = None
    on_the_hub: str | None = None
    known: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """The number of values in the file."""
        raise NotImplementedError

    @property
    def file(self) -> str:
        """The publisher's file name."""
        return self.name + SUFFIX

    @property
    def path(self) -> str:
        """The path of the file under `base_url`."""
        return f"{self.folder}/{self.file}"

    @property
    def record(self) -> dict[str, Any]:
        """The origin of such a file for conversion records."""
        return {
            "official": self.name,
            "url": f"{self.base_url}/{self.path}",
            "license": self.license,
            "datasets": [self.data],
            **({"on_the_hub": self.on_the_hub} if self.on_the_hub else {}),
        }
