"""What MLflow runs to load a trained model: this file is copied into every model that is logged.

It says no more than which functions to call, so that a model outlives changes of everything behind them.
"""

from calm_lightning.programs.text_models import open_text_model
from calm_lightning.tracking.models.pyfunc import serve

serve(open_text_model)
