"""What a launch is forked from: all is imported, nothing computed, and the collector need not look at it again."""

import gc

import board  # noqa: F401  # every figure
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401  # which a run imports for its report: too late without rights to read it
from no_charts import no_charts

import distill.pipeline  # noqa: F401  # which distill.cli imports when it is needed

no_charts()  # what the board looks at is not drawn
gc.freeze()
