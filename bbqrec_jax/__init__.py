"""BBQRec: behaviour-bind quantization for multi-modal sequential recommendation, in JAX."""

__version__ = "0.1.0"
