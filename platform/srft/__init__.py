"""SRFT: sensitivity-regularized fine-tuning of visual object trackers, distributed with Ray."""

__version__ = "0.1.0"
