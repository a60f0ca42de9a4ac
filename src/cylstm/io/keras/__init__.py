"""Networks from Keras 1, 2 and 3: files, read without Keras, and models in memory."""

from cylstm.io.keras.error import KerasError
from cylstm.io.keras.importer import from_keras

__all__ = ["KerasError", "from_keras"]
