"""Publishing verified weights to the Hugging Face Hub."""

from mae_convert.publish.plan import Publication, Wish, plan_publication
from mae_convert.publish.publish import Published, publish
from mae_convert.publish.repository import Target

__all__ = ["Publication", "Published", "Target", "Wish", "plan_publication", "publish"]
