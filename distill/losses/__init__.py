"""The terms of the objective by their short names.

Pure functions and small modules; a term takes what student and teacher say of a batch and gives one unweighted number.
"""

from distill.losses.base import MapTerm, PixelTerm, Term
from distill.losses.cirkd import CIRKD
from distill.losses.features import AT, MGD, Hint
from distill.losses.maps import CWD, DIST
from distill.losses.pixel import DKD, KD
from distill.losses.relational import IFVD, SKD
from distill.losses.supervised import OHEM, CrossEntropy, Dice, Focal, Jaccard, Lovasz

TERMS: dict[str, type[Term]] = {
    "cross_entropy": CrossEntropy,
    "ohem": OHEM,
    "dice": Dice,
    "jaccard": Jaccard,
    "lovasz": Lovasz,
    "focal": Focal,
    "kd": KD,
    "dkd": DKD,
    "cwd": CWD,
    "dist": DIST,
    "skd": SKD,
    "ifvd": IFVD,
    "cirkd": CIRKD,
    "hint": Hint,
    "at": AT,
    "mgd": MGD,
}

__all__ = ["TERMS", "MapTerm", "PixelTerm", "Term"]
