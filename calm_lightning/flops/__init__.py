"""What a model costs: parameters and FLOPs by component, in closed form.

Nothing here imports torch: a count is arithmetic on the configuration dataclasses, and the tests hold it
against the real modules and against torch's own counter. The trade-off: a layer that changes there must
change here too, and those tests say so.
"""

from calm_lightning.flops.count import CONVENTIONS, autoencoder_flops, baseline_flops, calm_flops, for_stage
from calm_lightning.flops.report import FlopsReport

__all__ = ["CONVENTIONS", "FlopsReport", "autoencoder_flops", "baseline_flops", "calm_flops", "for_stage"]
