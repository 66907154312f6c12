"""Classes for the official models of a family, for official files, and for texts of model cards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

SUFFIX = ".pth"


@dataclass(frozen=True)
class OfficialModel:
    """An official model, or a model size for which no specific file is known."""

    model_name: str
    """The name in the paper, for example "VideoMAE ViT-B/16"."""

    task: str
    """The task: pretrain, encoder or classify."""

    model: Any
    """The configuration."""

    license: str = ""
    """The licence of the weights, as an identifier of the Hugging Face Hub; "" if not known."""

    where: str = ""
    """The URL of the file, or the repository on the Hub as ``hf://owner/name``.

    It is "" for a model without a known address.
    """

    file: str = ""
    """The publisher's file name; "" if no file is published."""

    md5: str | None = None
    """The first hexadecimal digits of the file's MD5, if published."""

    data: str = ""
    """The name of the training data set; "" if it is not known."""


@dataclass(frozen=True)
class OfficialFile:
    """A published file that is downloaded by its name in the catalog.

    A family defines a subclass with the values of `base_url`, `license` and `data`.
    """

    base_url: ClassVar[str]
    """The URL of the directory that contains the publisher's folders."""

    license: ClassVar[str]
    """The licence of the files, as an identifier of the Hugging Face Hub."""

    data: ClassVar[str]
    """The training data set, as an identifier of the Hugging Face Hub."""

    name: str
    """The name in mae-convert: the file name without ``.pth``."""

    folder: str
    """The folder under `base_url`."""

    task: str
    """The task: pretrain, encoder or classify."""

    model: Any
    """The configuration."""

    normalized: bool | None
    """Whether the decoder predicts pixels that are normalized per patch; None without a decoder."""

    purpose: str
    """The purpose of the file in one line."""

    md5: str | None = None
    """The first six hexadecimal digits of the file's MD5, if published."""

    on_the_hub: str | None = None
    """A repository on the Hugging Face Hub with the same weights, if known."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Configuration fields that follow neither from the file nor from its layout."""

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
        """The origin of the file, as plain data for conversion records."""
        return {
            "official": self.name,
            "url": f"{self.base_url}/{self.path}",
            "license": self.license,
            "datasets": [self.data],
            **({"on_the_hub": self.on_the_hub} if self.on_the_hub else {}),
        }


@dataclass(frozen=True)
class Card:
    """The parts of a model card that are the same for all models of a family."""

    introduction: str
    """A description of the models in Markdown, used as the beginning of a sentence."""

    citation: str
    """BibTeX entries."""

    tags: Sequence[str]
    """Tags for the Hub's search."""

    pipeline_tags: Mapping[str, str] = field(default_factory=dict)
    """The Hub's ``pipeline_tag`` for each task, if any.

    The Hub shows a widget for the tag, so a tag is specified only if its widget accepts the
    inputs of the model.
    """

    licences: Mapping[str, str] = field(default_factory=dict)
    """The licences of the authors' published weights, for the message that asks for a licence.

    The keys are descriptions of the weights, such as "the authors' published weights".
    """

    addresses: Sequence[str] = ()
    """Prefixes of the URLs at which the authors publish weights; each ends with a slash."""
