"""The losses by their short names: `TERMS`."""

from distill.losses.base import MapTerm as MapTerm
from distill.losses.base import PixelTerm as PixelTerm
from distill.losses.base import Term
from distill.losses.cirkd import CIRKD
from distill.losses.features import AT, MGD, Hint
from distill.losses.maps import CWD, DIST
from distill.losses.pixel import DKD, KD
from distill.losses.relational import IFVD, SKD
from distill.losses.supervised import OHEM, CrossEntropy, Dice, Focal, Jaccard, Lovasz

# Each has a section of the same name in `TermsConfig`, of the type `Config` of its class.
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
