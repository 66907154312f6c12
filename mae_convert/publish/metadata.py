"""The metadata of a card: what the Hub's search and its buttons go by."""

from typing import Any

from mae_convert.publish.licence import Licence, sources_of
from mae_convert.publish.parts import Part

# By layout; a layout that no library on the Hub loads has none.
LIBRARIES = {
    "transformers": "transformers",
    "transformers-tf": "transformers",
    "timm": "timm",
    "keras": "keras",
    "keras-hub": "keras-hub",
}
TAGS = ("vit_mae", "masked-autoencoder", "mae-convert")


def metadata(repo_id: str, part: Part, licence: Licence, base_model: str | None) -> dict[str, Any]:
    """Return the metadata of a card.

    Args:
        repo_id: where it is published, which is not its own base model.
        part: what is published.
        licence: what it is published under.
        base_model: a repository that the model derives from, where the user says one.
    """
    checkpoint = part.checkpoint
    task = "image-classification" if checkpoint.task == "classify" else "image-feature-extraction"
    sources = list(sources_of(part))
    base = [base_model] if base_model else []
    base += [str(source["repository"]) for source in sources if source.get("repository")]
    base += [str(source["on_the_hub"]) for source in sources if source.get("on_the_hub")]
    told = (source["datasets"] for source in sources if source.get("datasets"))
    datasets = next((list(names) for names in told), None)
    library = LIBRARIES.get(checkpoint.layout.name)
    return {
        **licence.fields,
        **({"library_name": library} if library else {}),
        "pipeline_tag": task,
        **({"base_model": base[:1]} if base and base[0] != repo_id else {}),
        **({"datasets": datasets} if datasets else {}),
        "tags": list(TAGS),
    }
