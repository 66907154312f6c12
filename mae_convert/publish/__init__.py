"""Publishing verified weights to the Hugging Face Hub."""

from mae_convert.publish.publication_plan import Publication, PublishRequest, plan_publication
from mae_convert.publish.publish import Published, publish
from mae_convert.publish.repository import Target

__all__ = ["Publication", "PublishRequest", "Published", "Target", "plan_publication", "publish"]
