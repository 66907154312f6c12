"""The metadata of a card, which the Hub uses for search and widgets."""

from typing import Any

from mae_convert.publish.artifacts import Artifact
from mae_convert.publish.licence import Licence, is_repository, sources_of
from mae_convert.text import for_yaml

# By layout; a layout that no library on the Hub loads has none.
LIBRARIES = {
    "transformers": "transformers",
    "transformers-tf": "transformers",
    "timm": "timm",
    "keras": "keras",
    "keras-hub": "keras-hub",
}
TAGS = ("masked-autoencoder", "mae-convert")


def metadata(
    repo_id: str, artifact: Artifact, licence: Licence, base_model: str | None
) -> dict[str, Any]:
    """Return the metadata of a card.

    Args:
        repo_id: where it is published, which is not its own base model.
        artifact: what is published.
        licence: what it is published under.
        base_model: a repository that the model derives from, where the user says one.
    """
    checkpoint = artifact.checkpoint
    about = checkpoint.family.about()
    pipeline = about.pipeline_tags.get(checkpoint.task)
    sources = list(sources_of(artifact))
    base = [base_model] if base_model else []
    for field in ("repository", "on_the_hub"):
        base += [source[field] for source in sources if is_repository(source.get(field))]
    told = (source["datasets"] for source in sources if isinstance(source.get("datasets"), list))
    datasets = next(([name for name in names if is_repository(name)] for names in told), None)
    library = LIBRARIES.get(checkpoint.layout.name)
    fields = {
        **licence.fields,
        **({"library_name": library} if library else {}),
        **({"pipeline_tag": pipeline} if pipeline else {}),
        **({"base_model": base[:1]} if base and base[0] != repo_id else {}),
        **({"datasets": datasets} if datasets else {}),
        "tags": [*about.tags, *TAGS],
    }
    return dict(for_yaml(fields))
