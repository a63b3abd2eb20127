"""The compiled CUDA kernels, which are part of an installation where nvcc was found."""

from importlib import resources

from vocabseg.runtime.errors import EngineError


def kernels_fatbin() -> bytes:
    """The compiled kernels; raises EngineError where they were not built."""
    path = resources.files("vocabseg.runtime.kernels.device").joinpath("kernels.fatbin")
    if not path.is_file():
        raise EngineError(
            "the CUDA kernels are not part of this installation: put nvcc of a CUDA toolkit (12.8 or newer knows all "
            "GPUs) on PATH and reinstall vocabseg, or use device 'cpu'"
        )
    return path.read_bytes()
