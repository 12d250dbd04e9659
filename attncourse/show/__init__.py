"""Figures and interactive pieces for notebooks: the same output works in the book, Colab, JupyterLab and VS Code.

Every function returns an `Output` with a text form and an HTML form that asks nothing of any host. Without
scripts a static figure or a disclosed answer stands in its place.
"""

from attncourse.show.claims import claim_steps, claims
from attncourse.show.code import source
from attncourse.show.decoding import decoding
from attncourse.show.figures import MARKS, PALETTE, figure, style
from attncourse.show.heads import heads
from attncourse.show.html import Output
from attncourse.show.latent import latent
from attncourse.show.map import attention_map
from attncourse.show.masks import masks
from attncourse.show.memory import memory
from attncourse.show.models import models
from attncourse.show.online import online
from attncourse.show.pieces import alignment
from attncourse.show.recall import predict, questions
from attncourse.show.roofline import roofline
from attncourse.show.rotation import rotation
from attncourse.show.sharing import sharing
from attncourse.show.steps import steps
from attncourse.show.tables import comparison, table
from attncourse.show.timeline import timeline
from attncourse.show.vectors import scores
from attncourse.show.widgets import Choice, Slider, live, live_score, live_temperature

__all__ = [
    "MARKS",
    "PALETTE",
    "Choice",
    "Output",
    "Slider",
    "alignment",
    "attention_map",
    "claim_steps",
    "claims",
    "comparison",
    "decoding",
    "figure",
    "heads",
    "latent",
    "live",
    "live_score",
    "live_temperature",
    "masks",
    "memory",
    "models",
    "online",
    "predict",
    "questions",
    "roofline",
    "rotation",
    "scores",
    "sharing",
    "source",
    "steps",
    "style",
    "table",
    "timeline",
]
