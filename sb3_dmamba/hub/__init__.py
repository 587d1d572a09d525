"""A model as a folder for the Hugging Face hub, in Stable-Baselines3's convention."""

from sb3_dmamba.hub.folder import make_folder

__all__ = ["make_folder"]
