"""The run of `quantize`: workers read, encode and write slices of tensors into shards. A killed run can be resumed."""

from .calibration import CalibratedLayer, CalibratedTensor, Calibration
from .devices import Device
from .output_folder import quantization_config
from .quantize import QuantizeResult, check_calibration, check_origin, check_unquantized, quantize
from .trace import Trace, recorded

__all__ = [
    "CalibratedLayer",
    "CalibratedTensor",
    "Calibration",
    "Device",
    "QuantizeResult",
    "Trace",
    "check_calibration",
    "check_origin",
    "check_unquantized",
    "quantization_config",
    "quantize",
    "recorded",
]
