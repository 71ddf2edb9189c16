"""Apply an intervention to a model, and take it back bit for bit."""

from lm_eval_cna.steering.apply import steer
from lm_eval_cna.steering.setting import Setting

__all__ = ["Setting", "steer"]
