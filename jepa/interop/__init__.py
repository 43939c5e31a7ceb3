"""Use of trained models outside of training, and exchange of weights with other libraries."""

from jepa.interop.load import Pretrained, load_model, read_config_of, read_pretrained
from jepa.interop.model import Model, predict
from jepa.interop.predictor import Movement

__all__ = ["Model", "Movement", "Pretrained", "load_model", "predict", "read_config_of", "read_pretrained"]
