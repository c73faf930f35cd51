"""A procedural world of moving textured targets, seen by an RGB camera and, in the target domain, by one more camera.

Source domain: well lit, sharp RGB. Target domain: low light, motion blur or over-exposure spoil the RGB frames, while the camera
beside (events, depth or thermal) sees the undegraded scene, with defects of its own. Each split draws its own objects and backgrounds,
so nothing seen in one appears in another. The same arguments give the same bytes. docs/synthetic.md shows pictures.
"""

from srft.data.synthetic.scene import CONDITIONS, POOLS, Split
from srft.data.synthetic.sequences import WORLD_VERSION, Capture, record, render_sequence, sequences

__all__ = ["CONDITIONS", "POOLS", "WORLD_VERSION", "Capture", "Split", "record", "render_sequence", "sequences"]
